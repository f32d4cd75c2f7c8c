"""Blocks taken apart say what ggml decodes, and put together they are the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.blocks import LAYOUTS

ROWS, COLUMNS = 6, 768


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: str(kind))
def test_parts_are_what_ggml_decodes_and_make_the_same_bytes(kind: int) -> None:
    layout, generator = LAYOUTS[kind], np.random.default_rng(kind)
    rows = generator.standard_t(4, (ROWS, COLUMNS)).astype(np.float32) * generator.uniform(0.1, 3, (ROWS, 1)).astype(
        "f4"
    )
    data, decoded = np.zeros(ROWS * codec.row_bytes(kind, COLUMNS), np.uint8), np.empty_like(rows)
    codec.prepare(kind)
    codec.encode_rows(kind, rows, data, generator.random(COLUMNS).astype(np.float32))
    codec.decode_rows(kind, data, decoded)
    found = layout.unpack(data, ROWS)
    scale = np.repeat(np.repeat(found.d, layout.block // layout.group, 1) * found.scale, layout.group, 1)
    minimum = np.repeat(np.repeat(found.dmin, layout.block // layout.group, 1) * found.minimum, layout.group, 1)
    np.testing.assert_allclose(scale * found.steps - minimum, decoded, rtol=1e-6, atol=1e-6)
    assert layout.steps[0] <= found.steps.min() < found.steps.max() <= layout.steps[1]
    assert layout.scales[0] <= found.scale.min() <= found.scale.max() <= layout.scales[1]
    np.testing.assert_array_equal(layout.pack(found), data)


@pytest.mark.parametrize("kind", LAYOUTS, ids=lambda kind: str(kind))
def test_any_whole_numbers_within_the_bounds_come_back(kind: int) -> None:
    layout, generator = LAYOUTS[kind], np.random.default_rng(kind)
    data = generator.integers(0, 256, 9 * layout.bytes).astype(np.uint8)
    found = layout.unpack(data, 3)
    again = layout.unpack(layout.pack(found), 3)
    for name in ("scale", "minimum", "steps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
