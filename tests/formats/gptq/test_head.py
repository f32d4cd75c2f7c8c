"""The output head as a GPTQ layer, which `gptq.lm_head` asks for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import make


@pytest.mark.slow
def test_a_quantized_head_is_calibrated_measured_and_read_by_the_runtime(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model("llama", tied=False)
    options: dict[str, Any] = {"gate__enabled": False, "evaluation__samples": False}
    plain = make(model, tmp_path, out=tmp_path / "plain", variants="gptq-4bit-64g", **options).variants[0]
    whole = make(
        model, tmp_path, out=tmp_path / "whole", variants="gptq-4bit-64g", gptq__lm_head=True, **options
    ).variants[0]
    config = json.loads((tmp_path / "whole" / "gptq" / "gptq-4bit-64g" / "quantize_config.json").read_text())
    assert config["lm_head"] is True
    assert whole.load_check is not None
    assert whole.load_check.passed, whole.load_check.error
    assert "lm_head.weight" in whole.layer_errors
    assert whole.bits_per_weight < plain.bits_per_weight
    assert whole.score is not None
    assert plain.score is not None
    assert whole.score.kld.mean > plain.score.kld.mean > 0
