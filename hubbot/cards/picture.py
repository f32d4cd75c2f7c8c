"""Size against quality, as an SVG: one mark a variant, both axes logarithmic, labels that never overlap.

The colours follow the reader's light or dark setting; the picture brings its own background, so it can
be read on either. Families differ in shape as well as in colour. No style attributes and no scripts: the
same drawing stands in a card, on GitHub and in a report with a strict content policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeAlias

from hubbot.cards.escape import line, markup
from hubbot.domain import Family
from hubbot.formats import FAMILIES

__all__ = ["NARROW", "WIDE", "Frame", "Point", "css", "draw", "place_labels"]

_FONT = 12.5
_GLYPH = 0.62 * _FONT  # width of a character, on the broad side

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

# In the light, in the dark, and the shape, of the first family of the table, the second and so on.
_MARKS = (
    ("#0f766e", "#5eead4", '<circle class="{c}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"'),
    ("#b45309", "#fbbf24", '<rect class="{c}" x="{l:.1f}" y="{t:.1f}" width="10" height="10"'),
    ("#6d28d9", "#c4b5fd", '<path class="{c}" d="M{x:.1f} {u:.1f}l6.4 11.2h-12.8z"'),
    ("#0369a1", "#7dd3fc", '<path class="{c}" d="M{x:.1f} {u:.1f}l6.8 6.8l-6.8 6.8l-6.8 -6.8z"'),
    ("#4d7c0f", "#bef264", '<path class="{c}" d="M{l:.1f} {t:.1f}h10l-5 11z"'),
)


def _looks() -> dict[Family, tuple[str, str, str]]:
    return dict(zip(FAMILIES, cycle(_MARKS), strict=False))


def css() -> str:
    """The style of every picture."""
    looks = _looks().items()
    light = "".join(f"--{family}:{colour};" for family, (colour, _, _) in looks)
    dark = "".join(f"--{family}:{colour};" for family, (_, colour, _) in looks)
    filled = "".join(f".pic .{family}{{fill:var(--{family})}}" for family, _ in looks)
    hollow = "".join(f".pic .{family}.off{{stroke:var(--{family})}}" for family, _ in looks)
    return f"""
.pic{{--ground:#fff;--ink:#1c2430;--soft:#5b6675;--grid:#e3e7ed;{light}--best:#be123c}}
@media(prefers-color-scheme:dark){{.pic{{--ground:#141a22;--ink:#e8edf3;--soft:#9fabba;--grid:#2a3441;{dark}--best:#fda4af}}}}
.pic{{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:12.5px;color-scheme:light dark}}
.pic .ground{{fill:var(--ground)}}.pic .grid{{stroke:var(--grid);stroke-width:1}}.pic text{{fill:var(--ink)}}
.pic .tick,.pic .axis{{fill:var(--soft)}}.pic .title{{font-size:16px;font-weight:600}}.pic .leader{{stroke:var(--soft);stroke-width:.8;opacity:.7}}
.pic .front{{fill:none;stroke:var(--soft);stroke-width:1.4;stroke-dasharray:2 5;stroke-linecap:round;opacity:.8}}
{filled}
.pic .off{{fill:var(--ground);stroke-width:1.8}}{hollow}
.pic .label,.pic .best,.pic .refused{{stroke:var(--ground);stroke-width:4px;paint-order:stroke;stroke-linejoin:round}}
.pic .ring{{fill:none;stroke:var(--best);stroke-width:2}}.pic .best{{font-weight:700}}.pic .refused{{fill:var(--soft)}}
""".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    label: str
    family: Family
    size: int  # bytes
    value: float  # what the vertical axis shows
    refused: bool = False
    recommended: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """The drawing's size and where its axes stand, in pixels."""

    width: int = 860
    height: int = 470
    left: int = 76
    top: int = 92

    @property
    def right(self) -> int:
        return self.width - 24

    @property
    def bottom(self) -> int:
        return self.height - 54


WIDE = Frame()
NARROW = Frame(width=400, height=440, left=62, top=118)  # for a phone, where a wide one would shrink out of sight


@dataclass(frozen=True, slots=True)
class _Scale:
    """A logarithmic axis: values low..high onto pixels first..last."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.first + min(share, 1.0) * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round values inside the axis: decades, 1-2-5, or even steps, whichever gives four to nine or so."""
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        decades = [10.0**power for power in range(low, high + 1)]
        if self.high / self.low > 3_000:
            candidates = decades
        elif self.high / self.low > 12:
            candidates = [step * decade for decade in decades for step in (1, 2, 5)]
        else:
            step = _round_step((self.high - self.low) / 5)
            candidates = [step * count for count in range(1, 400)]
        return [value for value in candidates if self.low <= value * 1.0000001 and value <= self.high * 1.0000001]


def draw(
    points: Sequence[Point],
    *,
    title: str,
    axis: str,
    frame: Frame = WIDE,
    standalone: bool = True,
) -> str:
    """An SVG of `points`: file size along, `axis` upward.

    standalone: with its own style, as a file; otherwise the page that holds it brings `css()`. Points
    whose value is not finite are left out; without any point the result is empty. Values of zero or
    less stand at the foot of the axis.
    """
    shown = [point for point in points if math.isfinite(point.value) and point.size > 0]
    if not shown:
        return ""
    across = _axis([point.size / 1e9 for point in shown], frame.left, frame.right)
    up = _axis([point.value for point in shown], frame.bottom, frame.top)
    spots = [(across(point.size / 1e9), up(point.value)) for point in shown]
    parts = [
        f'<rect class="ground" width="{frame.width}" height="{frame.height}" rx="12"/>',
        f'<text class="title" x="20" y="32">{markup(line(title, limit=frame.width // 9))}</text>',
        *_legend(shown, frame),
        *_grid(across, up, axis, frame),
        *_front(shown, spots),
        *_labels(shown, spots, frame),
        *(_mark(point, spot, axis) for point, spot in zip(shown, spots, strict=True)),
    ]
    style = f"<style>{css()}</style>" if standalone else ""
    spoken = markup(line(_spoken(shown, title, axis), limit=2_000))
    size = f'viewBox="0 0 {frame.width} {frame.height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="pic" {size} role="img" aria-label="{spoken}">'
    return f"{head}{style}{''.join(parts)}</svg>\n"


def _axis(values: Sequence[float], first: float, last: float) -> _Scale:
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    room = max((high / low) ** 0.07, 1.04)
    foot = 0.3 if min(values) <= 0 else 1.0  # room below for what cannot stand on a logarithmic axis
    return _Scale(low / room * foot, high * room, first, last)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def _number(value: float) -> str:
    text = f"{value:.3g}"
    return f"{float(text):g}" if 1e-4 <= abs(value) < 1e5 else text.replace("e-0", "e-").replace("e+0", "e")


def _grid(across: _Scale, up: _Scale, axis: str, frame: Frame) -> list[str]:
    parts = []
    for value in across.ticks():
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{frame.bottom + 20}" text-anchor="middle">{_number(value)}</text>'
        )
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{frame.left - 10}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    parts.append(f'<text class="axis" x="{frame.right}" y="{frame.bottom + 42}" text-anchor="end">size in GB →</text>')
    parts.append(f'<text class="axis" x="20" y="56">↑ {markup(line(axis))}</text>')
    return parts


def _shape(family: Family, x: float, y: float, refused: bool = False) -> str:
    return _looks()[family][2].format(c=f"{family}{' off' if refused else ''}", x=x, y=y, l=x - 5, t=y - 5, u=y - 6.8)


def _mark(point: Point, spot: tuple[float, float], axis: str) -> str:
    x, y = spot
    state = ", refused" if point.refused else ", recommended" if point.recommended else ""
    hint = f"<title>{markup(line(point.label))}{state}: {point.size / 1e9:.2f} GB, {markup(line(axis))} {_number(point.value)}</title>"
    tag = _shape(point.family, x, y, point.refused)
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="10.5"/>' if point.recommended else ""
    return f"{ring}{tag}>{hint}</{tag[1:].split(' ', 1)[0]}>"


def _legend(points: Sequence[Point], frame: Frame) -> list[str]:
    """What the marks mean, in rows from the left that fit the frame."""
    families = {point.family for point in points}
    entries = [(f"{_shape(family, 0, 0)}/>", FAMILIES[family].ABOUT.title) for family in FAMILIES if family in families]
    if any(point.recommended for point in points):
        entries.append(('<circle class="ring" r="6.5"/>', "recommended"))
    if any(point.refused for point in points):
        entries.append((f"{_shape(Family.GGUF, 0, 0, True)}/>", "refused"))
    parts, x, y = [], 28.0, 76.0
    for mark, text in entries:
        width = len(text) * _GLYPH
        if x + 14 + width > frame.right:
            x, y = 28.0, y + 21
        parts.append(
            f'<g transform="translate({x:.1f} {y - 4:.1f})">{mark}</g><text x="{x + 13:.1f}" y="{y}">{text}</text>'
        )
        x += width + 42
    return parts


def _front(points: Sequence[Point], spots: Sequence[tuple[float, float]]) -> list[str]:
    """A dotted line through the variants that nothing smaller equals."""
    best, path = math.inf, []
    for point, (x, y) in sorted(zip(points, spots, strict=True), key=lambda pair: (pair[0].size, pair[0].value)):
        if point.value < best and not point.refused:
            best = point.value
            path.append(f"{x:.1f} {y:.1f}")
    return [f'<path class="front" d="M{"L".join(path)}"/>'] if len(path) > 1 else []


def _labels(points: Sequence[Point], spots: Sequence[tuple[float, float]], frame: Frame) -> list[str]:
    labels = [line(point.label, limit=32) for point in points]
    order = sorted(range(len(points)), key=lambda i: (not points[i].recommended, points[i].refused, spots[i][0]))
    boxes = place_labels(labels, spots, order, frame)
    parts = []
    for point, label, (x, y), box in zip(points, labels, spots, boxes, strict=True):
        if box is None:
            continue
        left, top, right, bottom = box
        near = (min(max(x, left), right), min(max(y, top), bottom))
        if math.dist(near, (x, y)) > 14:
            parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near[0]:.1f}" y2="{near[1]:.1f}"/>')
        kind = "best" if point.recommended else "refused" if point.refused else "label"
        parts.append(
            f'<text class="{kind}" x="{(left + right) / 2:.1f}" y="{bottom - 4:.1f}" text-anchor="middle">{markup(label)}</text>'
        )
    return parts


def place_labels(
    labels: Sequence[str], spots: Sequence[tuple[float, float]], order: Sequence[int], frame: Frame = WIDE
) -> list[Box | None]:
    """A box for every label, in pixels, that touches no other box and no mark; None where there is no room.

    Greedy in `order`, with places ever farther from the mark; the mark's tooltip still names a label left out.
    """
    marks: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for x, y in spots]
    placed: list[Box | None] = [None] * len(labels)
    for index in order:
        width = len(labels[index]) * _GLYPH + 4
        taken = [box for box in placed if box] + marks[:index] + marks[index + 1 :]
        free = (
            box
            for box in _places(spots[index], width)
            if _inside(box, frame) and not any(_meet(box, other) for other in taken)
        )
        placed[index] = next(free, None)
    return placed


def _places(spot: tuple[float, float], width: float) -> list[Box]:
    x, y = spot
    half = (_FONT + 5) / 2
    boxes = []
    for gap in (12.0, 20.0, 32.0, 46.0, 64.0):
        side, rise = gap + width / 2, gap + half
        for dx, dy in (
            (side, 0),
            (-side, 0),
            (0, -rise),
            (0, rise),
            (side, -rise),
            (-side, -rise),
            (side, rise),
            (-side, rise),
        ):
            boxes.append((x + dx - width / 2, y + dy - half, x + dx + width / 2, y + dy + half))
    return boxes


def _inside(box: Box, frame: Frame) -> bool:
    """Right of the vertical axis, above the horizontal one, clear of the legend."""
    left, top, right, bottom = box
    return left >= frame.left + 2 and right <= frame.width - 8 and top >= frame.top - 8 and bottom <= frame.bottom - 1


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _spoken(points: Sequence[Point], title: str, axis: str) -> str:
    told = "; ".join(f"{point.label} {point.size / 1e9:.2f} GB, {_number(point.value)}" for point in points)
    return f"{title}. Size and {axis}: {told}."
