"""A chat model is measured on conversations too, in the same sweep; nothing else of a job depends on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubbot.action.parts import Part, joined
from hubbot.child.windows import cut_conversations
from hubbot.domain import Record, Text
from hubbot.errors import BadRecord, BadText
from hubbot.job import pipeline
from hubbot.job.pipeline import Run
from hubbot.job.resume import finished
from hubbot.job.texts import fetch_texts
from hubbot.model import read_facts
from hubbot.model.own_tokenizer import load_tokenizer
from hubbot.record.file import read_record
from hubbot.settings import Settings, load_settings
from tests.jobs import command, flags, options, unconfined
from tests.models import texts


def write_chats(folder: Path) -> Path:
    path = folder / "chats.jsonl"
    roles = ("user", "assistant")
    chats = [
        [{"role": role, "content": text} for role, text in zip(roles, texts(80)[n : n + 2], strict=True)]
        for n in range(20)
    ]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


@pytest.mark.slow
def test_record_card_and_evaluate_tell_both_texts_and_only_chat_models_have_two(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, chats = tiny_model("llama"), write_chats(tmp_path)
    asked = {"variants": "Q8_0,Q4_0", "evaluation.samples": False, "conversations.dataset": str(chats)}
    settings = load_settings(None, {**flags(tmp_path), **asked})
    heard = pipeline.run(Run(model=str(model), settings=settings), unconfined).record
    assert heard.conversations is not None
    assert (heard.conversations.text.dataset, heard.conversations.text.windows) == ("chats.jsonl", 6)
    assert set(heard.conversations.scores) == {"Q8_0", "Q4_0"}
    kld = {name: score.kld.mean for name, score in heard.conversations.scores.items()}
    assert 0 < kld["Q8_0"] < kld["Q4_0"]
    assert read_record(tmp_path / "out").conversations == heard.conversations
    card = next((tmp_path / "out" / "cards").glob("*GGUF/README.md")).read_text()
    assert "KL in chat" in card
    assert "Conversations: chats.jsonl" in card
    assert "KL in chat" in (tmp_path / "out" / "report.html").read_text()
    assert_parts_bring_theirs_together(heard)
    files = [str(path) for path in (tmp_path / "out" / "gguf").glob("*.gguf") if "imatrix" not in path.name]
    words = options(tmp_path, calibration=None, samples=None, length=None, base=str(model), out=str(tmp_path / "other"))
    assert command("evaluate", *files, *words, "--conversations", str(chats), call=unconfined) == 0
    shown = capsys.readouterr().out
    assert "evaluation.jsonl: " in shown
    assert "chats.jsonl: " in shown
    assert_a_model_without_a_template_has_one_text(settings, model, chats)
    assert_only_new_conversations_make_it_anew(settings, model, chats, heard)


def assert_only_new_conversations_make_it_anew(settings: Settings, model: Path, chats: Path, first: Record) -> None:
    job = Run(model=str(model), settings=settings)
    assert pipeline.run(job, unconfined).record.created == first.created
    chats.write_text("".join(chats.read_text().splitlines(keepends=True)[1:]))
    texts_now = fetch_texts(first.source, settings, job.hub, into=job.work / "texts")
    assert finished(job.out, first.source, settings, lambda: texts_now.digests) is None


def assert_parts_bring_theirs_together(record: Record) -> None:
    heard = record.conversations
    assert heard is not None

    def part(name: str, **changes: Any) -> Part:
        own = replace(heard, scores={name: heard.scores[name]}, **changes)
        variants = tuple(one for one in record.variants if one.name == name)
        return Part(
            name=name, folder=Path(name), record=replace(record, variants=variants, conversations=own), places={}
        )

    whole = joined([part("Q8_0"), part("Q4_0")], ["Q8_0", "Q4_0"])
    assert whole.conversations == heard
    with pytest.raises(BadRecord, match="another set of conversations"):
        joined([part("Q8_0"), part("Q4_0", text=replace(heard.text, sha256="0" * 64))], ["Q8_0", "Q4_0"])


def assert_a_model_without_a_template_has_one_text(settings: Settings, model: Path, chats: Path) -> None:
    text = Text(path=chats, name="chats", revision=None, sha256="")
    facts, tokenizer = read_facts(model), load_tokenizer(model)
    assert cut_conversations(text, tokenizer, facts, settings) is not None
    assert cut_conversations(text, tokenizer, replace(facts, chat_templates={}), settings) is None


def test_a_template_that_refuses_most_conversations_costs_them_and_not_the_run(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Only a template that writes all of them can be told of a text that is too short."""
    path = tmp_path / "chats.jsonl"
    first, *others = [{"messages": [{"role": "user", "content": f"Hello {n}"}]} for n in range(20)]
    path.write_text("".join(json.dumps(one) + "\n" for one in (first, *others)))
    text = Text(path=path, name="chats.jsonl", revision=None, sha256="0" * 64)
    settings = load_settings(None, {"evaluation.context": 1024, "conversations.dataset": str(path)})
    facts = replace(read_facts(tiny_model("llama")), context_length=1024)
    tokenizer = load_tokenizer(facts.folder)
    plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    picky = "{% if '0' not in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}" + plain
    found = cut_conversations(text, tokenizer, replace(facts, chat_templates={"default": picky}), settings)
    assert found is None
    with pytest.raises(BadText, match=r"come to \d+ tokens; 1024 are needed"):
        cut_conversations(text, tokenizer, replace(facts, chat_templates={"default": plain}), settings)
