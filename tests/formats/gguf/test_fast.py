"""The vectorised encoders give ggml's bytes, whatever the weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbot import llamacpp
from hubbot.errors import ToolMissing
from hubbot.formats.gguf import codec, fast

KINDS = list(fast._ENCODERS)


@pytest.fixture(scope="module", autouse=True)
def built():
    fast.build()
    fast.encoder.cache_clear()


def _both(kind, rows, importance):
    library = llamacpp.ggml()
    vector = None if importance is None else importance.ctypes.data
    ours, theirs = (np.zeros(len(rows) * codec.row_bytes(kind, rows.shape[1]), np.uint8) for _ in range(2))
    fast.encoder(kind)(rows.ctypes.data, ours.ctypes.data, *rows.shape, vector)
    library.ggml_quantize_chunk(kind, rows.ctypes.data, theirs.ctypes.data, 0, *rows.shape, vector)
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_built_and_agrees_with_ggml_on_its_sample(kind):
    assert fast.encoder(kind) is not None


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(["normal", "heavy", "steps", "ones_sided", "holes"]))
def test_bytes_equal_ggmls_for_weights_of_any_distribution(kind, weighed, seed, shape):
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((3, 768))
    match shape:
        case "heavy":
            rows = generator.standard_t(1.5, (3, 768))
        case "steps":
            rows = generator.integers(-4, 5, (3, 768)) / 8
        case "ones_sided":
            rows = np.abs(rows)
        case "holes":
            rows = rows * (generator.random((3, 768)) < 0.1)
        case _:
            assert shape == "normal"
    rows = (rows * 10.0 ** generator.integers(-6, 3)).astype(np.float32)
    importance = generator.random(768).astype(np.float32) ** 3 if weighed else None
    ours, theirs = _both(kind, rows, importance)
    np.testing.assert_array_equal(ours, theirs)


def test_an_encoder_with_other_bytes_is_not_used():
    def wrong(rows, out, count, columns, importance):  # leaves the output as it was
        return 0

    assert not fast._agrees(12, wrong)


def test_a_tree_that_defines_no_such_search_is_refused(tmp_path, monkeypatch):
    (tmp_path / "ggml" / "src").mkdir(parents=True)
    (tmp_path / "ggml" / "src" / "ggml-quants.c").write_text("int nothing;\n")
    monkeypatch.setattr(llamacpp, "find", lambda: llamacpp.LlamaCpp(source=tmp_path, bin=tmp_path, bindings=tmp_path))
    with pytest.raises(ToolMissing, match="defines make_qx_quants 0 times"):
        fast.build()
