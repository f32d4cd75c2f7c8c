"""Folders loaded as users load them: what is right agrees, what is wrong is refused, what fails by itself is told apart."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.child import trials
from hubbot.child.messages import Checked, CheckQuestion
from hubbot.child.trials import TOLERANCE, run_lines, try_as_users
from hubbot.confine.environment import allowed
from hubbot.domain import File, LoadCheck, Trial, VariantRecord
from hubbot.formats.names import parse_variant
from hubbot.settings import load_settings
from tests.models import make_model
from tests.quantized import bnb_format, encode_all, gptq_format, logits, packed_format, statistics, tokens
from tests.records import record

pytestmark = pytest.mark.slow


def tried(
    out: Path, names: Sequence[str], references: Mapping[str, Path], **settings: object
) -> dict[str, list[Trial]]:
    """Of variants that lie in OUT/<family>/<name> and that the load check has loaded."""
    variants = [
        VariantRecord(
            name=name,
            family=parse_variant(name).family,
            status=record().variants[0].status,
            files=(File(path=f"{parse_variant(name).family}/{name}/config.json", size=1, sha256="0" * 64),),
        )
        for name in names
    ]
    question = CheckQuestion(
        source=record().source,
        settings=load_settings(None, {path.replace("__", "."): value for path, value in settings.items()}),
        work=out,
        out=out,
        variants=tuple(variants),
        references=dict(references),
    )
    seen = LoadCheck(runtime="transformers 5.23.0", loaded=True, passed=True)
    checked = {name: Checked(load_check=seen, samples=(), speed=None, notes=()) for name in names}
    return try_as_users(question, checked, run_lines(question, variants, chat=True, device="cpu"), device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A folder of a layout of every library; one of them with another's layer, one without its tokenizer."""
    out = tmp_path_factory.mktemp("trials")
    model = make_model("llama", out / "tiny", tied=False)
    seen, decoded = statistics(model), dict[str, dict[str, torch.Tensor]]()
    for names, form in (
        (["gptq-4bit-128g", "gptq-4bit-32g"], gptq_format),
        (["w4a16-128g-asym", "w8a16-128g"], packed_format),
        (["bnb-nf4"], bnb_format),
    ):
        opened = form(model, names, out)
        decoded |= encode_all(opened, model, seen)
        opened.finish()
    references = {name: out / f"{name}.safetensors" for name in decoded}
    for name, reference in references.items():
        known = {"tokens": tokens(2, 48), "logits": logits(model, decoded[name])[:, 16:].contiguous()}
        save_file({**known, "first": torch.tensor([16])}, reference)
    [shard] = (out / "gptq" / "gptq-4bit-32g").glob("*.safetensors")
    weights = load_file(shard)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, shard, metadata={"format": "pt"})
    for path in (out / "compressed-tensors" / "w8a16-128g").glob("tokenizer*"):
        path.unlink()
    return out, references


@pytest.mark.heavy
def test_the_cards_lines_are_run_and_their_model_compared_with_the_sweep(made: tuple[Path, dict[str, Path]]) -> None:
    out, references = made
    names = ["gptq-4bit-128g", "gptq-4bit-32g", "w8a16-128g", "w4a16-128g-asym", "bnb-nf4"]
    found = tried(out, names, references)
    assert all(len(trials) == 1 for trials in found.values())
    verdicts = {name: trial.verdict for name, [trial] in found.items()}
    assert verdicts == {
        "gptq-4bit-128g": "agrees",
        "gptq-4bit-32g": "differs",  # another embedding
        "w8a16-128g": "fails",  # no tokenizer, and what comes after it has a process to run in
        "w4a16-128g-asym": "agrees",
        "bnb-nf4": "agrees",
    }
    [nf4] = found["bnb-nf4"]
    assert nf4.difference is not None
    assert nf4.difference < TOLERANCE / 5


def test_lines_that_gptqmodel_reads_are_run_last_for_it_changes_the_classes_that_others_are_read_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of a mixture whose weights do not sum to one were refused in the card's lines, GPTQ's having been run before."""
    asked: list[str] = []

    def answers(command: object, requests: Sequence[Mapping[str, object]], environment: object) -> list[dict[str, str]]:
        asked.extend(str(request["code"]) for request in requests)
        return [{"error": "ModuleNotFoundError: No module named 'optimum'"} for _ in requests]

    monkeypatch.setattr(trials, "_answers", answers)
    tried(tmp_path, ["gptq-4bit-32g", "w4a16-32g", "bnb-nf4"], {})
    assert [next(name for name in ("gptq-", "w4a16-", "bnb-") if f"/{name}" in code) for code in asked] == [
        "w4a16-",
        "bnb-",
        "gptq-",
    ]


# as GPTQModel 7.7.0 said them on an H100 with a compiler and without a network
MACHETE = "RuntimeError: Machete: GPTQMODEL_OFFLINE=1 and no verified CUTLASS v4.7.1 source cache is available"
MARLIN = "ModuleNotFoundError: Marlin torch.ops kernels are not properly installed. Error: Marlin runtime unavailable."


def test_kernels_that_cannot_be_built_here_say_nothing_about_the_files(tmp_path: Path) -> None:
    """The lines that stand for another kernel run from the first such word on, in the same process, and only where there are some."""
    failing, defect = (f'raise RuntimeError("{said}")' for said in (MACHETE, "a defect"))
    sound = f"import torch\nopen({str(tmp_path / 'compiled')!r}, 'a').write(str(torch._dynamo.config.disable) + ' ')\nmodel = None"
    unbuilt = {"otherwise": sound, "unbuilt": trials._UNBUILT}
    requests = [
        {"code": defect, "tokens": [], **unbuilt},
        {"code": failing, "tokens": [], **unbuilt},
        {"code": "this is no Python", "tokens": [], **unbuilt},
        {"code": sound, "tokens": []},
    ]
    found = trials._answers([sys.executable, "-P", "-m", "hubbot.child.card_lines"], requests, allowed())
    assert found == [
        {"error": "RuntimeError: a defect"},
        {"logprobs": [], "otherwise": True},
        {"logprobs": [], "otherwise": True},
        {"logprobs": []},
    ]
    assert (tmp_path / "compiled").read_text() == "True True True "


def test_a_trial_names_the_kernel_that_stood_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[Mapping[str, Any]] = []

    def answers(_: object, requests: Sequence[Mapping[str, Any]], _environment: object) -> list[dict[str, object]]:
        codes.extend(requests)
        return [{"logprobs": []}, {"logprobs": [], "otherwise": True}, {"error": f"{MARLIN} again"}]

    monkeypatch.setattr(trials, "_answers", answers)
    names = ["w4a16-128g", "gptq-4bit-128g", "gptq-8bit-128g"]
    found = tried(tmp_path, names, {})
    assert [found[name][0].verdict for name in names] == ["agrees", "agrees", "fails"]
    assert [found[name][0].release for name in names] == ["5.23.0", "5.23.0, gptq_torch", "5.23.0"]
    assert 'GPTQConfig(bits=4, backend="gptq_torch")' in codes[1]["otherwise"]
    assert "backend" not in codes[1]["code"]
    assert ["otherwise" in request for request in codes] == [False, True, True]


FAKE = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    name, dummy = asked["folder"].rsplit("/", 1)[1], asked["weights"] == "dummy"
    if name == "gptq-4bit-64g" or (name == "gptq-4bit-32g" and not dummy):
        os.abort()
    answer = {"version": "0.0.1", "logprobs": [[-1.0] * (len(window) - 1) for window in asked["tokens"]]}
    if name == "w4a16-128g" and not dummy:
        answer = {"version": "0.0.1", "error": "ValueError: what it does not read"}
    print(json.dumps(answer), flush=True)
"""


def test_what_ends_vllm_is_asked_again_with_random_weights_so_that_the_runtimes_own_crash_is_told_apart(
    tmp_path: Path,
) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'fake.py'}\n")
    python.chmod(0o755)
    certain = torch.full((1, 9, 4), -50.0)
    certain[..., 0] = 0.0  # a token of probability 1
    save_file({"tokens": torch.zeros(1, 9, dtype=torch.long), "logits": certain}, tmp_path / "sure.safetensors")
    names = ["gptq-4bit-32g", "gptq-4bit-64g", "w4a16-128g", "gptq-4bit-128g", "gptq-8bit-128g", "gptq-3bit-128g"]
    environment = python.parents[1]
    references = dict.fromkeys(names, tmp_path / "sure.safetensors")
    found = tried(tmp_path, names, references, check__card=False, check__vllm=str(environment))
    verdicts = {name: trials[0].verdict if trials else None for name, trials in found.items()}
    assert verdicts == {
        "gptq-4bit-32g": "refuses",  # it reads the layout, but not these files
        "gptq-4bit-64g": "fails",
        "w4a16-128g": "refuses",
        "gptq-4bit-128g": "differs",
        "gptq-8bit-128g": None,  # on a GPU alone, by the table
        "gptq-3bit-128g": None,  # never
    }
    assert found["gptq-4bit-128g"][0].difference == pytest.approx(1.0)
    assert "random weights too" in str(found["gptq-4bit-64g"][0].error)
    assert json.dumps(found["w4a16-128g"][0].error) == '"ValueError: what it does not read"'
