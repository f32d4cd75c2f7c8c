"""Files of others in the card: only on the same tokens, and no more said of them than is sure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hubbot.cards.beside import FILE, beside_table, keep_beside, kept_beside
from hubbot.cards.card import quality_points, render_card
from hubbot.confine.stage import encode
from hubbot.domain import Family, Measured, Record, Score, WindowMeans
from hubbot.errors import BadRecord
from tests.cards.test_card import GGUF, repo, seen
from tests.records import HOSTILE, record, score


def on_windows(kld: list[float]) -> Score:
    windows = WindowMeans(tokens=(9,) * len(kld), kld=tuple(kld), change=(0.0,) * len(kld))
    found = score(sum(kld) / len(kld))
    return replace(found, windows=windows)


HARD = [0.02, 0.05] * 8


def with_windows(made: Record) -> Record:
    variants = tuple(replace(v, score=on_windows(HARD)) if v.name == "Q4_K_M" else v for v in made.variants)
    return replace(made, variants=variants)


def measured(names: dict[str, list[float]], size: int) -> Measured:
    made = record()
    assert made.evaluation is not None
    assert made.base is not None
    return Measured(
        evaluation=made.evaluation,
        base=made.base,
        scores={name: on_windows(kld) for name, kld in names.items()},
        sizes=dict.fromkeys(names, size),
        families=dict.fromkeys(names, Family.GGUF),
    )


def write(found: Measured, path: Path) -> Path:
    path.write_bytes(encode(Measured, found))
    return path


def test_a_file_is_closer_or_beaten_only_where_the_same_windows_say_so() -> None:
    made = with_windows(record())
    ours = [point for point in quality_points(made, None) if point.label == "Q4_K_M"]
    names = {
        "better": [kld - 0.003 for kld in HARD],
        "worse": [kld + 0.003 for kld in HARD],
        "chance": [0.049, 0.02] * 8,
    }
    table = beside_table(measured(names, ours[0].size), ours)
    told = {row.split("|")[1].strip(" `"): row.split("|")[-2].strip() for row in table.splitlines()[2:]}
    assert told["better"] == "closer than Q4\\_K\\_M, and no larger"
    assert told["worse"] == "Q4\\_K\\_M is closer and no larger"
    assert told["chance"] == "no sure difference at its size"
    larger = beside_table(measured({"better": names["better"]}, 2 * ours[0].size), ours)
    assert "no sure difference" in larger


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_name_acts_on_nothing(name: str) -> None:
    found = seen(render_card(record(), repo(GGUF), beside=measured({name: HARD}, 5)))
    harmless = seen(render_card(record(), repo(GGUF), beside=measured({"theirs": HARD}, 5)))
    assert found.tags == harmless.tags


def test_only_what_was_measured_on_the_records_tokens_is_kept(tmp_path: Path) -> None:
    found = measured({"theirs": HARD}, 5)
    more = measured({"more": HARD}, 7)
    keep_beside([write(found, tmp_path / "a"), write(more, tmp_path / "b")], record(), tmp_path)
    kept = kept_beside(record(), tmp_path)
    assert kept is not None
    assert kept.sizes == {"theirs": 5, "more": 7}
    assert kept.scores["theirs"] == found.scores["theirs"]
    made = record()
    assert made.evaluation is not None
    anew = replace(made, evaluation=replace(made.evaluation, sha256="1" * 64))
    assert kept_beside(anew, tmp_path) is None
    with pytest.raises(BadRecord, match="on other tokens than"):
        keep_beside([tmp_path / "a"], anew, tmp_path)


@pytest.mark.parametrize("spoilt", ["{}", "[", "no json", '{"scores": 1}', "none"])
def test_what_is_no_answer_is_refused_in_a_sentence(spoilt: str, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    if spoilt != "none":
        path.write_text(spoilt)
    with pytest.raises(BadRecord, match="hubbot evaluate"):
        keep_beside([path], record(), tmp_path)
    assert not (tmp_path / FILE).exists()


def test_names_of_one_kind_and_sizes_of_another_are_refused(tmp_path: Path) -> None:
    values = json.loads(encode(Measured, measured({"theirs": HARD}, 5)))
    (tmp_path / "a").write_text(json.dumps(values | {"sizes": {"others": 5}}))
    with pytest.raises(BadRecord, match="of different ones"):
        keep_beside([tmp_path / "a"], record(), tmp_path)
