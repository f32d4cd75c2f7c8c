"""Idempotence: the same job has the same fingerprint, another job another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hubbot.domain import Family, Record
from hubbot.record.file import from_json, to_json
from hubbot.record.fingerprint import fingerprint, fingerprint_of, shaping
from hubbot.settings import PublishSettings, Settings, load_settings
from tests.records import record, sha


def with_file(path: str, digest: str) -> Record:
    made = record()
    return replace(made, source=replace(made.source, files={**made.source.files, path: sha(digest)}))


@pytest.mark.parametrize(
    "path", ["README.md", "LICENSE", "docs/picture.png", ".gitattributes", "eval_results.json", "NOTES.txt"]
)
def test_a_change_beside_weights_and_tokenizer_is_no_new_model(path: str) -> None:
    assert fingerprint_of(with_file(path, "other")) == fingerprint_of(record())


@pytest.mark.parametrize(
    "path",
    "model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json config.json tokenizer.json "
    "tokenizer.model tokenizer_config.json chat_template.jinja generation_config.json merges.txt vocab.json "
    "qwen.tiktoken pytorch_model.bin".split(),
)
def test_a_change_of_weights_tokenizer_or_configuration_is_a_new_model(path: str) -> None:
    assert fingerprint_of(with_file(path, "other")) != fingerprint_of(record())


def test_revision_place_and_order_make_no_difference() -> None:
    made = record()
    moved = replace(
        made,
        source=replace(made.source, revision="9" * 40, folder="/elsewhere", repo="other/name"),
        variants=made.variants[::-1],
        created="later",
        command="another",
    )
    assert fingerprint_of(moved) == fingerprint_of(made)


def test_version_variants_and_settings_make_a_difference() -> None:
    made = record()
    seen = {
        fingerprint_of(made),
        fingerprint_of(replace(made, hubbot={"version": "0.2.0"})),
        fingerprint_of(replace(made, variants=made.variants[1:])),
        fingerprint_of(replace(made, config={**made.config, "calibration": {"samples": 64}})),
        fingerprint_of(made, Family.GGUF),
        fingerprint_of(made, Family.GPTQ),
    }
    assert len(seen) == 6


def test_a_job_before_it_runs_has_the_fingerprint_of_its_record() -> None:
    settings = load_settings(None, {"gate.max_kld": {"4": 0.2}, "out": Path("/tmp/x"), "publish.quantized_by": "me"})
    made = replace(record(), config=shaping(settings))
    before = fingerprint(
        source=made.source, config=shaping(settings), variants=[v.name for v in made.variants], version="0.1.0"
    )
    assert fingerprint_of(from_json(to_json(made))) == before


def test_settings_that_shape_nothing_are_left_out() -> None:
    plain = Settings()
    moved = Settings(out=Path("/elsewhere"), device="cuda:1", publish=PublishSettings(mode="pr", namespace="me"))
    assert shaping(plain) == shaping(moved)
    assert shaping(plain) != shaping(load_settings(None, {"gptq.damping": 0.5}))
    assert shaping(plain) != shaping(load_settings(None, {"gate.max_ratio": {"4": 1.01}}))
