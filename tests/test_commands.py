"""The commands beside `run`, on what a real run of a tiny model left; and runs of less usual kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.domain import File, Record, Status
from hubbot.formats.foreign import artefact_names
from hubbot.record.file import read_record
from tests.formats.gguf.chain import keys_and_tensors
from tests.hub import Hub
from tests.jobs import command, options, unconfined

pytestmark = pytest.mark.slow

VARIANTS = "Q8_0,Q4_K_M,gptq-4bit-64g,bnb-nf4"
WITHOUT_GPTQ = "Q8_0,Q4_K_M,bnb-nf4"  # which takes most of the time
SETTINGS = """
[evaluation]
windows = 6
samples = false
[gguf]
shard_size = "400KB"
[gate]
max_ratio = {"4" = 100, "8" = 100}
max_kld = {"4" = 50, "8" = 50}
"""


@dataclass(frozen=True)
class Made:
    """A finished run: the model, what was asked, what lies there."""

    model: Path
    options: list[str]
    out: Path
    record: Record

    def files(self, name: str) -> tuple[File, ...]:
        return next(variant.files for variant in self.record.variants if variant.name == name)


def settings(folder: Path, more: str = "") -> list[str]:
    """SETTINGS and options of the command line that give small texts."""
    (folder / "hubbot.toml").write_text(SETTINGS + more)
    return options(folder)


def run(model: Path, out: Path, asked: list[str], *more: str, ends: int = 0) -> Record:
    words = ["run", str(model), "--out", str(out), "--variants", VARIANTS, *asked, *more]
    assert command(*words, call=unconfined) == ends
    return read_record(out / "hubbot.json")


@pytest.fixture(scope="module")
def made(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    asked, model = settings(folder), tiny_model("llama")
    return Made(model=model, options=asked, out=folder / "out", record=run(model, folder / "out", asked))


def test_our_own_artefacts_are_measured_as_the_run_measured_them(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [made.out / file.path for file in made.files("Q8_0") if file.path.endswith(".gguf")]
    assert len(shards) > 2
    folders = [made.out / "gptq" / "gptq-4bit-64g", made.out / "bnb" / "bnb-nf4"]
    wanted = [*made.options[made.options.index("--evaluation") :], "--base", str(made.model), "--out", str(tmp_path)]
    capsys.readouterr()
    assert command("evaluate", str(shards[1]), str(shards[0]), *map(str, folders), *wanted, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    scores = {variant.name: variant.score for variant in made.record.variants}
    names = {"tiny-llama-Q8_0": "Q8_0", "gptq-4bit-64g": "gptq-4bit-64g", "bnb-nf4": "bnb-nf4"}
    assert set(found["scores"]) == set(names)
    assert made.record.base is not None
    assert found["base"]["perplexity"] == pytest.approx(made.record.base.perplexity, rel=1e-6)
    for name, variant in names.items():
        score = scores[variant]
        assert score is not None
        assert found["scores"][name]["kld"]["mean"] == pytest.approx(score.kld.mean, rel=1e-3)
        assert found["scores"][name]["perplexity"] == pytest.approx(score.perplexity, rel=1e-5)


def test_artefacts_of_one_name_are_told_apart_by_their_folders_and_from_the_sweeps_own_streams() -> None:
    paths = "/a/m-00001-of-00002.gguf /b/m.gguf /c/base /c/calibration /c/x/n.gguf /d/x/n.gguf /e/plain /f /f.gguf"
    assert list(artefact_names([Path(path) for path in paths.split()]).values()) == [
        "a/m", "b/m", "c/base", "c/calibration", "c/x/n", "d/x/n", "plain", "/f", "/f.gguf",
    ]  # fmt: skip


def test_two_artefacts_of_one_name_are_both_measured(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, variant in (("one", "gptq/gptq-4bit-64g"), ("two", "bnb/bnb-nf4")):
        shutil.copytree(made.out / variant, tmp_path / place / "base")
    wanted = [*made.options[made.options.index("--evaluation") :], "--base", str(made.model), "--out", str(tmp_path)]
    capsys.readouterr()
    both = [str(tmp_path / "one" / "base"), str(tmp_path / "two" / "base")]
    assert command("evaluate", *both, *wanted, call=unconfined) == 0
    shown = capsys.readouterr().out
    assert command("evaluate", both[0], *wanted, "--json", call=unconfined) == 0
    assert "one/base" in shown
    assert "two/base" in shown
    score = next(variant.score for variant in made.record.variants if variant.name == "gptq-4bit-64g")
    assert score is not None
    found = json.loads(capsys.readouterr().out)["scores"]["one/base"]
    assert found["kld"]["mean"] == pytest.approx(score.kld.mean, rel=1e-3)


def test_files_of_others_stand_in_a_table_a_picture_and_the_card(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.out, tmp_path / "out")
    theirs = shutil.copytree(made.out / "bnb" / "bnb-nf4", tmp_path / "their-4bit")
    shards = [made.out / file.path for file in made.files("Q8_0") if file.path.endswith(".gguf")]
    wanted = [
        *made.options[made.options.index("--evaluation") :],
        "--base",
        str(made.model),
        "--out",
        str(tmp_path / "w"),
    ]
    capsys.readouterr()
    asked = ["evaluate", str(theirs), str(shards[0]), *wanted, "--json", "--picture", str(tmp_path / "all.svg")]
    assert command(*asked, call=unconfined) == 0
    answer = tmp_path / "theirs.json"
    answer.write_text(capsys.readouterr().out)
    found = json.loads(answer.read_text())
    assert found["sizes"]["tiny-llama-Q8_0"] == sum(shard.stat().st_size for shard in shards)
    assert found["families"] == {"their-4bit": "bnb", "tiny-llama-Q8_0": "gguf"}
    assert "their-4bit" in (tmp_path / "all.svg").read_text()
    assert command("card", str(tmp_path / "out"), "--beside", str(answer)) == 0
    for _ in range(2):
        cards = {path.parent.name: path for path in (tmp_path / "out" / "cards").glob("*/README.md")}
        assert all("## Beside files of others" in card.read_text() for card in cards.values())
        assert all("their-4bit" in (card.parent / "hubbot-quality.svg").read_text() for card in cards.values())
        assert command("card", str(tmp_path / "out")) == 0  # without a word of it the section stays
    answer.write_text(answer.read_text().replace(found["evaluation"]["sha256"], "0" * 64))
    assert command("card", str(tmp_path / "out"), "--beside", str(answer)) != 0
    assert "measured on other tokens" in " ".join(capsys.readouterr().err.split())


def test_what_lies_in_a_folder_is_published_once(
    made: Made, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.user("ada"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    shutil.copytree(made.out, tmp_path / "out")
    asked = ["publish", str(tmp_path / "out"), "--publish", "main", "--namespace", "ada", "--config"]
    asked.append(made.options[made.options.index("--config") + 1])
    assert command(*asked) == 0
    for file in (*made.files("Q8_0"), *made.files("Q4_K_M")):
        assert hub.read("ada/tiny-llama-GGUF", Path(file.path).name) == (made.out / file.path).read_bytes()
    for repo, variant in (("ada/tiny-llama-GPTQ", "gptq-4bit-64g"), ("ada/tiny-llama-bnb-4bit", "bnb-nf4")):
        assert {Path(file.path).name for file in made.files(variant)} <= set(hub.files(repo))
    written = read_record(tmp_path / "out" / "hubbot.json")
    assert {variant.status for variant in written.variants} == {Status.PUBLISHED}
    capsys.readouterr()
    assert command(*asked) == 0
    assert capsys.readouterr().err.count("unchanged: ") == 3


def test_cards_and_report_are_rendered_again_as_the_run_left_them(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "cards")
    (tmp_path / "out" / "report.html").unlink()
    assert command("card", str(tmp_path / "out")) == 0
    for path in [*made.out.glob("cards/*/*"), made.out / "report.html"]:
        assert (tmp_path / "out" / path.relative_to(made.out)).read_text() == path.read_text()


def test_the_schema_knows_every_key_that_a_run_writes(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    written = json.loads((made.out / "hubbot.json").read_text())
    assert set(written) <= set(schema["properties"])
    assert set(schema["required"]) <= set(written)
    for name, part in (("Variant", written["variants"][0]), ("TextRecord", written["calibration"])):
        assert set(part) <= set(schema["$defs"][name]["properties"])


def test_the_plan_gives_the_sizes_that_the_run_came_to(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    asked = ["plan", str(made.model), "--out", str(tmp_path), "--variants", VARIANTS, "--json", *made.options]
    assert command(*asked, call=unconfined) == 0
    planned = {variant["name"]: variant for variant in json.loads(capsys.readouterr().out)["variants"]}
    assert list(planned) == VARIANTS.split(",")
    for variant in made.record.variants:
        size = sum(file.size for file in variant.files if not file.path.endswith(".imatrix"))
        slack = 1000 if variant.family == "bnb" else 0  # numbers in its headers have as many digits as they have
        assert abs(planned[variant.name]["file_bytes"] - size) <= slack
        assert planned[variant.name]["bits_per_weight"] == pytest.approx(variant.bits_per_weight)


def test_a_refused_variant_is_recorded_and_never_uploaded(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.user("ada"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    asked = settings(tmp_path)
    toml = tmp_path / "hubbot.toml"
    toml.write_text(
        toml.read_text().replace('max_kld = {"4" = 50', 'max_kld = {"4" = 0.000001').replace("400KB", "1GB")
    )
    more = ["--publish", "main", "--namespace", "ada", "--variants", WITHOUT_GPTQ]
    found = run(tiny_model("llama"), tmp_path / "out", [*asked, *more], ends=7)
    assert {variant.name: variant.status for variant in found.variants} == {
        "Q8_0": Status.PUBLISHED,
        **dict.fromkeys(["Q4_K_M", "bnb-nf4"], Status.REFUSED),
    }
    assert "mean divergence" in str(found.variants[1].reason)
    held = set(hub.files("ada/tiny-llama-GGUF"))
    assert "tiny-llama-Q8_0.gguf" in held
    assert not any("Q4_K_M" in name for name in held)
    assert hub.find("model", "ada/tiny-llama-bnb-4bit") is None
    told = capsys.readouterr().err
    assert "Q4_K_M" in told
    assert "mean divergence" in told


def test_files_without_an_importance_matrix_are_static(made: Made, tmp_path: Path) -> None:
    found = run(made.model, tmp_path / "out", settings(tmp_path), "--no-imatrix", "--variants", WITHOUT_GPTQ)
    assert found.calibration is None
    assert not list((tmp_path / "out").rglob("*.imatrix"))
    first = next(file for file in found.variants[1].files)
    keys, _ = keys_and_tensors(tmp_path / "out" / first.path)
    assert not any("imatrix" in key for key in keys)
    assert found.variants[1].files != made.files("Q4_K_M")
    assert found.variants[2].files == made.files("bnb-nf4")


def test_a_run_cut_into_sweeps_ends_with_the_files_and_numbers_of_one(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    asked = ["plan", str(made.model), "--out", str(tmp_path), "--variants", WITHOUT_GPTQ, "--json", *made.options]
    assert command(*asked, call=unconfined) == 0
    need = json.loads(capsys.readouterr().out)["need"]["ram"]
    more = settings(tmp_path, f"[budget]\nram = {need - 1}\n")
    found = run(made.model, tmp_path / "out", [*more, "--variants", WITHOUT_GPTQ])
    assert capsys.readouterr().err.count("== sweep") > 1
    assert [(v.name, v.files, v.score) for v in found.variants] == [
        (v.name, v.files, v.score) for v in made.record.variants if v.family != "gptq"
    ]


def test_a_source_of_several_shards_gives_the_files_of_a_single_one(made: Made, tmp_path: Path) -> None:
    model = tmp_path / made.model.name
    shutil.copytree(made.model, model)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: weights[name] for name in held}, model / file, metadata={"format": "pt"})
    where = {name: file for file, held in halves.items() for name in held}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    found = run(model, tmp_path / "out", [*settings(tmp_path), "--variants", WITHOUT_GPTQ])
    assert [v.files for v in found.variants] == [v.files for v in made.record.variants if v.family != "gptq"]


def test_a_family_that_cannot_round_the_model_fails_alone(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / made.model.name
    shutil.copytree(made.model, model)
    weights = load_file(model / "model.safetensors")
    # the same function, but with inputs of the down projection whose squares are no numbers in 32 bits
    weights["model.layers.1.mlp.up_proj.weight"] *= torch.tensor(2.0**64)
    weights["model.layers.1.mlp.down_proj.weight"] *= torch.tensor(2.0**-64)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    asked = [*settings(tmp_path), "--variants", "gptq-4bit-64g,bnb-nf4"]
    found = run(model, tmp_path / "out", asked, ends=7)
    failed, passed = found.variants
    assert (passed.name, passed.status) == ("bnb-nf4", Status.PASSED)
    assert (failed.name, failed.status, failed.files) == ("gptq-4bit-64g", Status.FAILED, ())
    assert "passes through float16, whose largest number is 65,504" in str(failed.reason)
    assert "gptq-4bit-64g cannot be made: model.layers.1.mlp.up_proj.weight holds" in capsys.readouterr().err
    assert not (tmp_path / "out" / "gptq").exists()
