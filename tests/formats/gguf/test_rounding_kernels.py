"""The GPU kernels of rounding into ggml's blocks compute what their twins in torch define: on a card, or by Triton's interpreter.

They and torch may add the terms of a sum in another order, so that a step which lies within rounding of the
middle between two can fall to either side and change those after it: what they come to is compared too.
"""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="make test installs triton")

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.refinement import _refine_block, inverse
from hubbot.formats.gguf.rounding import curvature_of, round_columns
from hubbot.formats.gguf.state import PARTS, State
from hubbot.kernels import blocks as kernels
from tests.formats.gguf.test_rounding import COLUMNS, correlated, importance_of, weights
from tests.launched import launched
from tests.tiers import suite

pytestmark = pytest.mark.slow


def ggmls_state(kind: int, hessian: torch.Tensor) -> tuple[torch.Tensor, State]:
    """The first block of some rows, float32 [columns, out], and as ggml encodes it."""
    layout = LAYOUTS[kind]
    rows, importance = weights(), importance_of(hessian)
    codec.prepare(kind)
    state = State.of(layout.unpack(codec.encoded(kind, rows, importance), len(rows)), layout, torch.device("cpu"))
    return torch.from_numpy(rows).t()[: layout.block].contiguous(), state.span(slice(0, layout.block))


def copied(state: State) -> State:
    return replace(state, **{name: getattr(state, name).clone() for name in PARTS})


def same_columns(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return (found == wanted).all(0).double().mean().item()


@pytest.mark.parametrize("kind", suite(sorted(LAYOUTS, key=lambda kind: kind not in (2, 12)), first=2), ids=str)
def test_a_block_is_refined_as_the_twin_refines_it(kind: int) -> None:
    hessian = curvature_of(correlated(COLUMNS)).hessian[: LAYOUTS[kind].block, : LAYOUTS[kind].block].contiguous()
    wanted, start = ggmls_state(kind, correlated(COLUMNS))
    pull = hessian @ (wanted - start.decode())
    ours, twins = copied(start), copied(start)
    layout = start.layout
    ranges = (layout.steps, layout.scales, layout.minimums)
    parts = (getattr(ours, name) for name in PARTS)
    launched(kernels.refine_block, *parts, hessian, pull, group=layout.group, ranges=ranges)
    _refine_block(twins, hessian, pull.clone())

    def loss(state: State) -> torch.Tensor:
        lost = wanted - state.decode()
        return (lost * (hessian @ lost)).sum(0)

    assert not torch.equal(twins.steps, start.steps)
    for name in PARTS:
        assert same_columns(getattr(ours, name), getattr(twins, name)) >= 0.75, name
    assert (loss(ours) <= loss(start) * (1 + 1e-4)).all()
    assert torch.allclose(loss(ours), loss(twins), rtol=0.02)


@pytest.mark.parametrize("kind", [2, 12], ids=str)
def test_columns_are_rounded_as_the_twin_rounds_them(kind: int) -> None:
    hessian = correlated(COLUMNS)
    wanted, state = ggmls_state(kind, hessian)
    curvature = curvature_of(hessian)
    columns = len(wanted)
    factor = curvature.factor[:columns, :columns]
    scale, minimum = state.grid()
    given = (factor, scale, inverse(scale), state.layout.steps)
    found, errors = launched(kernels.round_columns, wanted + minimum, *given)
    steps, lost = round_columns(wanted + minimum, *given)
    same = (found == steps).all(0)
    assert same.double().mean() >= 0.75
    assert torch.allclose(errors[:, same], lost[:, same], rtol=1e-3, atol=1e-5)
