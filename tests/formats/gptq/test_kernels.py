"""The solver's GPU kernels compute what their twins in torch define: on a card, or by Triton's interpreter.

Codes are compared one by one. They and torch may add the terms of a sum in another order, so that a weight
which lies within rounding of the middle between two codes can fall to either side: one in a thousand is let pass.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="make test installs triton")

from hubbot.domain import Gptq
from hubbot.formats.gptq import columns, grid, groups, solver
from hubbot.kernels import gptq as kernels
from hubbot.kernels import gptq_groups as grouped_kernels
from tests.launched import launched
from tests.tiers import suite

pytestmark = pytest.mark.slow

SHAPES = [(16, 8), (32, 19), (100, 5), (128, 24)]  # columns and output features, also such as fill no tile
BITS = [3, 4]
ALIKE = 0.999


def _normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _curvature(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A Hessian as dependent inputs make it, and its factor."""
    inputs = _normal(4 * size, size, seed=1) @ (torch.eye(size) + 0.3 * _normal(size, size, seed=2))
    hessian = inputs.T @ inputs / len(inputs)
    made = solver.prepare(hessian, Gptq(bits=4, group_size=-1), 0.01)
    return made.hessian, made.factor


def _grid(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of both signs and the zero point in the middle."""
    scale = grid.storable(weight.abs().amax(0) * 2 / (2**bits - 1))
    signs = 1 - 2 * (torch.arange(len(scale)) % 2)
    return scale * signs, torch.full_like(scale, 2 ** (bits - 1))


class _Launched:
    """A module of launchers, each called through a card where there is one."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(launched, getattr(self._module, name))


def _share(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left == right).double().mean().item()


@pytest.mark.parametrize("shape", suite(SHAPES, first=2))
@pytest.mark.parametrize("bits", BITS)
def test_rounding_a_block_gives_the_codes_and_errors_of_the_twin(shape, bits):
    weight, (_, factor) = _normal(*shape, seed=3), _curvature(shape[0])
    scale, zero = _grid(weight, bits)
    codes, errors = launched(kernels.round_columns, weight, factor, scale, zero, bits)
    wanted_codes, wanted_errors = columns.round_columns(weight, factor, scale, zero, bits)
    same = (codes == wanted_codes).all(0)  # a code that went the other way changes those after it
    assert _share(same, torch.ones_like(same)) >= 0.9
    assert torch.allclose(errors[:, same], wanted_errors[:, same], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", suite(SHAPES, first=2))
@pytest.mark.parametrize("bits", BITS)
def test_descending_a_block_gives_the_steps_of_the_twin(shape, bits):
    hessian, _ = _curvature(shape[0])
    weight = _normal(*shape, seed=4)
    scale, zero = _grid(weight, bits)
    steps = columns.nearest_code(weight, scale, zero, bits) - zero
    pull = hessian @ (weight - steps * scale)
    found, wanted = steps.clone(), steps.clone()
    launched(kernels.descend, found, hessian, pull, scale, zero, bits)
    columns.descend(wanted, hessian, pull, scale, zero, bits)
    assert not torch.equal(wanted, steps)
    same = (found == wanted).all(0)
    assert _share(same, torch.ones_like(same)) >= 0.9


@pytest.mark.parametrize("shape", suite([*SHAPES, (300, 9)], first=2))  # more columns than a program holds at once
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_best_grid_is_the_twins(shape, symmetric):
    weight, importance = _normal(*shape, seed=5), _normal(shape[0], seed=6).exp()
    scales, zeros = grid._candidates(weight, Gptq(bits=4, group_size=-1, symmetric=symmetric))
    found = launched(kernels.best_candidate, weight, importance, scales, zeros, 4)
    wanted = columns.best_candidate(weight, importance, scales, zeros, 4)
    assert len(wanted.unique()) > 1
    assert _share(found, wanted) >= 0.9


@pytest.mark.parametrize("layout", [Gptq(bits=4, group_size=32), Gptq(bits=3, group_size=-1, symmetric=False)])
def test_a_layer_solved_by_the_kernels_is_as_good_as_by_the_twins(layout, monkeypatch):
    """The whole solver through the kernels' launchers: the error is the same within a few codes."""
    hessian = _curvature(160)[0]
    weight = 0.05 * _normal(24, 160, seed=7)
    curvature = solver.prepare(hessian, layout, 0.01)
    wanted = solver.solve(weight, curvature, layout)
    monkeypatch.setattr(columns, "kernels_on", lambda *_: _Launched(kernels))
    found = solver.solve(weight, curvature, layout)
    assert _share(found.codes, wanted.codes) >= 0.98
    assert found.error == pytest.approx(wanted.error, rel=0.02)


GROUPED = [(128, 24, 32), (128, 19, 128), (64, 5, 16), (96, 8, 32)]  # columns, output features, columns of a group


@pytest.mark.parametrize("shape", suite(GROUPED, first=2))
@pytest.mark.parametrize("layout", [Gptq(bits=4, group_size=32), Gptq(bits=3, group_size=32, symmetric=False)])
def test_rounding_a_block_of_groups_gives_the_grids_and_codes_of_the_twin(shape, layout):
    rows, features, size = shape
    weight, (_, factor) = _normal(rows, features, seed=8), _curvature(rows)
    importance = factor.diagonal().pow(-2)
    wanted_codes, wanted_errors, wanted = groups.round_groups(weight.clone(), factor, importance, size, layout)
    codes, errors, scale, zero = launched(
        grouped_kernels.round_groups,
        weight.clone(),
        factor,
        importance,
        size,
        layout.bits,
        grid.candidate_shares(),
        symmetric=layout.symmetric,
    )
    same = ((scale == wanted.scale) & (zero == wanted.zero)).all(0) & (codes == wanted_codes).all(0)
    assert _share(same, torch.ones_like(same)) >= 0.75
    assert torch.allclose(errors[:, same], wanted_errors[:, same], rtol=1e-3, atol=1e-5)


# the interpreter computes the lanes that a mask leaves out, 0 / 0 among them
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("shape", suite(GROUPED, first=2))
def test_refining_a_block_of_groups_gives_the_scales_and_steps_of_the_twin(shape):
    rows, features, size = shape
    hessian, factor = _curvature(rows)
    weight = _normal(rows, features, seed=9)
    layout = Gptq(bits=4, group_size=size)
    codes, _, fitted = groups.round_groups(weight.clone(), factor, factor.diagonal().pow(-2), size, layout)
    steps = codes - fitted.zero.repeat_interleave(size, 0)
    pull = hessian @ (weight - steps * fitted.scale.repeat_interleave(size, 0))
    wanted, wanted_grid = steps.clone(), grid.Grid(fitted.scale.clone(), fitted.zero)
    groups.refine_groups(wanted, hessian, pull.clone(), wanted_grid, size, 4)
    found, scales = steps.clone(), fitted.scale.clone()
    moved = launched(grouped_kernels.refine_groups, found, hessian, pull.clone(), scales, fitted.zero, size, 4)
    assert not torch.equal(wanted, steps)
    same = (found == wanted).all(0) & (scales == wanted_grid.scale).all(0)
    assert _share(same, torch.ones_like(same)) >= 0.75
    change = found * scales.repeat_interleave(size, 0) - steps * fitted.scale.repeat_interleave(size, 0)
    assert torch.allclose(moved, change, atol=1e-5)


@pytest.mark.parametrize("layout", [Gptq(bits=4, group_size=32), Gptq(bits=3, group_size=16, symmetric=False)])
def test_a_layer_solved_by_the_kernels_of_groups_is_as_good_as_by_the_twins(layout, monkeypatch):
    hessian = _curvature(160)[0]
    weight = 0.05 * _normal(24, 160, seed=7)
    curvature = solver.prepare(hessian, layout, 0.01)
    wanted = solver.solve(weight, curvature, layout)
    monkeypatch.setattr(groups, "kernels_on", lambda *_: _Launched(grouped_kernels))
    found = solver.solve(weight, curvature, layout)
    assert _share(found.codes, wanted.codes) >= 0.95
    assert found.error == pytest.approx(wanted.error, rel=0.02)
