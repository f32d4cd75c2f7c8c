"""Files of others in a card: what `hubbot evaluate --json` measured of them on the tokens of the record.

They are kept as OUT/beside.json, so that every later rendering has them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from hubbot.cards import figures
from hubbot.cards.escape import code, inline
from hubbot.cards.picture import Point, closer_and_no_larger
from hubbot.cards.scores import measured_points
from hubbot.confine.stage import decode, encode
from hubbot.domain import Measured, Record
from hubbot.errors import BadRecord

__all__ = ["FILE", "beside_table", "keep_beside", "kept_beside"]

FILE = "beside.json"


def keep_beside(paths: Sequence[Path], record: Record, out: Path) -> None:
    """Take answers of `hubbot evaluate --json` into the output folder, in the place of earlier ones.

    Raises BadRecord for what is no such answer, or one on other tokens than the record's.
    """
    found = [_read(path) for path in paths]
    for path, one in zip(paths, found, strict=True):
        if not _same_tokens(one, record):
            msg = (
                f"{path} was measured on other tokens than {out}, so the two cannot stand in one table. Run `hubbot evaluate` "
                "with the evaluation text, context and windows of that run."
            )
            raise BadRecord(msg)
    whole = replace(found[0], conversations=None)  # the card's table is of the evaluation text
    for one in found[1:]:
        whole = replace(
            whole,
            scores=whole.scores | one.scores,
            sizes=whole.sizes | one.sizes,
            families=whole.families | one.families,
        )
    (out / FILE).write_bytes(encode(Measured, whole))


def kept_beside(record: Record, out: Path) -> Measured | None:
    """What was kept; None where nothing was, or the record was measured anew on other tokens since."""
    if not (out / FILE).is_file():
        return None
    found = _read(out / FILE)
    return found if _same_tokens(found, record) else None


def beside_table(found: Measured, ours: Sequence[Point]) -> str:
    """A Markdown table, the largest first. ours: the files that the card is of."""
    head = [("File", ":--"), ("Size", "--:"), ("Change", "--:"), ("KL mean", "--:"), ("Same top token", "--:")]
    theirs = {point.label: point for point in measured_points(found)}
    rows = []
    for name, score in sorted(found.scores.items(), key=lambda item: -found.sizes[item[0]])[:100]:
        rows.append(
            [
                code(name, cell=True),
                figures.size(found.sizes[name]),
                figures.ratio(score.ratio, score.ratio_interval),
                figures.nats(score.kld.mean, score.kld_interval),
                figures.percent(score.top1),
                _against(theirs[name], ours) if name in theirs else None,
            ]
        )
    return figures.table([*head, ("Against the files here", ":--")], rows)


def _against(theirs: Point, ours: Sequence[Point]) -> str:
    if better := closer_and_no_larger(theirs, ours):
        return f"{inline(min(better, key=lambda point: point.value).label)} is closer and no larger"
    if beaten := [point for point in ours if closer_and_no_larger(point, [theirs])]:
        return f"closer than {inline(max(beaten, key=lambda point: point.size).label)}, and no larger"
    return "no sure difference at its size"


def _same_tokens(found: Measured, record: Record) -> bool:
    return record.evaluation is not None and found.evaluation.sha256 == record.evaluation.sha256


def _read(path: Path) -> Measured:
    try:
        found = decode(Measured, path.read_bytes())
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}). Name what `hubbot evaluate … --json > FILE` has written."
        raise BadRecord(msg) from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:60] for part in problem["loc"]) or "the file"
        msg = f"{path} is no answer of `hubbot evaluate --json`: {where}: {problem['msg'][:200]}. Make it again with this hubbot."
        raise BadRecord(msg) from None
    if not found.scores or found.scores.keys() != found.sizes.keys() or found.sizes.keys() != found.families.keys():
        msg = f"{path} names no files, or scores, sizes and families of different ones. Make it again with `hubbot evaluate --json`."
        raise BadRecord(msg)
    return found
