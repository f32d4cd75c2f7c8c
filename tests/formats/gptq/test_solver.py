"""The solver: what it promises about grids, order, damping and error."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbot.domain import Gptq
from hubbot.errors import Unsupported
from hubbot.formats.gptq import solver
from hubbot.formats.gptq.solver import Curvature, Solution, prepare, solve, solve_together, solve_weighed
from hubbot.formats.gptq.turns import turns_of
from hubbot.formats.protocol import Band

COLUMNS, ROWS = 128, 32


def _weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.05


def _inputs(seed: int = 1, count: int = 400) -> torch.Tensor:
    """Inputs with unequal, dependent features, as between the layers of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator) * 0.3 + torch.eye(COLUMNS)
    spread = torch.exp(torch.randn(COLUMNS, generator=generator))
    return torch.randn(count, COLUMNS, generator=generator) @ mix * spread


def _hessian(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.T @ inputs


def _nearest(weight: torch.Tensor, layout: Gptq) -> torch.Tensor:
    """Round to nearest with the scale that spans each group."""
    groups = weight.view(ROWS, -1, layout.group_size)
    scale = groups.abs().amax(-1, keepdim=True) * 2 / (2**layout.bits - 1)
    half = 2 ** (layout.bits - 1)
    return (torch.clamp(torch.round(groups / scale), -half, half - 1) * scale).view(ROWS, -1)


LAYOUTS = st.builds(
    Gptq,
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([16, 32, 64, 128, -1]),
    act_order=st.booleans(),
    symmetric=st.booleans(),
)


@settings(deadline=None, max_examples=25)
@given(layout=LAYOUTS, seed=st.integers(0, 1000))
def test_codes_stay_in_range_and_groups_have_their_size_for_every_layout(layout, seed):
    solution = solve(_weight(seed), prepare(_hessian(_inputs(seed)), layout, 0.05), layout)
    groups = 1 if layout.group_size == -1 else COLUMNS // layout.group_size
    assert solution.codes.shape == (COLUMNS, ROWS)
    assert int(solution.codes.max()) < 2**layout.bits
    assert solution.scales.shape == solution.zeros.shape == (groups, ROWS)
    assert solution.scales.dtype == torch.float16
    assert bool((solution.scales != 0).all())
    assert bool(torch.isfinite(solution.scales).all())
    assert torch.bincount(solution.group_of).tolist() == [COLUMNS // groups] * groups
    if layout.symmetric:
        assert bool((solution.zeros == 2 ** (layout.bits - 1)).all())
    if not layout.act_order:
        assert torch.equal(solution.group_of, torch.arange(COLUMNS, dtype=torch.int32) // (COLUMNS // groups))
    relative = (solution.decode() - _weight(seed)).norm() / _weight(seed).norm()
    assert relative < {2: 1.2, 3: 0.6, 4: 0.3, 8: 0.02}[layout.bits]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
def test_outputs_change_several_times_less_than_by_rounding_to_nearest(bits, act_order):
    layout = Gptq(bits=bits, group_size=32, act_order=act_order)
    inputs, weight = _inputs(), _weight()
    solution = solve(weight, prepare(_hessian(inputs), layout, 0.05), layout)
    ours = (inputs @ (solution.decode() - weight).T).square().sum()
    nearest = (inputs @ (_nearest(weight, layout) - weight).T).square().sum()
    assert ours < nearest / 2


def test_the_reported_error_is_the_change_of_the_outputs_on_the_calibration_inputs():
    layout = Gptq(bits=4, group_size=32)
    inputs, weight = _inputs(), _weight()
    solution = solve(weight, prepare(_hessian(inputs), layout, 0.01), layout)
    change = (inputs @ (solution.decode() - weight).T).square().sum() / (inputs @ weight.T).square().sum()
    assert solution.error == pytest.approx(float(change), rel=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_refinement_lowers_the_error_it_works_on(symmetric):
    layout = Gptq(bits=3, group_size=32, symmetric=symmetric)
    curvature = prepare(_hessian(_inputs()), layout, 0.05)
    plain, refined = (solve(_weight(), curvature, layout, sweeps=sweeps) for sweeps in (0, 3))
    damped = curvature.hessian[curvature.order.argsort()][:, curvature.order.argsort()]

    def error(solution):
        lost = solution.decode() - _weight()
        return float((lost * (lost @ damped)).sum())

    assert error(refined) < error(plain)


def test_inputs_that_were_always_zero_neither_stop_the_solver_nor_touch_other_columns():
    layout = Gptq(bits=4, group_size=32)
    inputs = _inputs()
    dead = torch.tensor([0, 5, 63, 64, 127])
    inputs[:, dead] = 0
    weight = _weight()
    solution = solve(weight, prepare(_hessian(inputs), layout, 0.05), layout)
    assert solution.damping == 0.05
    other = weight.clone()
    other[:, dead] = -weight[:, dead]
    again = solve(other, prepare(_hessian(inputs), layout, 0.05), layout)
    live = torch.ones(COLUMNS, dtype=torch.bool)
    live[dead] = False
    change = (inputs @ (solution.decode() - again.decode()).T).square().sum() / (inputs @ weight.T).square().sum()
    assert change < 0.02
    assert bool(torch.isfinite(solution.decode()).all())


def test_a_layer_that_saw_only_zeros_is_rounded_to_nearest():
    layout = Gptq(bits=8, group_size=32)
    solution = solve(_weight(), prepare(torch.zeros(COLUMNS, COLUMNS), layout, 0.05), layout)
    assert (solution.decode() - _weight()).abs().max() < _weight().abs().max() / 200


def test_damping_rises_until_the_hessian_can_be_factored_and_says_so():
    hessian = _hessian(_inputs())
    values, vectors = torch.linalg.eigh(hessian.double())
    values[0] = -0.2 * values.mean()  # no Hessian, but what rounding makes of one in the worst case
    broken = ((vectors * values) @ vectors.T).float()
    curvature = prepare(broken, Gptq(bits=4, group_size=32), 0.05)
    assert curvature.damping > 0.2
    assert curvature.damping == pytest.approx(0.05 * 2 ** round(torch.tensor(curvature.damping / 0.05).log2().item()))


def test_a_hessian_that_is_not_finite_is_refused():
    hessian = _hessian(_inputs())
    hessian[3, 4] = torch.nan
    with pytest.raises(Unsupported, match="not finite"):
        prepare(hessian, Gptq(bits=4, group_size=32), 0.05)


def test_the_same_input_gives_the_same_codes():
    layout = Gptq(bits=3, group_size=64, act_order=True, symmetric=False)
    first, second = (solve(_weight(), prepare(_hessian(_inputs()), layout, 0.05), layout) for _ in range(2))
    for name in ("codes", "scales", "zeros", "group_of"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_weights_of_zero_stay_zero():
    layout = Gptq(bits=4, group_size=32)
    solution = solve(torch.zeros(ROWS, COLUMNS), prepare(_hessian(_inputs()), layout, 0.05), layout)
    assert not solution.decode().any()


def test_the_factor_is_that_of_the_inverse_where_a_matrix_is_inverted_by_halves():
    columns = 1100  # two halvings, uneven ones too
    hessian = _hessian(torch.randn(3 * columns, columns, generator=torch.Generator().manual_seed(6)))
    made = prepare(hessian, Gptq(bits=4, group_size=-1), 0.01)
    assert torch.equal(made.factor, made.factor.triu())
    inverse = made.factor.double().t() @ made.factor.double()
    assert torch.allclose(inverse @ made.hessian.double(), torch.eye(columns, dtype=torch.float64), atol=1e-4)


def test_layers_too_large_to_be_solved_at_once_are_solved_in_pieces_to_the_same_codes(monkeypatch):
    layout = Gptq(bits=4, group_size=32)
    weights, curvature = [_weight(seed) for seed in (1, 2)], prepare(_hessian(_inputs()), layout, 0.01)
    together = solve_together(weights, curvature, layout)
    monkeypatch.setattr(solver, "_AT_ONCE", 7 * COLUMNS)
    for whole, pieces in zip(together, solve_together(weights, curvature, layout), strict=True):
        assert torch.equal(whole.codes, pieces.codes)
        assert torch.equal(whole.scales, pieces.scales)
        assert pieces.error == pytest.approx(whole.error, rel=1e-6)


def _band(rows: dict[str, slice], seed: int = 5, tokens: int = 4000) -> Band:
    """Gradients of outputs that are as dependent as those of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    outputs = sum(own.stop - own.start for own in rows.values())
    mix = torch.randn(outputs, outputs, generator=generator) * 0.2 + torch.eye(outputs)
    gradients = torch.randn(tokens, outputs, generator=generator) @ mix
    return Band(rows=rows, matrix=gradients.T @ gradients / tokens)


def _weighed(weights: dict[str, torch.Tensor], bands: list[Band], curvature: Curvature, layout: Gptq) -> list[Solution]:
    turns = turns_of(bands, {name: len(weight) for name, weight in weights.items()}, curvature.hessian.device)
    return solve_weighed([*weights.values()], turns, curvature, layout)


def _loss(error: torch.Tensor, band: Band, hessian: torch.Tensor) -> float:
    return float(torch.trace(band.matrix @ error @ hessian @ error.T))


@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_by_gradients_lowers_the_loss_of_outputs_together(bits):
    layout, hessian = Gptq(bits=bits, group_size=32), _hessian(_inputs())
    weights = {"query": _weight(0), "key": _weight(1)}
    band = _band({"query": slice(0, ROWS), "key": slice(0, ROWS)})
    curvature, whole = prepare(hessian, layout, 0.01), torch.cat(list(weights.values()))
    plain = torch.cat([solve(weight, curvature, layout).decode() for weight in weights.values()])
    weighed = torch.cat([found.decode() for found in _weighed(weights, [band], curvature, layout)])
    assert _loss(whole - weighed, band, hessian) < 0.8 * _loss(whole - plain, band, hessian)


def test_outputs_whose_gradients_do_not_meet_are_rounded_as_without_them():
    layout, weights = Gptq(bits=4, group_size=32), {"gate": _weight(0), "up": _weight(1)}
    curvature = prepare(_hessian(_inputs()), layout, 0.01)
    bands = [
        Band(rows={"gate": slice(0, 20), "up": slice(0, 12)}, matrix=3 * torch.eye(ROWS)),
        Band(rows={"gate": slice(20, ROWS), "up": slice(12, ROWS)}, matrix=torch.eye(ROWS)),
    ]
    for found, weight in zip(_weighed(weights, bands, curvature, layout), weights.values(), strict=True):
        plain = solve(weight, curvature, layout)
        assert torch.equal(found.codes, plain.codes)
        assert torch.equal(found.scales, plain.scales)
        assert found.error == pytest.approx(plain.error)


def test_a_layer_that_is_left_out_has_no_part_in_the_others():
    layout, curvature = Gptq(bits=4, group_size=32), prepare(_hessian(_inputs()), Gptq(bits=4, group_size=32), 0.01)
    both = _band({"left": slice(0, ROWS), "kept": slice(0, ROWS)})
    alone = Band(rows={"kept": slice(0, ROWS)}, matrix=both.matrix[ROWS:, ROWS:])
    one, other = (_weighed({"kept": _weight()}, [band], curvature, layout)[0] for band in (both, alone))
    assert torch.equal(one.codes, other.codes)


def test_gradients_that_are_not_finite_are_refused():
    layout, band = Gptq(bits=4, group_size=32), _band({"layer": slice(0, ROWS)})
    band.matrix[0, 0] = torch.nan
    with pytest.raises(Unsupported, match="Leave -e2e out"):
        _weighed({"layer": _weight()}, [band], prepare(_hessian(_inputs()), layout, 0.01), layout)
