"""The README's examples run as they stand on the real model that they name; only texts, sizes and the place are given here."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubbot.domain import Status
from hubbot.record.file import read_record
from tests.jobs import command
from tests.real import prose

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

MADE = {
    "small": ["Q4_K_M", "gptq-4bit-64g", "bnb-nf4"],
    "default": ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "gptq-4bit-64g", "bnb-nf4"],
}


@pytest.mark.parametrize("preset", MADE)
def test_every_variant_of_a_preset_passes_on_the_real_model(preset: str, real_model: Path, tmp_path: Path) -> None:
    calibration, evaluation = prose(tmp_path)
    config = tmp_path / "hubbot.toml"
    config.write_text("[evaluation]\nwindows = 12\n")
    sizes = {"samples": 16, "length": 512, "context": 512, "config": config, "out": tmp_path / "out"}
    options = {**sizes, "calibration": calibration, "evaluation": evaluation}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert command("run", str(real_model), "--variants", preset, *words) == 0
    record = read_record(tmp_path / "out")
    assert [variant.name for variant in record.variants] == MADE[preset]
    for variant in record.variants:
        assert variant.status is Status.PASSED, variant.reason
        assert variant.load_check
        assert variant.load_check.differences == ()
        assert 2 in (variant.load_check.ends or ()), "the chat's own end token"
