"""What a check says where the runtime that it needs is not installed."""

import json
from pathlib import Path

import pytest

from hubbot.formats import check


@pytest.mark.parametrize(
    ("quantization", "advice"),
    [
        ({"quant_method": "gptq", "bits": 4}, "pip install --no-deps gptqmodel=="),
        ({"quant_method": "gptq", "bits": 4, "lm_head": True}, "pip install --no-deps gptqmodel=="),
        ({"load_in_4bit": True}, "pip install --force-reinstall hubbot"),
    ],
)
def test_a_reader_that_is_not_installed_is_told_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: dict[str, object], advice: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    monkeypatch.setattr(check, "find_spec", lambda _name: None)
    found = check.load_check([tmp_path / "config.json"], None)
    assert not found.loaded
    assert advice in (found.error or "")
