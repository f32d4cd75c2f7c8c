"""The test image has the size that the model takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubbot.formats.images import image_for

GEMMA_4 = {"max_soft_tokens": 280, "patch_size": 16, "pooling_kernel_size": 3}


@pytest.mark.parametrize(
    ("vision", "name", "processor", "side"),
    [
        ({"image_size": [336, 336]}, "preprocessor_config.json", GEMMA_4, 336),
        ({"patch_size": 14}, "preprocessor_config.json", {"patch_size": 14}, 448),
        ({}, "preprocessor_config.json", GEMMA_4, 16 * 48),
        ({}, "processor_config.json", {"image_processor": GEMMA_4}, 16 * 48),
        (
            {},
            "processor_config.json",
            {"image_processor": GEMMA_4 | {"max_soft_tokens": 1120}},
            448,
        ),  # beyond the largest
    ],
)
def test_the_image_is_as_large_as_config_or_processor_say(
    tmp_path: Path, vision: dict[str, Any], name: str, processor: dict[str, Any], side: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision}))
    (tmp_path / name).write_text(json.dumps(processor))
    assert image_for(tmp_path).shape == (side, side, 3)
