"""What lies in an output folder is published by the rules of a run, whichever way it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubbot.action.inputs import read_inputs
from hubbot.action.work import work
from hubbot.cli import main
from hubbot.domain import File, Record, VariantRecord
from hubbot.errors import HubbotError
from hubbot.job.upload import release
from hubbot.record.file import write_record
from hubbot.release.licence_texts import keep_licences
from hubbot.settings import load_settings
from tests import records
from tests.hub import Hub

UNJUDGED: dict[str, object] = {"gate": {"enabled": False}}


def unlicensed(record: Record) -> Record:
    return replace(record, source=replace(record.source, license=None))


def by_command(out: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["publish", str(out), *flags])
    return int(str(stop.value.code))


@pytest.mark.parametrize(
    ("change", "flags", "code", "words"),
    [
        (lambda record: replace(record, config=UNJUDGED), ["--namespace", "ada"], 2, "nobody judged its variants"),
        (lambda record: record, [], 2, "--namespace"),
        (unlicensed, ["--namespace", "ada"], 3, "--allow-unlicensed"),
        (unlicensed, ["--namespace", "ada", "--allow-unlicensed"], 8, "HF_TOKEN"),
    ],
    ids=["no-gate", "nobody", "no-licence", "no-licence-taken-on"],
)
def test_a_record_that_may_not_be_published_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Record], Record],
    flags: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    made = change(records.record())
    records.lay_files(made, tmp_path)
    write_record(made, tmp_path)
    assert by_command(tmp_path, *flags) == code
    assert words in capsys.readouterr().err


def test_settings_without_a_gate_publish_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    write_record(records.record(), tmp_path)
    (tmp_path / "hubbot.toml").write_text("[gate]\nenabled = false\n")
    assert by_command(tmp_path, "--namespace", "ada", "--config", str(tmp_path / "hubbot.toml")) == 2


def test_the_action_publishes_no_record_that_nobody_judged(tmp_path: Path) -> None:
    write_record(replace(records.record(), config=UNJUDGED), tmp_path / "out")
    given: dict[str, Any] = {"COMMAND": "publish", "MODEL": "org/name", "PUBLISH": "pr", "NAMESPACE": "ada"}
    environ = {f"INPUT_{name}": text for name, text in (given | {"OUT": str(tmp_path / "out")}).items()}
    with pytest.raises(HubbotError, match="nobody judged"):
        work(read_inputs(environ, tmp_path))


def test_every_repo_holds_the_sources_licence_texts(tmp_path: Path, hub: Hub) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    texts = {"LICENSE": "the licence", "NOTICE.txt": "the notice", "USE_POLICY.md": "the policy", "README.md": "a card"}
    for name, text in texts.items():
        (model / name).write_text(text)
    (model / "LICENSE.secret").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("hf_x")
    listed = dict.fromkeys([*texts, "LICENSE.secret"], records.sha("any"))
    plain = records.record()
    made = replace(
        plain,
        variants=tuple(variant for variant in plain.variants if variant.name in ("Q8_0", "bnb-nf4")),
        source=replace(plain.source, folder=str(model), files=listed),
    )
    small = replace(made, variants=tuple(with_small_files(variant, out) for variant in made.variants))
    keep_licences(small.source, out)
    write_record(small, out)
    settings = load_settings(None, {"publish.mode": "main", "publish.namespace": "ada"})
    release(small, settings, hub.seen(hub.user("ada")), out=out)
    for repo in ("ada/Testling-1B-GGUF", "ada/Testling-1B-bnb-4bit"):
        held = {name: hub.read(repo, name).decode() for name in hub.files(repo) if name.split(".")[0].isupper()}
        assert {name: text for name, text in held.items() if name != "README.md"} == {
            name: text for name, text in texts.items() if name != "README.md"
        }


def test_cards_rendered_again_name_their_owner_and_who_made_the_files(tmp_path: Path) -> None:
    made = records.record()
    records.lay_files(made, tmp_path)
    write_record(made, tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["card", str(tmp_path), "--namespace", "ada"])
    assert stop.value.code == 0
    text = (tmp_path / "cards" / "Testling-1B-GGUF" / "README.md").read_text()
    assert "llama-server -hf ada/Testling-1B-GGUF:" in text
    assert "quantized_by: test-press" in text


def with_small_files(variant: VariantRecord, out: Path) -> VariantRecord:
    """The variant with one file of a few bytes, which lies in `out`."""
    path = out / variant.files[-2 if len(variant.files) > 1 else 0].path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(variant.name)
    file = File(path=path.relative_to(out).as_posix(), size=len(variant.name), sha256=records.sha(variant.name))
    return replace(variant, files=(file,))
