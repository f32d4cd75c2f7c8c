"""What a check says where the runtime that it needs is not installed."""

import json
from pathlib import Path

import pytest

from hubbot.domain import Family
from hubbot.formats import FAMILIES, check


@pytest.mark.parametrize(
    ("family", "quantization", "advice"),
    [
        (Family.GPTQ, {"quant_method": "gptq", "bits": 4}, "pip install --no-deps gptqmodel=="),
        (Family.GPTQ, {"quant_method": "gptq", "bits": 4, "lm_head": True}, "pip install --no-deps gptqmodel=="),
        (Family.BNB, {"load_in_4bit": True}, "pip install --force-reinstall hubbot"),
    ],
)
def test_a_reader_that_is_not_installed_is_told_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family, quantization: dict[str, object], advice: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    monkeypatch.setattr(check, "find_spec", lambda _name: None)
    found = FAMILIES[family].read([tmp_path / "config.json"], None).check
    assert not found.loaded
    assert advice in (found.error or "")
