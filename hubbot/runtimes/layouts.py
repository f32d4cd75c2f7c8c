"""What sets files apart for runtimes, by the names of variants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from hubbot.domain import Family
from hubbot.formats.names import find_variant

__all__ = ["EXAMPLES", "OF_RUN", "Layout", "layouts_of", "layouts_of_run"]


class Layout(StrEnum):
    """Something that a runtime reads or refuses; the value is what tables call it. A variant may be of several."""

    GGUF = "GGUF"
    GPTQ_4 = "GPTQ, 4 bits"
    GPTQ_8 = "GPTQ, 8 bits"
    GPTQ_LOW = "GPTQ, 2 and 3 bits"
    GPTQ_ROW = "GPTQ, one scale a row (`--1g`)"
    GPTQ_GROUPS = "GPTQ, groups of 16 or 256"
    GPTQ_ORDER = "GPTQ, groups of `-actorder`"
    GPTQ_ASYM = "GPTQ, `-asym`"
    GPTQ_HEAD = "GPTQ, a quantized head (`gptq.lm_head`)"
    GPTQ_EXPERTS = "GPTQ, of a mixture of experts"
    GPTQ_ALONE = "GPTQ, of GPT-2, GPT BigCode, Falcon and HRM Text"
    PACKED_4 = "compressed-tensors, 4 bits"
    PACKED_8 = "compressed-tensors, 8 bits"
    PACKED_ASYM = "compressed-tensors, `-asym`"
    PACKED_EXPERTS = "compressed-tensors, of a mixture of experts"
    PACKED_CUT = "compressed-tensors, of layers cut out of one tensor (HRM Text)"
    BNB_4 = "bitsandbytes, nf4 and fp4"
    BNB_8 = "bitsandbytes, int8"


EXAMPLES = {
    Layout.GGUF: "Q4_K_M",
    Layout.GPTQ_4: "gptq-4bit-128g",
    Layout.GPTQ_8: "gptq-8bit-128g",
    Layout.GPTQ_LOW: "gptq-3bit-128g",
    Layout.GPTQ_ROW: "gptq-4bit--1g",
    Layout.GPTQ_GROUPS: "gptq-4bit-16g",
    Layout.GPTQ_ORDER: "gptq-4bit-32g-actorder",
    Layout.GPTQ_ASYM: "gptq-4bit-128g-asym",
    Layout.GPTQ_HEAD: "gptq-4bit-128g",
    Layout.GPTQ_EXPERTS: "gptq-4bit-128g",
    Layout.GPTQ_ALONE: "gptq-4bit-128g",
    Layout.PACKED_4: "w4a16-128g",
    Layout.PACKED_8: "w8a16-128g",
    Layout.PACKED_ASYM: "w4a16-128g-asym",
    Layout.PACKED_EXPERTS: "w4a16-128g",
    Layout.PACKED_CUT: "w4a16-128g",
    Layout.BNB_4: "bnb-nf4",
    Layout.BNB_8: "bnb-int8",
}

# With one scale a row, the order of the columns stays inside the solver: the files are those of any other.
_NAMES = {
    Layout.GPTQ_4: r"gptq-4bit-.*",
    Layout.GPTQ_8: r"gptq-8bit-.*",
    Layout.GPTQ_LOW: r"gptq-[23]bit-.*",
    Layout.GPTQ_ROW: r"gptq-.bit--1g.*",
    Layout.GPTQ_GROUPS: r"gptq-.bit-(16|256)g.*",
    Layout.GPTQ_ORDER: r"gptq-.bit-\d+g-actorder.*",
    Layout.GPTQ_ASYM: r"gptq-.*-asym.*",
    Layout.PACKED_4: r"w4a16-.*",
    Layout.PACKED_8: r"w8a16-.*",
    Layout.PACKED_ASYM: r"w4a16-.*-asym.*",
    Layout.BNB_4: r"bnb-(nf4|fp4)",
    Layout.BNB_8: r"bnb-int8",
}


# No name tells these.
OF_RUN = (
    Layout.GPTQ_HEAD,
    Layout.GPTQ_EXPERTS,
    Layout.PACKED_EXPERTS,
    Layout.GPTQ_ALONE,
    Layout.PACKED_CUT,
)

# Classes that are read otherwise than others of the same layout; the first are `hubbot.formats.gptq.definition`'s.
_CLASSES = {
    Layout.GPTQ_ALONE: {
        "FalconForCausalLM",
        "FalconMambaForCausalLM",
        "GPT2LMHeadModel",
        "GPTBigCodeForCausalLM",
        "HrmTextForCausalLM",
    },
    Layout.PACKED_CUT: {"HrmTextForCausalLM"},
}


def layouts_of_run(*, quantized_head: bool, experts: int, architecture: str) -> tuple[Layout, ...]:
    """What the settings and the model of a run make of its variants of GPTQ's codes."""
    asked = {Layout.GPTQ_HEAD: quantized_head, Layout.GPTQ_EXPERTS: experts > 1, Layout.PACKED_EXPERTS: experts > 1}
    asked |= {layout: architecture in classes for layout, classes in _CLASSES.items()}
    return tuple(layout for layout in OF_RUN if asked[layout])


def layouts_of(name: str, also: Sequence[Layout] = ()) -> tuple[Layout, ...]:
    """All that a variant's files are, by its name; nothing where no row is about them.

    also: what the model or the run's settings make of files of codes: with a quantized head, of a mixture of experts, of one class.
    """
    found = tuple(layout for layout, pattern in _NAMES.items() if re.fullmatch(pattern, name))
    if found:
        return (*found, *(layout for layout in also if _container(layout) == _container(found[0])))
    known = find_variant(name)
    return (Layout.GGUF,) if known is None or known.family is Family.GGUF else ()


def _container(layout: Layout) -> str:
    return layout.name.partition("_")[0]
