"""ggml's text as a card's programs, run on the CPU: the extraction and its changes, without a card."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hubbot import llamacpp
from hubbot.formats.gguf import agreement, codec
from hubbot.formats.gguf.allocation import ggml_name
from hubbot.formats.gguf.cuda.codec import LOST, NOT_FINITE, CardFloats, agrees
from hubbot.formats.gguf.cuda.grids import GRIDS
from hubbot.formats.gguf.cuda.program import PROGRAMS, program
from hubbot.formats.gguf.cuda.text import GgmlText, TextChanged
from hubbot.formats.gguf.probes import rounded, through
from tests.formats.gguf.cuda.host import CPU, host_codec, text

# seconds of a core each go into the tables of the wide grids, ours and ggml's; the others take the same way
WIDE_GRIDS = ("iq2_xs", "iq2_s", "iq1_s", "iq1_m")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in WIDE_GRIDS])
def test_a_program_gives_ggmls_bytes_and_values(name, tmp_path):
    found = host_codec(name, tmp_path)

    assert agrees(found.kind, found, CPU)


@pytest.mark.parametrize("kind", [codec.F32, codec.F16, codec.BF16])
def test_torch_rounds_floats_as_ggml_does(kind):
    assert agrees(kind, CardFloats(kind), CPU)


@pytest.mark.slow
def test_fused_products_and_sums_are_noticed(tmp_path):
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii") if Path("/proc/cpuinfo").exists() else ""
    if "fma" not in flags.split():
        pytest.skip("this processor cannot fuse a product and a sum")
    found = host_codec("q4_0", tmp_path, ("-O2", "-ffp-contract=fast", "-mfma", "-fno-strict-aliasing"))

    assert not agrees(found.kind, found, CPU)


@pytest.mark.slow
def test_odd_rows_are_told_from_the_others(tmp_path):
    found = host_codec("iq3_xxs", tmp_path)
    rows = torch.from_numpy(agreement.plain_rows(256)[:8])

    seen = [_odd(found, each) for each in (rows, rows * 1e14, rows)]

    assert seen == [0, NOT_FINITE | LOST, 0]


@pytest.mark.slow
def test_a_scale_that_no_half_holds_is_told(tmp_path):
    found = host_codec("q8_0", tmp_path)
    rows = torch.from_numpy(agreement.plain_rows(256)[:1])

    assert _odd(found, rows) == 0
    assert _odd(found, rows * 1e10) == NOT_FINITE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q3_K", "Q5_1"])
def test_a_probe_goes_through_a_program_as_through_the_cores_and_not_where_a_block_is_odd(name, tmp_path):
    found = host_codec(ggml_name(name), tmp_path)
    rows = torch.from_numpy(agreement.plain_rows(256)[:8])
    vector = agreement.importance(256)

    assert torch.equal(through(found, rows, vector), rounded(rows, name, vector))
    assert through(found, rows * 1e14, vector) is None
    assert torch.equal(through(found, rows, vector), rounded(rows, name, vector))


def _odd(found, rows):
    data = torch.zeros(len(rows) * codec.row_bytes(found.kind, rows.shape[1]), dtype=torch.uint8)
    odd = torch.zeros(1, dtype=torch.int32)
    found.encode(rows, None, data, odd)
    return int(odd)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("return (i & 0x007fffff) - 0x00400000;", "return (i & 0x7fffff) - 0x400000;"),
        ("static inline int nearest_int(float fval)", "static inline int nearest_integer(float fval)"),
        ("    float sigma2 = sum_x2/n_per_row;\n", "    const float sigma2 = sum_x2/n_per_row;\n"),
    ],
)
def test_another_text_of_ggml_is_refused(line, instead, tmp_path):
    source = llamacpp.find().source / "ggml" / "src"
    folder = tmp_path / "ggml" / "src"
    folder.mkdir(parents=True)
    for name in ("ggml-common.h", "ggml-impl.h"):
        shutil.copy(source / name, folder)
    changed = (source / "ggml-quants.c").read_text(encoding="utf-8").replace(line, instead)
    (folder / "ggml-quants.c").write_text(changed, encoding="utf-8")
    program(text(), "q4_0")

    with pytest.raises(TextChanged, match="was found"):
        program(GgmlText(tmp_path), "q4_0")


def test_every_type_with_a_grid_has_its_points():
    sizes = {name: len(text().numbers(grid.points)) for name, grid in GRIDS.items()}

    assert sizes == {
        "iq2_xxs": 256,
        "iq2_xs": 512,
        "iq1_s": 2048,
        "iq1_m": 2048,
        "iq2_s": 1024,
        "iq3_xxs": 256,
        "iq3_s": 512,
    }


@pytest.mark.parametrize("name", ["iq2_xxs", "iq3_xxs"])
def test_weights_that_ggml_would_end_the_process_for_are_refused_with_a_sentence(name):
    kind = codec.type_named(name)
    codec.prepare(kind)
    rows = np.full((1, 256), 1e10, np.float32)
    out = np.zeros(codec.row_bytes(kind, 256), np.uint8)

    with pytest.raises(ValueError, match=f"finds no {name}"):
        codec.encode_rows(kind, rows, out, np.ones(256, np.float32))
    codec.encode_rows(kind, rows / 1e10, out, np.ones(256, np.float32))
