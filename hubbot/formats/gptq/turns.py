"""Whose turn it is among outputs whose errors count together, and what is left to round where others have erred.

With G the matrix of their gradients, an error e of some outputs costs least if those still to be rounded answer with
-inverse(G_oo) G_oe e. Outputs go in groups, in an order that is drawn at random: neighbours, which meet most, part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hubbot.errors import Unsupported
from hubbot.formats.protocol import Band

__all__ = ["GROUPS", "Turns", "turns_of"]

GROUPS = 8  # of a band's outputs; docs/quality.md has what others bring
DAMPING = 0.1  # of the mean diagonal of G: it is a mean over few tokens
_MAX_DAMPING = 16.0  # a matrix that needs more is not finite
_SEED = 0


@dataclass(frozen=True, slots=True)
class Turns:
    """A band's outputs in groups, and what an error of each asks of those to come: alike for all layouts of these layers.

    order: int64, the outputs as their turns come, among those of all layers end to end. groups: where in it each turn's are.
    answers: for each turn but the last, float32 [outputs of the turn, all later ones].
    """

    order: torch.Tensor
    groups: Sequence[slice]
    answers: Sequence[torch.Tensor]

    def places(self, turn: int) -> torch.Tensor:
        """int64, of the outputs whose turn it is."""
        return self.order[self.groups[turn]]

    def pass_on(self, turn: int, errors: torch.Tensor, rest: torch.Tensor) -> None:
        """errors: what was wanted of the outputs of this turn less what they were rounded to, [in, outputs]. rest: float32
        [in, outputs of the band], what is wanted of those to come, in their order, which changes."""
        if turn + 1 < GROUPS:
            rest[:, self.groups[turn].stop :].addmm_(errors, self.answers[turn])


def turns_of(bands: Iterable[Band], layers: Mapping[str, int], device: torch.device) -> list[Turns]:
    """Of the bands that outputs of these layers are in. layers: name -> outputs of those that are rounded together.

    Raises Unsupported where a band's matrix is not finite.
    """
    return [_turns(band, layers, device) for band in bands if not layers.keys().isdisjoint(band.rows)]


def _turns(band: Band, layers: Mapping[str, int], device: torch.device) -> Turns:
    kept, places = _where(band, layers)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(_SEED))
    ends = [len(places) * turn // GROUPS for turn in range(GROUPS + 1)]
    groups = [slice(first, last) for first, last in itertools.pairwise(ends)]
    factor = _factor(band.matrix.to(device), kept[order].to(device))
    return Turns(order=places[order].to(device), groups=groups, answers=_answers(factor, groups))


def _where(band: Band, layers: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the outputs that are rounded, their places in the band and in the layers end to end."""
    in_band, in_layers, first = [], [], 0
    begins = dict(zip(layers, torch.tensor([0, *layers.values()]).cumsum(0).tolist(), strict=False))
    for name, rows in band.rows.items():
        count = rows.stop - rows.start
        if name in layers:
            in_band.append(torch.arange(first, first + count))
            in_layers.append(torch.arange(begins[name] + rows.start, begins[name] + rows.stop))
        first += count
    return torch.cat(in_band), torch.cat(in_layers)


def _factor(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Upper triangular R with R R' the matrix in this order, over its mean diagonal and damped: more where it takes more.

    The later outputs' part of it is the factor of their part of the matrix: G_eo inverse(G_oo) = R_eo inverse(R_oo).
    Raises Unsupported where the matrix is not finite.
    """
    damped = matrix.index_select(0, order).index_select(1, order)
    mean = damped.diagonal().mean()
    damped = torch.eye(len(order), device=matrix.device) if mean == 0 else damped.div_(mean)
    undamped, damping = damped.diagonal().clone(), DAMPING
    while damping <= _MAX_DAMPING:
        damped.diagonal().copy_(undamped + damping)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))  # damped so far, float32 is enough
        if not failed.item():
            factor: torch.Tensor = lower.flip(0, 1)
            return factor
        damping *= 2
    msg = "The gradients of a layer's outputs are not finite on the calibration text. Leave -e2e out of the variant's name."
    raise Unsupported(msg)


def _answers(factor: torch.Tensor, turns: Sequence[slice]) -> list[torch.Tensor]:
    """For each turn but the last, [outputs of the turn, all later ones]: what an error asks of these."""
    found = []
    for own in turns[:-1]:
        later = slice(own.stop, None)
        found.append(torch.linalg.solve_triangular(factor[later, later], factor[own, later], upper=True, left=False))
    return found
