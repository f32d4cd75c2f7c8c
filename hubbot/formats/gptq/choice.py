"""Which layers a layout rounds, and which stay as they are: narrow ones, and those that its reader takes no codes for.

A state space's projections and a gate often have a few rows or columns that no reader unpacks. They hold little, so
they stay at 16 bits and the configuration says so; where they hold much, the layout is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hubbot.domain import Gptq
from hubbot.errors import UnsupportedShape
from hubbot.formats.gptq.packing import CODES_PER_UNIT
from hubbot.formats.linears import Linear, Linears
from hubbot.formats.staying import LENT, TAKEN, note_on_staying, weights_in

__all__ = ["Choice", "choose"]

# Shares of the weights that may stay. A group size that fits more layers is mostly there, other rows and columns are not.
_UNPACKED = 1 / 3
_UNGROUPED = 1 / 20
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """rounded: by the name of the weight, a head among them. kept: the layers of blocks that stay as they are, `left` of
    them because the reader takes no codes for them, `taken` because the model's own code takes their weights, `lent` because
    several blocks compute with them. odd: rounded ones whose rows are no multiple of 32.

    outside: module paths of the linear layers that no family touches, a head that stays and routers among them.
    predicting: paths of blocks that predict further tokens, which the model is built without and other readers may be with.
    """

    rounded: Mapping[str, Linear]
    kept: tuple[Linear, ...]
    outside: tuple[str, ...]
    left: tuple[Linear, ...] = ()
    taken: tuple[Linear, ...] = ()
    lent: tuple[Linear, ...] = ()
    odd: tuple[Linear, ...] = ()
    predicting: tuple[str, ...] = ()

    @property
    def kept_kinds(self) -> tuple[str, ...]:
        """Patterns that end a module's path: `mamba\\.x_proj`."""
        kinds = dict.fromkeys(map(_kind, self.kept))
        return tuple(re.escape(kind).replace(r"\#", r"\d+") for kind in kinds)

    @property
    def rounded_kinds(self) -> tuple[str, ...]:
        """Ends of the paths of the modules in blocks that are rounded: `.mamba.out_proj`."""
        return tuple(dict.fromkeys(f".{_in_block(linear)}" for linear in self.rounded.values()))

    @property
    def stack(self) -> str:
        """Path of the list of decoder blocks: `model.layers`."""
        return re.split(r"\.\d+\.", next(iter(self.rounded.values())).module)[0]

    @property
    def note(self) -> str | None:
        """For plan and record."""
        narrow = [linear for linear in self.kept if linear not in (*self.left, *self.taken, *self.lent)]
        staying = [
            (narrow, "their rows or columns do not fit"),
            (self.left, "GPTQModel takes no codes for them"),
            (self.taken, TAKEN),
            (self.lent, LENT),
        ]
        of = (*self.kept, *self.rounded.values())
        told = [note_on_staying(layers, why, of=of) for layers, why in staying]
        if self.odd:
            first = self.odd[0]
            told.append(
                f"{'1 layer has' if len(self.odd) == 1 else f'{len(self.odd)} layers have'} rows that are no multiple of {CODES_PER_UNIT}, which transformers takes and kernels of "
                f"other readers may not, {first.name} [{first.out_features}, {first.in_features}] the first"
            )
        return "; ".join(filter(None, told)) or None


def choose(
    linears: Linears,
    layout: Gptq,
    *,
    head: Linear | None = None,
    left: Sequence[Linear] = (),
    any_rows: bool = False,
) -> Choice:
    """The layers of blocks that fit, and the head where it is asked for. left: layers that its reader takes no codes for.
    any_rows: whether its reader takes as many rows as fill words; they are asked for where too much would stay else.

    Raises UnsupportedShape, naming the first layer, where the others hold too much or the head does not fit.
    """
    known = {linear.name for linear in left}
    layers = [linear for linear in (*linears.blocks, *linears.pieces) if linear.name not in known]
    unpacked, packed = _of_same_kind(layers, _unpacked)
    odd: tuple[Linear, ...] = ()
    if any_rows and weights_in(unpacked) > _UNPACKED * weights_in(layers):
        unpacked, packed = _of_same_kind(layers, lambda linear: _unfilled(linear, layout))
        odd = tuple(filter(_unpacked, packed))
    ungrouped, fitting = _of_same_kind(packed, lambda linear: _ungrouped(linear, layout))
    for unfit, most in ((unpacked, _UNPACKED), (ungrouped, _UNGROUPED)):
        if unfit and weights_in(unfit) > most * weights_in(layers):
            raise UnsupportedShape(_why(unfit, layout, any_rows=any_rows))
    if head and (_unpacked(head) or _ungrouped(head, layout)):
        raise UnsupportedShape(_why([head], layout, any_rows=any_rows))
    rounded = {linear.name for linear in fitting}
    heads = [head] if head else []
    return Choice(
        rounded={each.name: each for each in (*layers, *heads) if each.name in rounded or each is head},
        kept=tuple(
            linear
            for linear in (*linears.blocks, *linears.taken, *linears.lent, *linears.pieces)
            if linear.name not in rounded
        ),
        left=tuple(left),
        taken=linears.taken,
        lent=linears.lent,
        odd=odd,
        predicting=linears.predicting,
        outside=((linears.head_module,) if linears.head_module and not head else ())
        + linears.outside
        + linears.routers,
    )


def _of_same_kind(linears: Sequence[Linear], unfit: Callable[[Linear], bool]) -> tuple[list[Linear], list[Linear]]:
    """The layers that do not fit, with those of the same place in other blocks, by which a configuration tells them; the rest."""
    kinds = {_kind(linear) for linear in linears if unfit(linear)}
    with_them = [linear for linear in linears if _kind(linear) in kinds]
    return with_them, [linear for linear in linears if _kind(linear) not in kinds]


def _kind(linear: Linear) -> str:
    return _NUMBER.sub("#", _in_block(linear))


def _in_block(linear: Linear) -> str:
    """`model.layers.3.mlp.experts.7.up_proj` -> `mlp.experts.7.up_proj`."""
    return re.sub(r"^.*?\.\d+\.", "", linear.module)


def _unpacked(linear: Linear) -> bool:
    return bool(linear.in_features % CODES_PER_UNIT or linear.out_features % CODES_PER_UNIT)


def _unfilled(linear: Linear, layout: Gptq) -> bool:
    """Whether its codes or zero points do not fill words."""
    return bool(linear.in_features % CODES_PER_UNIT or linear.out_features * layout.bits % 32)


def _ungrouped(linear: Linear, layout: Gptq) -> bool:
    return layout.group_size != -1 and linear.in_features % layout.group_size != 0


def _why(layers: Sequence[Linear], layout: Gptq, *, any_rows: bool) -> str:
    def unpacked(linear: Linear) -> bool:
        return _unfilled(linear, layout) if any_rows else _unpacked(linear)

    linear = next((each for each in layers if unpacked(each) or _ungrouped(each, layout)), layers[0])
    if unpacked(linear):
        inputs = linear.in_features % CODES_PER_UNIT
        what = f"{linear.in_features} inputs" if inputs else f"{linear.out_features} outputs"
        return (
            f"{linear.name} has {what}; GPTQ packs {CODES_PER_UNIT} codes at a time and needs a multiple of that, "
            "and such layers hold too much of the model to stay at 16 bits. Leave the variant out for this model."
            f"{'' if inputs else _without_limit(linear, layout, any_rows=any_rows)}"
        )
    columns = linear.in_features
    fitting = [size for size in (256, 128, 64, 32, 16) if size < layout.group_size and columns % size == 0]
    return (
        f"{linear.name} has {columns} columns, not a multiple of the group size {layout.group_size}. "
        f"Use group size {fitting[0] if fitting else -1} instead."
    )


def _without_limit(linear: Linear, layout: Gptq, *, any_rows: bool) -> str:
    """What takes such rows."""
    packed = "" if any_rows or _unfilled(linear, replace(layout, bits=4)) else "w4a16-128g, of the same codes, and "
    return f" {packed}GGUF types such as Q8_0 have no such limit."
