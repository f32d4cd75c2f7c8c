"""hubbot.json: what is written can be read, and what a stranger writes cannot harm."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hubbot import domain
from hubbot.domain import Record, Score, VariantRecord, WindowMeans
from hubbot.errors import BadRecord
from hubbot.record import schema as wire
from hubbot.record.file import FILE_NAME, MAX_BYTES, from_json, read_record, schema, to_json, write_record
from tests.records import hostile_record, record


def as_written(made: Record) -> Record:
    """What reading gives back: the source's folder is a name, without its place."""
    return replace(made, source=replace(made.source, folder=made.source.folder.rsplit("/", 1)[-1]))


def finite(made: Record) -> Record:
    return replace(made, variants=tuple(v for v in made.variants if v.name != "gptq-2bit-64g"))


def test_a_record_comes_back_as_it_was() -> None:
    made = finite(record())
    assert from_json(to_json(made)) == as_written(made)


def test_a_second_trip_changes_no_byte() -> None:
    for made in (record(), hostile_record()):
        text = to_json(made)
        assert to_json(from_json(text)) == text


def test_written_records_keep_the_published_schema() -> None:
    drawn = schema()
    jsonschema.Draft202012Validator.check_schema(drawn)
    for made in (record(), hostile_record()):
        jsonschema.validate(json.loads(to_json(made)), drawn)


@pytest.mark.parametrize("spoil", [{"schema": 2}, {"surprise": 1}, {"variants": None}])
def test_the_published_schema_refuses_what_reading_refuses(spoil: dict[str, Any]) -> None:
    data = json.loads(to_json(record())) | spoil
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema())
    with pytest.raises(BadRecord):
        from_json(json.dumps(data))


def test_the_score_is_flat_in_the_file() -> None:
    entry = json.loads(to_json(record()))["variants"][0]
    assert entry["perplexity"] > 0
    assert set(entry["kld"]) == {"mean", "stderr", "median", "p99", "max"}
    assert {"stderr", "ratio", "ratio_stderr", "top1", "rms_dp"} <= set(entry)
    assert "score" not in entry


def test_windows_and_intervals_come_back_and_must_be_of_the_same_windows() -> None:
    first = record().variants[0]
    windows = WindowMeans(tokens=(5, 6), kld=(0.1, 0.2), change=(-0.1, 0.0))
    kept = replace(first.score, windows=windows, kld_interval=(0.1, 0.2), ratio_interval=(0.9, 1.0))
    text = to_json(replace(record(), variants=(replace(first, score=kept),)))
    assert from_json(text).variants[0].score == kept
    data = json.loads(text)
    data["variants"][0]["windows"]["kld"].append(0.3)
    with pytest.raises(BadRecord, match="2, 3 and 2 windows"):
        from_json(json.dumps(data))


def test_what_was_not_measured_is_null_and_stays_unmeasured() -> None:
    made = replace(
        record(), variants=(replace(record().variants[0], score=None, speed=None),), base=None, evaluation=None
    )
    data = json.loads(to_json(made))
    assert data["base"] is None
    assert {data["variants"][0][key] for key in ("perplexity", "ratio", "kld", "top1", "speed")} == {None}
    assert from_json(json.dumps(data)).variants[0].score is None


def test_numbers_that_are_not_finite_become_null_and_are_not_taken_for_unmeasured() -> None:
    plain = record().variants[0]
    assert plain.score is not None
    broken = replace(plain, score=replace(plain.score, perplexity=math.inf, ratio=math.nan))
    text = to_json(replace(record(), variants=(broken,)))
    assert "NaN" not in text
    assert "Infinity" not in text
    read = from_json(text).variants[0].score
    assert read is not None
    assert math.isnan(read.perplexity)
    assert read.kld == plain.score.kld


def test_every_noun_of_the_domain_has_its_place_in_the_file() -> None:
    pairs = {
        name: getattr(domain, name)
        for name in "Source TextRecord Perplexity Divergence File LoadCheck Trial Speed Sample Peak".split()
    }
    for name, noun in pairs.items():
        assert set(getattr(wire, f"{name}Json").model_fields) == {field.name for field in fields(noun)}, name
    flat = {field.name for field in fields(VariantRecord)} - {"score"} | {field.name for field in fields(Score)}
    assert set(wire.VariantJson.model_fields) == flat
    assert set(wire.RecordJson.model_fields) - {"version"} | {"schema"} == {field.name for field in fields(Record)}


def spoiled(path: str, value: Any) -> str:
    data = json.loads(to_json(record()))
    *parents, last = path.split("/")
    place: Any = data
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[int(last) if last.isdigit() else last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a//b", "a/./b", "a\\b", "a\x00b", "", "x" * 1_025]
)
def test_a_path_out_of_the_folder_is_refused(path: str) -> None:
    with pytest.raises(BadRecord, match="path"):
        from_json(spoiled("variants/0/files/0/path", path))
    with pytest.raises(BadRecord):
        from_json(spoiled("source/files", {path: "0" * 64}))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("variants/0/name", "../up"),
        ("variants/0/name", ".hidden"),
        ("variants/0/name", "a\nb"),
        ("variants/0/status", "splendid"),
        ("variants/0/family", "zip"),
        ("variants/0/files/0/size", -1),
        ("variants/0/files/0/size", "12"),
        ("variants/0/files/0/sha256", "beef"),
        ("variants/0/top1", 1.5),
        ("variants/0/perplexity", -3.0),
        ("variants/0/perplexity", True),
        ("variants/0/surprise", 1),
        ("source/license", ["mit"]),
        ("command", "x" * 70_000),
        ("timings", {"sweep": -1.0}),
        ("schema", "1"),
        ("schema", True),
        ("schema", 1.5),
    ],
)
def test_anything_outside_the_schema_is_refused_by_its_place(place: str, value: Any) -> None:
    with pytest.raises(BadRecord) as error:
        from_json(spoiled(place, value))
    assert place.rsplit("/", 1)[-1] in str(error.value)


def test_another_schema_version_is_named() -> None:
    with pytest.raises(BadRecord, match=r"schema '7'; this hubbot reads schema 1"):
        from_json('{"schema": 7, "anything": {}}')


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"schema": NaN}', "[" * 100_000, '{"schema": 1}', '{"a":' * 5_000, "\ud800"]
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(BadRecord):
        from_json(text)


def test_nan_written_as_a_number_is_refused() -> None:
    text = to_json(record()).replace('"bits_per_weight": 16.0', '"bits_per_weight": NaN')
    assert "NaN" in text
    with pytest.raises(BadRecord):
        from_json(text)


def test_a_variant_listed_twice_is_refused() -> None:
    data = json.loads(to_json(record()))
    data["variants"].append(data["variants"][0])
    with pytest.raises(BadRecord, match="BF16"):
        from_json(json.dumps(data))


def test_a_file_above_the_limit_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(BadRecord, match="64 MiB"):
        read_record(tmp_path)


def test_a_missing_record_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="hubbot run"):
        read_record(tmp_path)


def test_writing_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    write_record(replace(record(), command="second"), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]
    assert read_record(tmp_path).command == "second"


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_record(record(), tmp_path)
    twice = replace(record(), variants=(record().variants[0],) * 2)
    with pytest.raises(BadRecord):
        write_record(twice, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]
    assert len(read_record(tmp_path).variants) == len(record().variants)


def test_the_place_of_the_source_on_the_machine_is_not_published() -> None:
    assert "/srv/models" not in to_json(record())


def test_lone_surrogates_do_not_stop_writing() -> None:
    text = to_json(replace(record(), command="a \ud800 b"))
    assert from_json(text).command == "a ? b"
