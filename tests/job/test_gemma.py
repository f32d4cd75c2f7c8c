"""A whole run on a real Gemma 3: windows that slide in five of six blocks, a SentencePiece vocabulary of 262,144 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubbot.domain import Status
from tests.jobs import make
from tests.real import prose

pytestmark = [pytest.mark.slow, pytest.mark.heavy]


def test_every_family_passes_on_gemma_3(gemma_model: Path, tmp_path: Path) -> None:
    calibration, evaluation = prose(tmp_path)
    record = make(
        gemma_model,
        tmp_path,
        variants="Q8_0,Q4_K_M,gptq-4bit-128g,bnb-nf4",
        calibration__dataset=str(calibration),
        calibration__samples=8,
        calibration__length=256,
        evaluation__dataset=str(evaluation),
        evaluation__context=256,
        evaluation__windows=4,
    )
    assert {variant.name: variant.reason for variant in record.variants if variant.status is not Status.PASSED} == {}
    assert record.base
    assert record.base.perplexity < 60, "it reads English"
    for variant in record.variants:
        assert variant.load_check
        assert variant.load_check.differences == ()
