"""The compiled loops of rounding by the Hessian compute what their twins in torch define, for any number of outputs and of cores.

Sums are added in another order, so that a step which lies within rounding of the middle between two can fall to either side and
change those after it: what they come to is compared too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hubbot.formats.gguf import codec, descent
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.descent import SPAN
from hubbot.formats.gguf.refinement import left_over, refine_span
from hubbot.formats.gguf.rounding import Curvature, curvature_of, round_rows, round_span
from hubbot.formats.gguf.state import PARTS, State
from tests.formats.gguf.test_rounding import correlated, importance_of, weights
from tests.tiers import suite

OUT, COLUMNS = 37, 512  # two whole vectors of features and some of a third
KINDS = suite(sorted(LAYOUTS, key=lambda kind: kind not in (3, 11, 12)), first=3)


@pytest.fixture(scope="module")
def loops() -> descent.Loops:
    descent.build()
    found = descent._load()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def curvature() -> Curvature:
    return curvature_of(correlated(COLUMNS))


def ggmls_state(kind: int) -> tuple[torch.Tensor, State]:
    """Weights, float32 [columns, out], and as ggml encodes them."""
    rows, importance = weights(OUT, COLUMNS), importance_of(correlated(COLUMNS))
    codec.prepare(kind)
    blocks = LAYOUTS[kind].unpack(codec.encoded(kind, rows, importance), OUT)
    return torch.from_numpy(rows).t().contiguous(), State.of(blocks, LAYOUTS[kind], torch.device("cpu"))


def copied(state: State) -> State:
    return replace(state, **{name: getattr(state, name).clone() for name in PARTS})


def same_outputs(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return (found == wanted).all(0).double().mean().item()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_span_is_refined_as_the_twin_refines_it(kind: int, loops: descent.Loops, curvature: Curvature) -> None:
    wanted, start = ggmls_state(kind)
    span = slice(SPAN, 2 * SPAN)
    hessian, lost = curvature.hessian[span, span].contiguous(), left_over(start, wanted)
    pull = curvature.hessian[span] @ lost
    found = []
    for refine in (loops.refine_span, refine_span):
        state, after, won = copied(start), lost.clone(), torch.zeros(OUT)
        refine(state.span(span), hessian, pull, wanted[span], after[span], won)
        assert torch.allclose(after, wanted - state.decode(), atol=1e-6)
        before, fell = (((error @ curvature.hessian) * error).sum(1).double() for error in (lost.T, after.T))
        assert torch.allclose(before - fell, won.double(), rtol=1e-3, atol=1e-4 * float(before.max()))
        found.append((state, won))
    (ours, gain), (twins, theirs) = found
    assert not torch.equal(twins.steps, start.steps)
    for name in PARTS:
        assert same_outputs(getattr(ours, name), getattr(twins, name)) >= 0.9, name
    assert torch.allclose(gain, theirs, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_columns_are_rounded_as_the_twin_rounds_them(kind: int, loops: descent.Loops, curvature: Curvature) -> None:
    wanted, start = ggmls_state(kind)
    order, factor = curvature.order[:SPAN], curvature.factor[:SPAN, :SPAN]
    found = []
    for round_some in (loops.round_span, round_span):
        state, lost = copied(start), torch.zeros(OUT)
        found.append((round_some(wanted[order], factor, order, state, lost), state, lost))
    (errors, ours, lost), (others, twins, theirs) = found
    same = (ours.steps == twins.steps).all(0)
    assert same.double().mean() >= 0.9
    assert not torch.equal(twins.steps, start.steps)
    assert torch.allclose(errors[:, same], others[:, same], rtol=1e-3, atol=1e-5)
    assert torch.allclose(lost[same], theirs[same], rtol=1e-4)


@pytest.mark.parametrize("kind", suite([12, 2], first=1), ids=str)
def test_bytes_are_the_same_on_any_number_of_cores_and_for_any_outputs_beside(
    kind: int, loops: descent.Loops, curvature: Curvature, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, importance = weights(OUT, COLUMNS), importance_of(correlated(COLUMNS))
    codec.prepare(kind)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(descent, "cores", lambda cores=cores: cores)
        found.append(round_rows(torch.from_numpy(rows), kind, curvature, importance))
    assert np.array_equal(found[0], found[1])
