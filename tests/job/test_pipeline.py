"""The main job, end to end: a model becomes a judged set of files, cards, a record, a release."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hubbot.child.windows import cut_evaluation
from hubbot.cli import main
from hubbot.demo.train import CALIBRATION, EVALUATION
from hubbot.domain import Record, Status, Text
from hubbot.errors import HubbotError, LicenceForbids
from hubbot.job import pipeline
from hubbot.job.pipeline import Run
from hubbot.model.own_tokenizer import load_tokenizer
from hubbot.record.file import read_record
from hubbot.settings import load_settings
from tests.hub import Hub
from tests.jobs import flags, make, unconfined
from tests.models import FAMILIES
from tests.tiers import suite


@pytest.mark.slow
@pytest.mark.heavy
def test_the_demo_model_becomes_a_judged_set_of_releases(demo_model: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "variants": "Q8_0,Q4_K_M,Q2_K,gptq-4bit-128g,bnb-nf4",
        "calibration.dataset": str(demo_model / CALIBRATION),
        "evaluation.dataset": str(demo_model / EVALUATION),
        "calibration.samples": 32,
        "calibration.length": 256,
        "evaluation.context": 256,
        "evaluation.windows": 12,
    }
    settings = load_settings(None, {**flags(tmp_path), **changes})
    job = Run(model=str(demo_model), settings=settings, command="hubbot run demo")
    record = pipeline.run(job).record
    written = read_record(job.out / "hubbot.json")  # it names the source's folder alone, not where that lies
    assert replace(written, source=record.source) == record
    assert [variant.name for variant in record.variants] == changes["variants"].split(",")
    assert {variant.name: variant.reason for variant in record.variants if variant.status is not Status.PASSED} == {}
    for variant in record.variants:
        assert variant.load_check is not None
        assert variant.load_check.kld is not None
        assert variant.score is not None
        assert len(variant.samples) == 12
        assert variant.layer_errors
        for file in variant.files:
            data = (job.out / file.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    kld = {variant.name: variant.score.kld.mean for variant in record.variants if variant.score}
    assert 0 < kld["Q8_0"] < kld["Q4_K_M"] < kld["Q2_K"]
    assert kld["gptq-4bit-128g"] < kld["bnb-nf4"]
    assert (job.out / "report.html").stat().st_size > 10_000
    assert len(list((job.out / "cards").glob("*/README.md"))) == 3
    assert_base_perplexity_is_transformers_own(record, demo_model, settings, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in job.out.glob("g*/**/*") if path.is_file()}
    assert pipeline.run(job).record.variants == record.variants
    assert stamps == {path: path.stat().st_mtime_ns for path in job.out.glob("g*/**/*") if path.is_file()}


def assert_base_perplexity_is_transformers_own(record: Record, model: Path, settings: Any, tmp_path: Path) -> None:
    from hubbot.model import read_facts

    path = next((tmp_path / "out" / ".work" / "texts" / "evaluation").glob("*.jsonl"))
    text = Text(path=path, name="", revision=None, sha256="")
    windows = cut_evaluation(text, load_tokenizer(model), read_facts(model), settings)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        losses = [float(network(row[None], labels=row[None]).loss) for row in windows.tokens]
    assert record.base is not None
    assert record.base.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)


KINDS = [(family, tied) for family in sorted(FAMILIES) for tied in FAMILIES[family].tied]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tied"),
    suite(KINDS, first=4, spread=True),
    ids=[f"{family}-{'tied' if tied else 'untied'}" for family, tied in KINDS],
)
def test_every_family_goes_through_the_whole_job(
    family: str, tied: bool, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model(family, tied=tied)
    record = make(
        model, tmp_path, variants="Q8_0,Q4_K_M,gptq-4bit-128g,bnb-nf4", gate__enabled=False, evaluation__samples=False
    )
    assert record.base is not None
    for variant in record.variants:
        assert variant.load_check is not None
        assert variant.load_check.passed, f"{variant.name}: {variant.load_check.error}"
        assert variant.score is not None
        assert 0 < variant.score.kld.mean < 0.2
    kld = {variant.name: variant.score.kld.mean for variant in record.variants if variant.score}
    assert kld["Q8_0"] < kld["Q4_K_M"]


@pytest.mark.slow
def test_only_a_text_that_was_edited_makes_a_finished_run_anew_and_a_full_disk_does_not(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    asked = flags(tmp_path, variants="Q4_0", evaluation__samples=False)

    def again(**changes: object) -> Record:
        settings = load_settings(None, {**asked, **{name.replace("__", "."): value for name, value in changes.items()}})
        return pipeline.run(Run(model=str(tiny_model("llama")), settings=settings), unconfined).record

    first = again()
    assert again(budget__disk="1MB").created == first.created, "all is made: nothing is planned"
    text = tmp_path / "calibration.jsonl"
    text.write_text("\n".join(reversed(text.read_text().splitlines())))
    second = again()
    assert first.calibration is not None
    assert second.calibration is not None
    assert second.calibration.sha256 != first.calibration.sha256
    assert second.variants[0].files != first.variants[0].files


@pytest.mark.slow
def test_what_was_forced_onto_the_evaluation_text_is_no_result_for_a_run_without_force(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    asked = flags(tmp_path, variants="Q4_0", evaluation__samples=False, gate__enabled=False)
    asked["evaluation.dataset"] = asked["calibration.dataset"]
    forced = Run(model=str(tiny_model("llama")), settings=load_settings(None, {**asked, "force": True}))
    record = pipeline.run(forced, unconfined).record
    assert record.calibration is not None
    assert record.calibration.overlap_forced
    with pytest.raises(HubbotError, match="--force"):
        pipeline.run(replace(forced, settings=load_settings(None, asked)), unconfined)
    written = read_record(forced.out / "hubbot.json")
    assert [(file.size, file.sha256) for file in written.variants[0].files if file.path.endswith(".gguf")] == [
        (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in forced.out.glob("gguf/*.gguf")
    ], "what the forced run made lies there as it was"


@pytest.mark.slow
def test_a_model_of_the_hub_is_fetched_made_and_published_once(
    tiny_model: Callable[..., Path], tmp_path: Path, hub: Hub
) -> None:
    token = hub.user("ada")
    hub.model("ada/tiny", tiny_model("llama"))
    asked = {"variants": "Q8_0,gptq-4bit-64g,gptq-8bit-64g,bnb-nf4", "publish.mode": "pr", "publish.namespace": "ada"}
    settings = load_settings(None, {**flags(tmp_path), **asked})
    job = Run(model="ada/tiny", settings=settings, hub=hub.seen(token))
    finished = pipeline.run(job, unconfined)
    assert finished.record.source.repo == "ada/tiny"
    assert {receipt.repo_id: receipt.status for receipt in finished.receipts} == {
        "ada/tiny-GGUF": "pull-request",
        "ada/tiny-GPTQ": "pull-request",
        "ada/tiny-bnb-4bit": "pull-request",
    }
    opened = {receipt.pull_request_url for receipt in finished.receipts}
    again = pipeline.run(job, unconfined)
    assert {receipt.pull_request_url for receipt in again.receipts} == opened
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), f"the token stands in {path}"


def break_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def forget_licence(folder: Path) -> None:
    (folder / "README.md").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "changes", "code", "words"),
    [
        (break_weights, {}, 3, "model.layers.1.mlp.up_proj.weight"),
        (cut_short, {}, 3, "model.safetensors"),
        (forget_licence, {}, LicenceForbids.exit_code, "licence"),
        (None, {"variants": "gptq-4bit-128g,Q4_K_X"}, 2, "Q4_K_M"),
        (None, {"budget.disk": "1MB"}, 5, "disk"),
        (None, {"calibration.samples": 4000}, 6, "calibration text"),
        (None, {"evaluation.dataset": "SAME"}, 6, "--force"),
        (None, {"publish.mode": "pr", "publish.namespace": "ada", "gate.enabled": False}, 2, "--no-gate"),
        (None, {"publish.mode": "main"}, 2, "--namespace"),
    ],
    ids=["nan", "truncated", "licence", "variant", "disk", "short-text", "overlap", "no-gate-publish", "nobody"],
)
def test_bad_input_ends_with_its_code_and_leaves_nothing(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    spoil: Callable[[Path], None] | None,
    changes: dict[str, object],
    code: int,
    words: str,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    if spoil:
        spoil(model)
    values = {**flags(tmp_path), "variants": "Q8_0,gptq-4bit-64g", **changes}
    if values["evaluation.dataset"] == "SAME":
        values["evaluation.dataset"] = values["calibration.dataset"]
    with pytest.raises(HubbotError, match=words) as caught:
        pipeline.run(Run(model=str(model), settings=load_settings(None, values)), unconfined)
    assert caught.value.exit_code == code
    left = [path for path in (tmp_path / "out").glob("*") if path.name != ".work"]
    assert left == [], "nothing that could be taken for a result"


def test_errors_are_one_paragraph_with_their_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, words in (
        (["run", "model", "--variants", "Q4_K_Z"], 2, "Nearest: Q4_K_S"),
        (["run", str(tmp_path / "nowhere")], 3, "nowhere"),
        (["run", "model", "--config", str(tmp_path / "none.toml")], 2, "does not exist"),
        (["run", "model", "--check-vllm", str(tmp_path)], 2, "there is no "),
        (["card", str(tmp_path)], 10, "hubbot.json"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        text = capsys.readouterr().err
        assert stop.value.code == code, text
        assert words in text
        assert "Traceback" not in text


def test_unknown_keys_of_the_configuration_are_refused_by_their_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hubbot.toml").write_text("[calibration]\nsample = 3\n")
    with pytest.raises(SystemExit) as stop:
        main(["plan", "model", "--config", str(tmp_path / "hubbot.toml")])
    assert stop.value.code == 2
    assert "calibration.sample is no setting" in capsys.readouterr().err


@pytest.mark.slow
def test_a_pickled_model_goes_through_the_whole_job_for_who_opts_in(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "tiny")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (variant,) = make(folder, tmp_path, variants="bnb-int8", allow_pickle=True).variants
    assert (variant.status, variant.reason) == (Status.PASSED, None)
    assert len(variant.samples) > 0
