"""A folder read in a process of its own says what it says here, and its end is a verdict."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from hubbot.child import check as checks
from hubbot.child.folder import ReadQuestion, read_folder
from hubbot.child.messages import CheckQuestion
from hubbot.domain import Family, File
from hubbot.model.chat import Chat, Tokens
from hubbot.settings import load_settings
from tests.models import make_model
from tests.quantized import encode_all, logits, packed_format, statistics, tokens
from tests.records import record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Where all lies, the folder of a variant and what its runtime should compute."""
    out = tmp_path_factory.mktemp("folder")
    model = make_model("llama", out / "tiny", tied=False)
    opened = packed_format(model, ["w8a16-128g"], out)
    decoded = encode_all(opened, model, statistics(model))
    opened.finish()
    reference = out / "reference.safetensors"
    save_file({"tokens": tokens(2, 48), "logits": logits(model, decoded["w8a16-128g"]).contiguous()}, reference)
    return out, out / "compressed-tensors" / "w8a16-128g", reference


def _asked(folder: Path, reference: Path) -> ReadQuestion:
    found = Tokens(text=(5, 6, 7), sequence=(1, 5, 6, 7), prompt=(), ends=(2,))
    return ReadQuestion(
        family=Family.PACKED,
        paths=tuple(path for path in folder.iterdir() if path.is_file()),
        reference=reference,
        prompts=((1, 5, 9), (1, 7)),
        new_tokens=4,
        chat=Chat(probe="a probe", prompt="", tokens=found, spaced=found),
    )


def test_another_process_reads_a_folder_as_this_one_does(made: tuple[Path, Path, Path]):
    _, folder, reference = made
    asked = _asked(folder, reference)
    here = asked.read("cpu")
    there = read_folder(asked, "cpu")
    assert here.check.passed
    assert there.check.kld == pytest.approx(here.check.kld, rel=0.1)
    assert replace(there.check, kld=None, max_logit_error=None) == replace(here.check, kld=None, max_logit_error=None)
    assert (there.continuations, there.tokens) == (here.continuations, here.tokens)


def test_a_process_that_ends_has_not_loaded_the_folder(made: tuple[Path, Path, Path], tmp_path: Path):
    """Whatever ends it: here the runtime is not even reached, for there is no config.json to find the folder by."""
    _, folder, reference = made
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").unlink()
    check = read_folder(_asked(broken, reference), "cpu").check
    assert (check.loaded, check.passed) == (False, False)
    assert (check.error or "").startswith("its process ended with code 1: ")


def test_folder_and_its_lines_are_read_side_by_side_as_on_cards(
    made: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
):
    out, folder, reference = made
    monkeypatch.setattr(checks, "_places", lambda *_: ["cpu"] * 3)
    files = tuple(
        File(path=str(path.relative_to(out)), size=path.stat().st_size, sha256="0" * 64)
        for path in folder.iterdir()
        if path.is_file()
    )
    one = replace(record().variants[0], name="w8a16-128g", family=Family.PACKED, files=files, bits_per_weight=8.0)
    source = replace(record().source, folder=str(out / "tiny"), architecture="LlamaForCausalLM")
    question = CheckQuestion(
        source=source,
        settings=load_settings(None, {"device": "cuda"}),
        work=out,
        out=out,
        variants=(one,),
        references={one.name: reference},
    )
    monkeypatch.setattr(checks, "settle_device", lambda _: "cpu")
    original = checks._Original(source, question.settings, out)
    advanced: list[int] = []
    found = checks._read_all(question, original, "cuda:0", advanced.append)["w8a16-128g"]
    assert found.load_check is not None
    assert found.load_check.passed
    assert [trial.verdict for trial in found.trials] == ["agrees"]
    assert original.said
    assert len(found.samples) == len(original.said)
    assert advanced == [1]
