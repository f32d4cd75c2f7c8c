"""A pipeline of a few milliseconds between a real fetch and a real publishing.

Sweep and load check are left out: a variant's file is a hash of the source's weights. Everything that
touches the Hub, the record, the card and the disk is hubbot's own.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hubbot import __version__
from hubbot.bot.local import folder_of, publish_of
from hubbot.cards.card import write_cards
from hubbot.domain import SCHEMA_VERSION, Family, File, Job, Peak, Record, Status, VariantRecord
from hubbot.hub.client import Hub
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.read.source import fetch
from hubbot.job.upload import release
from hubbot.record.file import write_record
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings

VARIANTS = {"Q8_0": Family.GGUF, "gptq-4bit-128g": Family.GPTQ}


def settings_for(folder: Path, **watch: object) -> Settings:
    return Settings.model_validate(
        {
            "variants": ",".join(VARIANTS),
            "out": folder / "out",
            "publish": {"mode": "main", "namespace": "ours"},
            "watch": {"state": folder / "state.sqlite", **watch},
        }
    )


def files_of_a_model(
    seed: int = 0, *, licence: str = "mit", architecture: str = "LlamaForCausalLM"
) -> dict[str, bytes]:
    """A model repo that every rule lets pass; its weights are 16 float32 numbers."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}).encode()
    numbers = hashlib.sha512(str(seed).encode()).digest()
    config = {"architectures": [architecture], "model_type": "llama"}
    return {
        "README.md": f"---\nlicense: {licence}\nlibrary_name: transformers\n---\n# A model\n".encode(),
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "model.safetensors": struct.pack("<Q", len(header)) + header + numbers,
    }


def cheap_run(
    job: Job,
    commits: RateLimit,
    *,
    settings: Settings,
    hub: Hub,
    refuse: tuple[str, ...] = (),
    fail: tuple[str, ...] = (),
) -> Record:
    """Fetch, pretend to make, publish. refuse: variants that the gate shall have refused; fail: that cannot be made."""
    settings = settings.model_copy(update={"publish": publish_of(job, settings)})
    out = folder_of(settings, job.model)
    source = fetch(job.model, hub, revision=job.revision, into=out / ".work" / "source")
    variants = tuple(
        _unmade(name, family) if name in fail else _make(name, family, source.files, out, refused=name in refuse)
        for name, family in VARIANTS.items()
        if job.variants is None or name in job.variants.split(",")
    )
    record = Record(
        schema=SCHEMA_VERSION,
        hubbot={"version": __version__, "commit": None},
        tools={},
        hardware={},
        command="hubbot run",
        config=shaping(settings),
        source=source,
        calibration=None,
        evaluation=None,
        base=None,
        variants=variants,
        timings={},
        peak=Peak(),
    )
    write_record(record, out)
    write_cards(record, settings.publish, out)
    receipts = release(record, settings, replace(hub, commits=commits), out=out)
    assert receipts
    return replace(
        record,
        variants=tuple(replace(v, status=Status.PUBLISHED) if v.status is Status.PASSED else v for v in variants),
    )


def _unmade(name: str, family: Family) -> VariantRecord:
    return VariantRecord(name=name, family=family, status=Status.FAILED, reason="576 columns, not a multiple of 128")


def _make(name: str, family: Family, files: Mapping[str, str], out: Path, *, refused: bool) -> VariantRecord:
    content = hashlib.sha256((name + files["model.safetensors"]).encode()).digest() * 400
    path = (
        Path("gguf") / f"model-{name}.gguf" if family is Family.GGUF else Path(str(family)) / name / "model.safetensors"
    )
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    part = (out / path).with_name((out / path).name + ".part")
    part.write_bytes(content)
    part.replace(out / path)
    file = File(path=str(path), size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return VariantRecord(
        name=name,
        family=family,
        status=Status.REFUSED if refused else Status.PASSED,
        reason="the test says so" if refused else None,
        files=(file,),
        bits_per_weight=8.0 if family is Family.GGUF else 4.0,
    )
