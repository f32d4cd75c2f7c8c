"""The table of runtimes: whole, without a second answer, and the same on every page that is made from it."""

from __future__ import annotations

import itertools
import re
from importlib.metadata import version

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hubbot.cards.python import python_lines
from hubbot.formats.gguf import TYPES
from hubbot.formats.gptq.definition import GPTQMODEL_ALONE
from hubbot.formats.names import PRESETS, parse_variant
from hubbot.runtimes.layouts import EXAMPLES, OF_RUN, Layout, layouts_of, layouts_of_run
from hubbot.runtimes.table import ROWS, Runtime, answer, readers, runs_in, versions_seen

GPTQ = [
    f"gptq-{bits}bit-{group}g{order}{zeros}"
    for bits, group, order, zeros in itertools.product(
        (2, 3, 4, 8), (16, 32, 64, 128, 256, -1), ("", "-actorder"), ("", "-asym")
    )
]


@pytest.mark.parametrize(("layout", "runtime"), list(itertools.product(Layout, Runtime)))
def test_every_layout_has_one_row_for_every_runtime(layout: Layout, runtime: Runtime) -> None:
    assert len([row for row in ROWS if row.runtime is runtime and layout in row.layouts]) == 1


def test_every_row_says_how_or_why_and_where_that_was_seen() -> None:
    assert [row for row in ROWS if len(row.how) < 5 or not re.match(r"(run|read): .{4,}", row.source)] == []


def test_every_example_is_a_variant_of_its_layout() -> None:
    for layout, name in EXAMPLES.items():
        assert layout in layouts_of(parse_variant(name).name, [layout] if layout in OF_RUN else ())


def test_every_name_has_layouts_of_its_family() -> None:
    for name in GPTQ:
        assert {layout.name[:4] for layout in layouts_of(parse_variant(name).name)} == {"GPTQ"}
    assert {layouts_of(name) for name in TYPES} == {(Layout.GGUF,)}
    assert [layouts_of(f"bnb-{kind}") for kind in ("nf4", "fp4", "int8")] == [
        (Layout.BNB_4,),
        (Layout.BNB_4,),
        (Layout.BNB_8,),
    ]


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("gptq-8bit-32g-actorder", Runtime.EXLLAMA),
        ("gptq-4bit-16g-asym", Runtime.EXLLAMA),
        ("gptq-4bit-16g-actorder-asym", Runtime.HUMMING),
        ("gptq-3bit-128g-actorder", Runtime.HUMMING),
    ],
)
def test_a_runtime_must_read_all_that_a_variant_is(name: str, runtime: Runtime) -> None:
    assert not answer(name, runtime).reads


def test_what_any_of_its_layouts_asks_for_a_variant_asks_for() -> None:
    row = answer("gptq-8bit-16g", Runtime.SGLANG, [Layout.GPTQ_HEAD])
    assert (row.only, row.options) == ("GPU", "--dtype float16")
    assert answer("gptq-8bit-128g", Runtime.VLLM, [Layout.GPTQ_HEAD]).only == "GPU"


def test_a_quantized_head_is_read_where_both_the_head_and_the_layers_are() -> None:
    assert not answer("gptq-4bit-128g", Runtime.TRANSFORMERS, [Layout.GPTQ_HEAD]).reads
    assert answer("gptq-4bit-128g", Runtime.VLLM, [Layout.GPTQ_HEAD]).reads
    assert not answer("gptq-4bit-128g-asym", Runtime.VLLM, [Layout.GPTQ_HEAD]).reads
    assert answer("bnb-nf4", Runtime.TRANSFORMERS, [Layout.GPTQ_HEAD]).reads


def test_presets_hold_what_vllm_sglang_and_transformers_read() -> None:
    wanted = {Runtime.VLLM, Runtime.SGLANG, Runtime.TRANSFORMERS}
    for names in PRESETS.values():
        for name in names:
            assert wanted <= {row.runtime for row in readers(name)}, name


def test_gptq_files_of_experts_are_promised_to_vllm_on_a_gpu_alone() -> None:
    assert [(row.runtime, row.only) for row in readers("gptq-4bit-128g", [Layout.GPTQ_EXPERTS])] == [
        (Runtime.VLLM, "GPU")
    ]
    assert "GPTQModel.load" in answer("gptq-4bit-128g", Runtime.TRANSFORMERS, [Layout.GPTQ_EXPERTS]).how


def test_what_a_mixture_makes_of_a_layout_counts_for_its_own_container_alone() -> None:
    also = layouts_of_run(quantized_head=True, experts=8, architecture="MixtralForCausalLM")
    assert layouts_of("gptq-4bit-128g", also) == (Layout.GPTQ_4, Layout.GPTQ_HEAD, Layout.GPTQ_EXPERTS)
    assert layouts_of("w4a16-128g", also) == (Layout.PACKED_4, Layout.PACKED_EXPERTS)
    assert layouts_of("Q4_K_M", also) == (Layout.GGUF,)
    assert "dequantize=True" in answer("w4a16-128g", Runtime.TRANSFORMERS, also).how
    assert "quantization_config=CompressedTensorsConfig(dequantize=True)" in "".join(
        python_lines("x", "w4a16-128g", also=also)
    )


def test_classes_whose_codes_transformers_does_not_read_itself_are_loaded_by_gptqmodel() -> None:
    also = layouts_of_run(quantized_head=False, experts=0, architecture="FalconForCausalLM")
    lines = "\n".join(python_lines("x", "gptq-4bit-128g", also=also))
    assert "model = GPTQModel.load(name).model" in lines
    assert "AutoModel" not in lines
    assert [row.runtime for row in readers("gptq-4bit-128g", also)] == [Runtime.TRANSFORMERS]
    assert "AutoModelForCausalLM.from_pretrained" in "".join(python_lines("x", "bnb-nf4", also=also))


def test_cards_load_by_gptqmodel_what_the_load_check_does() -> None:
    for kind in GPTQMODEL_ALONE:
        also = layouts_of_run(quantized_head=False, experts=0, architecture=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
        assert Layout.GPTQ_ALONE in also, kind


def test_codes_of_layers_that_are_cut_out_of_one_tensor_are_not_decoded_on_loading() -> None:
    also = layouts_of_run(quantized_head=False, experts=0, architecture="HrmTextForCausalLM")
    lines = "\n".join(python_lines("x", "w4a16-128g", also=also))
    assert 'model = AutoModelForCausalLM.from_pretrained(name, device_map="auto")' in lines
    assert "CompressedTensorsConfig" not in lines
    assert [row.runtime for row in readers("w4a16-128g", also)] == [Runtime.TRANSFORMERS]


def test_files_in_shards_are_not_promised_to_ollama_and_transformers() -> None:
    assert runs_in("Q4_K_M").split(", ")[:2] == ["llama.cpp", "Ollama"]
    assert {"Ollama", "transformers"} & set(runs_in("Q4_K_M").split(", ")) == {"Ollama", "transformers"}
    assert not {"Ollama", "transformers"} & set(runs_in("Q4_K_M", sharded=True).split(", "))
    assert "LM Studio" not in runs_in("Q4_K_M", but=[Runtime.LM_STUDIO])


def test_the_releases_that_the_tests_run_are_those_that_the_table_names() -> None:
    seen = versions_seen()
    for package in ("transformers", "gptqmodel", "compressed-tensors", "bitsandbytes"):
        assert version(package) == seen[package], package
