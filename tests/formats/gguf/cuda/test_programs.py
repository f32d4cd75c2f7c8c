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
from hubbot.formats.gguf.cuda import rows as through
from hubbot.formats.gguf.cuda.codec import LOST, NOT_FINITE, CardFloats, agrees
from hubbot.formats.gguf.cuda.grids import GRIDS
from hubbot.formats.gguf.cuda.program import PROGRAMS, program
from hubbot.formats.gguf.cuda.text import GgmlText, TextChanged
from hubbot.formats.gguf.encode import Job, RawRows, as_floats
from hubbot.formats.gguf.probes import rounded
from hubbot.formats.gguf.rounding import curvature_of, round_rows
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


@pytest.mark.parametrize("kind", [codec.F32, codec.F16, codec.BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_cards_rows_become_the_floats_that_the_cores_make_of_them(dtype, kind):
    rows = torch.from_numpy(agreement.plain_rows(256)[:8]).to(dtype)
    job = Job(name="w", rows=rows, kind=kind, targets={}, importance=None)
    values, broken = through.floats(rows, kind)

    assert not broken.item()
    assert torch.equal(values, torch.from_numpy(as_floats(job, RawRows.of(rows)).copy()))
    assert through.floats(rows / 0, kind)[1].item()


@pytest.fixture
def on_a_card(monkeypatch, tmp_path):
    """type -> the CPU takes its rows for a card's, and a program for that type."""

    def of(name):
        found = host_codec(name, tmp_path)
        monkeypatch.setattr(through, "card_codec", lambda kind, _: found if kind == found.kind else None)
        monkeypatch.setattr(through, "_on_a_card", lambda _: True)
        return found

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q3_K", "Q5_1"])
def test_a_probe_goes_through_a_program_as_through_the_cores(name, on_a_card):
    values, vector = torch.from_numpy(agreement.plain_rows(256)[:8]), agreement.importance(256)
    wanted = rounded(values, name, vector)
    found = on_a_card(ggml_name(name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "encoded", lambda *_: pytest.fail("the cores encode"))
        assert torch.equal(rounded(values, name, vector), wanted)
    assert through.encoded(found.kind, values * 1e14, vector) is None
    assert through.encoded(codec.type_named("q8_0"), values, vector) is None


@pytest.mark.slow
def test_rounding_by_the_hessian_begins_with_what_a_program_encodes(on_a_card):
    values, vector = agreement.plain_rows(256)[:8], agreement.importance(256)
    curvature = curvature_of(torch.diag(torch.from_numpy(vector)) + 0.1)
    ours = round_rows(torch.from_numpy(values), codec.type_named("q3_K"), curvature, vector)
    found = on_a_card("q3_K")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "encoded", lambda *_: pytest.fail("the cores encode"))
        assert np.array_equal(round_rows(torch.from_numpy(values), found.kind, curvature, vector), ours)


@pytest.mark.slow
def test_weights_that_a_program_calls_odd_are_left_to_the_cores(on_a_card):
    values = torch.from_numpy(agreement.plain_rows(256)[:8])
    on_a_card("q8_0")

    with pytest.raises(ValueError, match="not finite"):
        rounded(values * 1e10, "Q8_0", None)


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
