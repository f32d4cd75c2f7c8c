"""No card prints a command that its runtime refuses, and each is run in a test or says by its row why it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hubbot.cards.python import python_lines
from hubbot.domain import Record, Status
from hubbot.formats.names import parse_variant
from hubbot.release.repos import plan_repos
from hubbot.runtimes.layouts import EXAMPLES, layouts_of_run
from hubbot.runtimes.table import Runtime
from hubbot.settings import PublishSettings
from tests.promises import FOLDERS, promises
from tests.records import record, variant

PUBLISH = PublishSettings(namespace="test-press")
MODELS: Mapping[str, tuple[bool, int]] = {"dense": (False, 0), "quantized head": (True, 0), "experts": (False, 8)}
RUN = {  # where a promise with a row that was run is kept
    Runtime.LLAMA_CPP: ["Q4_K_M"],  # tests/formats/gguf, and every load check of a GGUF file
    Runtime.VLLM: FOLDERS,  # tests/vllm
    Runtime.TRANSFORMERS: FOLDERS,  # below
}


def every_layout(model: str) -> Record:
    """A run in which a variant of every layout passed."""
    head, experts = MODELS[model]
    names = dict.fromkeys([*EXAMPLES.values(), "gptq-4bit--1g-actorder", "gptq-4bit-16g-asym"])
    likes = {name: variant("Q4_K_M" if name == "Q4_K_M" else "gptq-4bit-128g") for name in names}
    variants = (
        replace(like, name=name, family=parse_variant(name).family, status=Status.PASSED)
        for name, like in likes.items()
    )
    made = record()
    return replace(
        made,
        variants=tuple(variants),
        source=replace(made.source, experts=experts),
        config={**made.config, "gptq": {"lm_head": head}},
    )


@pytest.mark.parametrize("model", MODELS)
def test_no_card_prints_a_command_that_its_runtime_refuses(model: str) -> None:
    made = every_layout(model)
    seen = set()
    for repo in plan_repos(made, PUBLISH):
        for runtime, name, row in promises(made, repo):
            seen.add(name)
            alone = runtime is Runtime.TRANSFORMERS and "GPTQModel.load" in row.how
            assert row.reads or alone, (runtime, name, row.how)
    assert seen == {one.name for one in made.variants}, "every variant has a command"


@pytest.mark.parametrize("model", MODELS)
def test_every_command_is_run_in_a_test_or_read_from_a_row_that_says_where(model: str) -> None:
    made = every_layout(model)
    for repo in plan_repos(made, PUBLISH):
        for runtime, name, row in promises(made, repo):
            if row.source.startswith("run: "):
                assert set(row.layouts) & {layout for layout, each in EXAMPLES.items() if each in RUN[runtime]}, name
            else:
                assert re.match(r"read: .{6,}", row.source), (runtime, name)


@pytest.mark.heavy
@pytest.mark.parametrize("head", [False, True], ids=["all layouts", "a quantized head"])
def test_the_lines_of_every_card_were_run_and_gave_what_the_sweep_gave(head: bool, tmp_path: Path) -> None:
    from hubbot.demo.train import VARIANTS
    from tests.jobs import make
    from tests.models import make_model

    model = make_model("llama", tmp_path / "tiny", tied=False)
    names = ["gptq-4bit-128g"] if head else dict.fromkeys([*VARIANTS.split(","), *FOLDERS])
    made = make(
        model,
        tmp_path,
        variants=",".join(names),
        check__card=True,
        gptq__lm_head=head,
        gate__enabled=False,
        evaluation__samples=False,
    )
    assert {one.name: one.reason for one in made.variants if not one.passed} == {}
    for repo in plan_repos(made, PUBLISH):
        list(promises(made, repo))
        card = tmp_path / "out" / "cards" / repo.name / "README.md"
        printed = [_bare(code) for code in re.findall(r"```python\n(.*?)\n```", card.read_text(), re.DOTALL)]
        for one in repo.variants if repo.about.folder else ():
            assert [(trial.verdict, trial.error) for trial in one.trials] == [("agrees", None)], one.name
            run = python_lines(
                "x",
                one.name,
                also=layouts_of_run(quantized_head=head, experts=0, architecture="LlamaForCausalLM"),
                chat=True,
            )
            assert _bare("\n".join(run)) in printed, "what was run is what is printed"


def _bare(code: str) -> str:
    """Lines of a card but for what differs on the reader's side: place, branch, number of tokens."""
    bare = re.sub(r"^(name|revision) = .*\n", "", code, flags=re.MULTILINE)
    return re.sub(r"max_new_tokens=\d+", "", bare.replace(", revision=revision", ""))
