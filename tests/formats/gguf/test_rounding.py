"""Rounding by the whole Hessian: never worse than ggml's own encoder by its measure, in the same bytes, for every type."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from hubbot.errors import Unsupported
from hubbot.formats.gguf import ALLOCATED, ROUNDED, codec, parse
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.check import read
from hubbot.formats.gguf.rounding import DAMPING, curvature_of, round_rows
from hubbot.formats.names import parse_variant
from tests.formats.gguf.chain import checkpoint, keys_and_tensors, make, open_format, parts, statistics_of
from tests.tiers import suite

OUT, COLUMNS = 8, 256


def correlated(columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs as layers have them: a few directions carry most, some features much more than others. Their Hessian."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / torch.arange(1, columns + 1) ** 0.7
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing.T
    x = x * torch.rand(columns, generator=generator).add(0.1).pow(2)
    return x.T @ x


def weights(rows: int = OUT, columns: int = COLUMNS) -> np.ndarray:
    generator = np.random.default_rng(5)
    return (generator.standard_t(5, (rows, columns)) * generator.uniform(0.2, 2, (rows, 1)) / 30).astype(np.float32)


def importance_of(hessian: torch.Tensor) -> np.ndarray:
    return (hessian.diagonal() / (4 * len(hessian))).numpy().copy()


def ggmls(rows: np.ndarray, kind: int, importance: np.ndarray | None) -> np.ndarray:
    data = np.zeros(len(rows) * codec.row_bytes(kind, rows.shape[1]), np.uint8)
    codec.prepare(kind)
    codec.encode_rows(kind, rows, data, importance)
    return data


def losses(rows: np.ndarray, kind: int, data: np.ndarray, hessian: torch.Tensor) -> torch.Tensor:
    """Row by row, with the solver's damping."""
    decoded = np.empty_like(rows)
    codec.decode_rows(kind, data, decoded)
    lost = torch.from_numpy(rows - decoded).double()
    damped = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    return ((lost @ damped) * lost).sum(1)


@pytest.mark.parametrize("kind", suite(sorted(LAYOUTS, key=lambda kind: kind not in (2, 11, 12)), first=3), ids=str)
def test_no_row_is_worse_than_ggmls_and_all_together_are_much_better(kind: int) -> None:
    rows, hessian = weights(), correlated(COLUMNS)
    importance = importance_of(hessian)
    theirs, ours = (
        ggmls(rows, kind, importance),
        round_rows(torch.from_numpy(rows), kind, curvature_of(hessian), importance),
    )
    assert ours.size == theirs.size
    before, after = (losses(rows, kind, data, hessian) for data in (theirs, ours))
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.75 * before.sum()
    assert np.array_equal(round_rows(torch.from_numpy(rows), kind, curvature_of(hessian), importance), ours)


@pytest.mark.parametrize("kind", suite([10, 11, 2, 14], first=1), ids=str)
def test_rows_and_inputs_of_zeros_and_a_hessian_of_one_token_are_rounded_too(kind: int) -> None:
    rows = weights()
    rows[3] = 0
    rows[5, :128] = 0
    token = torch.randn(COLUMNS, generator=torch.Generator().manual_seed(1))
    token[7:90] = 0
    hessian = torch.outer(token, token)
    before, after = (
        losses(rows, kind, data, hessian)
        for data in (
            ggmls(rows, kind, importance_of(hessian)),
            round_rows(torch.from_numpy(rows), kind, curvature_of(hessian), importance_of(hessian)),
        )
    )
    assert (after <= before * (1 + 1e-4)).all()
    assert after[3] == 0


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    with pytest.raises(Unsupported, match="not finite"):
        round_rows(torch.from_numpy(weights()), 12, curvature_of(torch.full((COLUMNS, COLUMNS), torch.nan)), None)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_hessians(monkeypatch):
    """Statistics of the chain's parts, with Hessians."""

    def statistics(part, held):
        found = statistics_of(part, held)
        whole = {len(one.squares): correlated(len(one.squares), part.index) for one in found.values()}
        return {
            name: replace(one, hessian=whole[len(one.squares)], squares=whole[len(one.squares)].diagonal())
            for name, one in found.items()
        }

    monkeypatch.setattr("tests.formats.gguf.chain.statistics_of", statistics)
    return statistics


@pytest.mark.slow
def test_a_rounded_file_has_the_plain_ones_size_and_types_and_leaves_its_bytes_alone(llama, tmp_path, with_hessians):
    files, decoded = make(llama, ["Q4_K_M", "Q4_K_M_H"], tmp_path / "both", imatrix=True)
    alone, _ = make(llama, ["Q4_K_M"], tmp_path / "alone", imatrix=True, decoded=False)
    plain, rounded = files["Q4_K_M"].paths[0], files["Q4_K_M_H"].paths[0]
    assert rounded.name == f"{llama.name}-Q4_K_M_H.gguf"
    assert plain.read_bytes() == alone["Q4_K_M"].paths[0].read_bytes()
    assert rounded.stat().st_size == plain.stat().st_size
    (keys, one), (same, other) = keys_and_tensors(plain), keys_and_tensors(rounded)
    assert keys == same
    assert {name: found[:2] for name, found in one.items()} == {name: found[:2] for name, found in other.items()}
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {name for name in one if re.match(r"blk\.\d+\.(attn|ffn)_(?!.*norm)", name)}
    assert "types and bytes of Q4_K_M" in files["Q4_K_M_H"].notes[0]
    assert not files["Q4_K_M"].notes
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(decoded["Q4_K_M"][name], decoded["Q4_K_M_H"][name])


@pytest.mark.slow
def test_what_is_decoded_is_nearer_to_the_outputs_whatever_rows_and_experts_the_converter_moves(
    llama, tmp_path, with_hessians
):
    _, decoded = make(llama, ["Q3_K_M", "Q3_K_M_H"], tmp_path, imatrix=True)
    stored = checkpoint(llama)
    for part in parts(stored):
        for name, statistics in with_hessians(part, stored).items():
            lost = {key: decoded[key][name] - stored[name].float() for key in decoded}
            plain, rounded = (float(((error @ statistics.hessian) * error).sum()) for error in lost.values())
            assert rounded < 0.8 * plain, name


@pytest.mark.slow
def test_llama_cpp_reads_a_rounded_file(llama, tmp_path, with_hessians):
    files, _ = make(llama, ["Q4_0_H"], tmp_path, imatrix=True, decoded=False)
    reading = read(files["Q4_0_H"].paths[:1], None, prompts=[[1, 2, 3]], new_tokens=4)
    assert reading.check.loaded
    assert len(reading.continuations[0]) > 0


def test_without_a_calibration_it_is_refused_and_says_what_to_do(llama, tmp_path):
    with pytest.raises(Unsupported, match=r"Leave out --no-imatrix.* or take Q4_K_M\."):
        open_format(llama, ["Q4_K_M_H"], tmp_path, imatrix=False)


# --- names -----------------------------------------------------------------------------------------------------------

# huggingface.js, packages/tasks/src/gguf.ts: the types in their order, each with an optional size in letters
HUB = re.compile("(UD-)?(" + "|".join(["Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q2_K_S"]) + ")(_([A-Z]+))?")  # fmt: skip


@pytest.mark.parametrize("split", ["", "-00001-of-00003"])
@pytest.mark.parametrize("name", ROUNDED)
def test_neither_the_hub_nor_llama_cpp_takes_a_rounded_or_a_measured_file_for_the_plain_one(
    name: str, split: str
) -> None:
    """llama.cpp's common/download.cpp searches for the name with a dot or a dash behind it."""
    tags = [name, f"{name}_H", *([f"{name}_D", f"{name}_DH"] if name in ALLOCATED else [])]
    assert [parse_variant(tag).name for tag in tags] == tags
    files = {tag: f"Model-{tag}{split}.gguf" for tag in tags}
    for tag, file in files.items():
        assert [found for found in files.values() if re.search(f"{tag}[.-]", found, re.IGNORECASE)] == [file]
        assert [found[0] for found in HUB.finditer(file)] == [tag]


def test_types_that_are_no_whole_numbers_in_blocks_have_no_rounded_name() -> None:
    assert parse("IQ4_XS_H") is None
    assert parse("BF16_H") is None
    assert parse("q4_k_h") == parse("Q4_K_M_H")
