"""Size against quality, as an SVG: one mark a variant with its standard error, labels that never overlap.

The colours follow the reader's light or dark setting; the picture brings its own background, so it can
be read on either. Families differ in shape as well as in colour. No style attributes and no scripts: the
same drawing stands in a card, on GitHub and in a report with a strict content policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from hubbot.cards import figures
from hubbot.cards.axis import Axis, axis_of, plain
from hubbot.cards.escape import line, markup
from hubbot.cards.labels import GLYPH, WIDE, Box, Frame, place_labels
from hubbot.domain import Family
from hubbot.formats import FAMILIES
from hubbot.release.paired import Means, surely_less

__all__ = ["CHANGE", "DIVERGENCE", "Measure", "Point", "closer_and_no_larger", "css", "draw", "known", "surely_below"]

_GROWTHS = 12  # how often a frame may grow by 60 pixels to make room for labels

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
.pic .ground{{fill:var(--ground)}}.pic .grid{{stroke:var(--grid);stroke-width:1}}.pic .zero{{stroke:var(--soft)}}.pic .bar{{stroke:var(--soft);stroke-width:1.4;opacity:.7}}.pic text{{fill:var(--ink)}}
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
    error: float | None = None  # its standard error, where it is known
    means: Means | None = None  # the value, or what rises and falls with it, window by window

    @property
    def bar(self) -> float:
        return self.error or 0.0

    refused: bool = False
    recommended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What the vertical axis shows, in the words and units of the tables."""

    axis: str
    shown: Callable[[float], str | None]  # a value, as tables have it
    error: Callable[[float], str | None]  # its standard error
    tick: Callable[[float], str] = plain  # a round value beside the axis


DIVERGENCE = Measure(
    axis="KL mean: divergence from the original, nats per token", shown=figures.nats, error=figures.nats
)
CHANGE = Measure(
    axis="change of the perplexity against the original",
    shown=lambda moved: figures.ratio(1 + moved),
    error=figures.percent,
    tick=lambda moved: f"{'+' if moved > 0 else ''}{plain(moved * 100)} %" if moved else "0 %",
)


def draw(
    points: Sequence[Point], *, title: str, measure: Measure = DIVERGENCE, frame: Frame = WIDE, standalone: bool = True
) -> str:
    """An SVG of `points`: file size along, `measure` upward, a bar of one standard error up and down.

    standalone: with its own style, as a file; otherwise the page that holds it brings `css()`. Points
    whose value is not finite are left out; without any point the result is empty. A drawing that has no
    place for a label grows until it has.
    """
    shown = [point for point in points if math.isfinite(point.value) and point.size > 0]
    if not shown:
        return ""
    frame, spots, boxes = _laid_out(shown, frame)
    across, up = _axes(shown, frame)
    parts = [
        f'<rect class="ground" width="{frame.width}" height="{frame.height}" rx="12"/>',
        f'<text class="title" x="20" y="32">{markup(line(title, limit=frame.width // 9))}</text>',
        *_legend(shown, frame),
        *_grid(across, up, measure, frame),
        *_bars(shown, spots, up),
        *_front(shown, spots),
        *_labels(shown, spots, boxes),
        *(_mark(point, spot, measure) for point, spot in zip(shown, spots, strict=True)),
    ]
    style = f"<style>{css()}</style>" if standalone else ""
    spoken = markup(line(_spoken(shown, title, measure), limit=4_000))
    size = f'viewBox="0 0 {frame.width} {frame.height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="pic" {size} role="img" aria-label="{spoken}">'
    return f"{head}{style}{''.join(parts)}</svg>\n"


def _axes(points: Sequence[Point], frame: Frame) -> tuple[Axis, Axis]:
    sizes = [float(point.size) for point in points]
    across = axis_of(sizes, [0.0] * len(sizes), frame.left, frame.right)
    return across, axis_of([p.value for p in points], [p.bar for p in points], frame.bottom, frame.top)


def _laid_out(
    points: Sequence[Point], frame: Frame, growths: int = _GROWTHS
) -> tuple[Frame, list[tuple[float, float]], list[Box | None]]:
    """A frame high enough for every label, where each mark stands in it, and each label's box."""
    labels = [line(point.label, limit=32) for point in points]
    across, up = _axes(points, frame)
    spots = [(across(point.size), up(point.value)) for point in points]
    order = sorted(range(len(points)), key=lambda i: (not points[i].recommended, points[i].refused, spots[i][0]))
    boxes = place_labels(labels, spots, order, frame)
    if None in boxes and growths:
        return _laid_out(points, replace(frame, height=frame.height + 60), growths - 1)
    return frame, spots, boxes


def _grid(across: Axis, up: Axis, measure: Measure, frame: Frame) -> list[str]:
    parts = []
    for value in across.ticks(room=58):
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{frame.bottom + 20}" text-anchor="middle">{_round_size(value)}</text>'
        )
    for value in up.ticks(room=24):
        y = up(value)
        kind = "grid" if value else "grid zero"
        parts.append(f'<line class="{kind}" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{frame.left - 8}" y="{y + 4:.1f}" text-anchor="end">{measure.tick(value)}</text>'
        )
    parts.append(f'<text class="axis" x="{frame.right}" y="{frame.bottom + 42}" text-anchor="end">size →</text>')
    parts.append(f'<text class="axis" x="20" y="56">↑ {markup(line(measure.axis))}</text>')
    return parts


def _round_size(count: float) -> str:
    number, _, unit = (figures.size(count) or "").partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def _bars(points: Sequence[Point], spots: Sequence[tuple[float, float]], up: Axis) -> list[str]:
    """One standard error up and down, where it can be seen beside the mark."""
    bars = [
        (x, up(point.value + point.bar), up(point.value - point.bar))
        for point, (x, _) in zip(points, spots, strict=True)
    ]
    return [f'<path class="bar" d="M{x:.1f} {top:.1f}V{foot:.1f}"/>' for x, top, foot in bars if foot - top > 12]


def _shape(family: Family, x: float, y: float, refused: bool = False) -> str:
    return _looks()[family][2].format(c=f"{family}{' off' if refused else ''}", x=x, y=y, l=x - 5, t=y - 5, u=y - 6.8)


def _told(point: Point, measure: Measure) -> str:
    error = f" ± {measure.error(point.error)}" if point.error else ""
    return f"{figures.size(point.size)}, {measure.shown(point.value)}{error}"


def _mark(point: Point, spot: tuple[float, float], measure: Measure) -> str:
    x, y = spot
    state = ", refused" if point.refused else ", recommended" if point.recommended else ""
    hint = f"<title>{markup(line(point.label))}{state}: {_told(point, measure)}</title>"
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
        width = len(text) * GLYPH
        if x + 14 + width > frame.right:
            x, y = 28.0, y + 21
        parts.append(
            f'<g transform="translate({x:.1f} {y - 4:.1f})">{mark}</g><text x="{x + 13:.1f}" y="{y}">{text}</text>'
        )
        x += width + 42
    return parts


def _front(points: Sequence[Point], spots: Sequence[tuple[float, float]]) -> list[str]:
    """A dotted line through the variants that are closer than everything smaller, by more than the errors explain."""
    best, path = None, []
    for point, (x, y) in sorted(zip(points, spots, strict=True), key=lambda pair: (pair[0].size, pair[0].value)):
        if not point.refused and (best is None or surely_below(point, best)):
            best = point
            path.append(f"{x:.1f} {y:.1f}")
    return [f'<path class="front" d="M{"L".join(path)}"/>'] if len(path) > 1 else []


def known(error: float) -> float | None:
    return error if math.isfinite(error) else None


def surely_below(one: Point, other: Point) -> bool:
    """Whether the interval of the difference on the same windows says so.

    Of records that keep no windows: whether it is more than twice its standard error, taken as that of unrelated numbers.
    """
    if one.means and other.means:
        return surely_less(one.means, other.means)
    if one.error is None or other.error is None:
        return False
    return other.value - one.value > 2 * math.hypot(one.error, other.error)


def closer_and_no_larger(point: Point, others: Iterable[Point]) -> list[Point]:
    return [other for other in others if other.size <= point.size and surely_below(other, point)]


def _labels(points: Sequence[Point], spots: Sequence[tuple[float, float]], boxes: Sequence[Box | None]) -> list[str]:
    parts = []
    for point, (x, y), box in zip(points, spots, boxes, strict=True):
        if box is None:
            continue
        left, top, right, bottom = box
        near = (min(max(x, left), right), min(max(y, top), bottom))
        if math.dist(near, (x, y)) > 14:
            parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near[0]:.1f}" y2="{near[1]:.1f}"/>')
        kind = "best" if point.recommended else "refused" if point.refused else "label"
        label = markup(line(point.label, limit=32))
        parts.append(
            f'<text class="{kind}" x="{(left + right) / 2:.1f}" y="{bottom - 4:.1f}" text-anchor="middle">{label}</text>'
        )
    return parts


def _spoken(points: Sequence[Point], title: str, measure: Measure) -> str:
    told = "; ".join(f"{point.label} {_told(point, measure)}" for point in points)
    return f"{title}. Size and {measure.axis}: {told}."
