"""A plan in several parts becomes one release: one record and one folder, published once to the server of tests/hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubbot.action.inputs import Inputs
from hubbot.action.outcome import Outcome
from hubbot.action.parts import joined, read_parts
from hubbot.action.step import act
from hubbot.action.work import work
from hubbot.domain import File, Record, Status, VariantRecord
from hubbot.errors import BadRecord, HubFailed
from hubbot.record.file import FILE_NAME, read_record, write_record
from hubbot.settings import load_settings
from tests.action.runner import read_outputs
from tests.hub import Hub
from tests.records import record, sha, variant

PLAN = {"1-of-2": ("Q4_K_M", "gptq-4bit-128g"), "2-of-2": ("Q8_0", "bnb-nf4")}
NAMES = tuple(name for part in PLAN.values() for name in part)
REPOS = ("ada/Testling-1B-GGUF", "ada/Testling-1B-GPTQ", "ada/Testling-1B-bnb-4bit")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def small(name: str, folder: Path, imatrix: str) -> VariantRecord:
    """A variant with real, tiny files; GGUF variants come with the importance matrix."""
    plain = variant(name)
    texts = {file.path: f"{file.path} of {name}" for file in plain.files}
    if plain.family == "gguf":
        texts["gguf/Testling-1B.imatrix"] = imatrix
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    files = tuple(File(path=path, size=len(text), sha256=sha(text)) for path, text in texts.items())
    return replace(plain, files=files, status=Status.PASSED)


def make_part(folder: Path, names: tuple[str, ...], imatrix: str = "importance", **changes: Any) -> Record:
    """What a quantize job leaves."""
    (folder / ".work" / "source").mkdir(parents=True, exist_ok=True)
    made = replace(record(), variants=tuple(small(name, folder, imatrix) for name in names), **changes)
    write_record(made, folder)
    return made


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "release"
    for part, names in PLAN.items():
        make_part(folder / part, names)
    return folder


@pytest.fixture
def publish(hub: Hub, release: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    token = hub.user("ada")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

    def call(mode: str = "pr", variants: tuple[str, ...] = NAMES, parts: tuple[str, ...] = tuple(PLAN)) -> Outcome:
        flags = {"publish.mode": mode, "publish.namespace": "ada", "variants": ",".join(variants), "out": release}
        settings = load_settings(None, flags)
        return work(
            Inputs(
                model="example-org/Testling-1B",
                command="publish",
                settings=settings,
                token=token,
                fail_on_refused=True,
                parts=parts,
            )
        )

    return call


def commits(hub: Hub) -> int:
    return sum(len(repo.commits) for repo in hub.store.repos.values())


@pytest.mark.parametrize("mode", ["pr", "main"])
def test_the_parts_are_published_as_one_release_and_a_rerun_adds_no_commit(hub, release, publish, mode):
    outcome = publish(mode)
    assert [one.name for one in outcome.record.variants] == list(NAMES)
    assert len(outcome.pull_requests if mode == "pr" else outcome.published) == 3
    revision = "refs/pr/1" if mode == "pr" else "main"
    files = set(hub.files(REPOS[0], revision))
    assert {"Testling-1B-Q4_K_M.gguf", "Testling-1B-Q8_0.gguf", "Testling-1B.imatrix"} <= files
    for repo in REPOS:
        told = json.loads(hub.read(repo, FILE_NAME, revision))
        assert [one["name"] for one in told["variants"]] == list(NAMES), "every repo holds the whole record"
    before = commits(hub)
    again = publish(mode)
    assert commits(hub) == before
    assert (again.pull_requests, again.published) == (outcome.pull_requests, outcome.published)


def test_a_rerun_that_finds_the_weights_made_again_adds_no_commit(hub, release, publish):
    publish("main")
    before = commits(hub)
    for part, names in PLAN.items():
        for name in names:
            small(name, release / part, "importance")
    assert [one.status for one in publish("main").record.variants] == [Status.PUBLISHED] * 4
    assert commits(hub) == before


def test_a_rerun_after_the_merge_makes_the_branches_although_the_weights_are_gone(hub, release, publish):
    names = ("gptq-4bit-128g", "gptq-8bit-128g")
    for part, name in zip(PLAN, names, strict=True):
        make_part(release / part, (name,))
    publish(variants=names)
    hub.merge_pull(REPOS[1], 1)
    before = set(hub.repo(REPOS[1]).refs)
    publish(variants=names)
    [made] = {ref.removeprefix("refs/heads/") for ref in set(hub.repo(REPOS[1]).refs) - before}
    assert made in names
    assert "model.safetensors" in hub.files(REPOS[1], made)


def test_weights_and_work_are_removed_once_they_are_published_and_records_stay(release, publish):
    publish()
    left = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}
    assert not [path for path in left if "/gguf/" in f"/{path}" or "safetensors" in path or ".work" in path]
    assert {"hubbot.json", "report.html", "receipts.json", "1-of-2/hubbot.json", "2-of-2/hubbot.json"} <= left
    assert not list(release.rglob(".work"))


def test_weights_stay_where_publishing_failed(hub, release, publish):
    hub.fail("POST .*GPTQ/commit/", status=403)
    with pytest.raises(HubFailed):
        publish("main")
    assert (release / "1-of-2" / "gguf" / "Testling-1B-Q4_K_M.gguf").exists()
    assert not (release / "receipts.json").exists()


def test_what_an_earlier_plan_left_beside_the_parts_is_not_published(hub, release, publish):
    make_part(release / "1-of-1", ("Q2_K",))
    outcome = publish("main")
    assert "Q2_K" not in [one.name for one in outcome.record.variants]
    assert "Testling-1B-Q2_K.gguf" not in hub.files(REPOS[0])


def test_parts_that_artifacts_brought_are_found_by_the_end_of_their_names(tmp_path):
    for part, names in {"1-of-12": ("Q4_K_M",), "11-of-12": ("Q8_0",)}.items():
        make_part(tmp_path / f"release-org--name-0123abcd-{part}", names)
    found = read_parts(tmp_path, ["1-of-12", "11-of-12"])
    assert [one.record.variants[0].name for one in found] == ["Q4_K_M", "Q8_0"]


def test_a_part_that_is_missing_stops_the_publication(hub, publish):
    with pytest.raises(BadRecord, match=r"no part 3-of-3.*Run the quantize job"):
        publish(parts=("1-of-2", "3-of-3"))
    assert commits(hub) == 0


def test_parts_that_hold_other_variants_than_the_plan_are_refused(hub, publish):
    with pytest.raises(BadRecord, match="the plan asked for Q4_K_M"):
        publish(variants=("Q4_K_M",))
    assert commits(hub) == 0


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("source", {"source": replace(record().source, files={"model.safetensors": sha("others")})}),
        ("source", {"source": replace(record().source, revision="f" * 40)}),
        ("configuration", {"config": {"calibration": {"samples": 1}}}),
        ("evaluation", {"evaluation": replace(record().evaluation, sha256=sha("another text"))}),
        ("calibration", {"calibration": replace(record().calibration, sha256=sha("another text"))}),
        ("version of hubbot", {"hubbot": {"version": "0.0.9", "commit": None}}),
    ],
)
def test_parts_made_under_other_conditions_never_become_one_release(tmp_path, what, changes):
    make_part(tmp_path / "1-of-2", ("Q4_K_M",))
    make_part(tmp_path / "2-of-2", ("Q8_0",), **changes)
    with pytest.raises(BadRecord, match=f"another {what}"):
        joined(read_parts(tmp_path, ["1-of-2", "2-of-2"]), ["Q4_K_M", "Q8_0"])


def test_a_part_that_needed_no_calibration_joins_one_that_did(tmp_path):
    make_part(tmp_path / "1-of-2", ("bnb-nf4",), calibration=None)
    made = make_part(tmp_path / "2-of-2", ("Q4_K_M",))
    found = joined(read_parts(tmp_path, ["1-of-2", "2-of-2"]), ["bnb-nf4", "Q4_K_M"])
    assert found.calibration == made.calibration


def test_times_are_added_up_peaks_are_the_highest_and_machines_say_what_they_share(tmp_path):
    one = record()
    make_part(tmp_path / "1-of-2", ("Q4_K_M",), timings={"sweep": 10.0}, hardware={"cpu": "one", "cores": 8})
    make_part(
        tmp_path / "2-of-2",
        ("Q8_0",),
        timings={"sweep": 5.0, "fetch": 1.0},
        hardware={"cpu": "two", "cores": 8},
        peak=replace(one.peak, rss=one.peak.rss + 1, disk=None),
    )
    found = joined(read_parts(tmp_path, ["1-of-2", "2-of-2"]), ["Q4_K_M", "Q8_0"])
    assert found.timings == {"sweep": 15.0, "fetch": 1.0}
    assert found.hardware == {"cpu": None, "cores": 8}
    assert found.peak == replace(one.peak, rss=one.peak.rss + 1)


def test_files_that_differ_under_one_name_are_both_published(hub, release, publish, tmp_path):
    """Two machines may round an importance matrix differently; each record's file is the one that was used."""
    for name in PLAN["2-of-2"]:
        small(name, release / "2-of-2", "rounded otherwise")
    other = replace(
        read_record(release / "2-of-2"),
        variants=tuple(small(n, release / "2-of-2", "otherwise") for n in PLAN["2-of-2"]),
    )
    write_record(other, release / "2-of-2")
    publish("main")
    assert hub.read(REPOS[0], "Testling-1B.imatrix") == b"importance"
    assert hub.read(REPOS[0], "Testling-1B-2-of-2.imatrix") == b"otherwise"


def test_a_link_in_a_part_is_not_published(hub, release, publish, tmp_path):
    secret = tmp_path / "secret"
    target = release / "1-of-2" / "gguf" / "Testling-1B-Q4_K_M.gguf"
    secret.write_text(target.read_text())
    target.unlink()
    target.symlink_to(secret)
    with pytest.raises(BadRecord, match="no plain file"):
        publish()
    assert commits(hub) == 0


# --- what publishing refuses ------------------------------------------------------------------------------


@pytest.fixture
def step(hub: Hub, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the workflow's publish step."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    return {
        "GITHUB_WORKSPACE": str(tmp_path),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "INPUT_COMMAND": "publish",
        "INPUT_MODEL": "example-org/Testling-1B",
        "INPUT_OUT": str(release),
        "INPUT_PARTS": ",".join(PLAN),
        "INPUT_VARIANTS": ",".join(NAMES),
        "INPUT_PUBLISH": "main",
        "INPUT_NAMESPACE": "ada",
        "INPUT_TOKEN": hub.user("ada"),
    }


def test_the_publish_step_publishes_and_says_so(hub, step, tmp_path):
    assert act(step, work) == 0
    assert len(json.loads(read_outputs(tmp_path / "output")["published"])) == 3
    assert commits(hub) > 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"INPUT_GATE": "false"}, 2), ({"INPUT_NAMESPACE": ""}, 2), ({"INPUT_DRY-RUN": "true"}, 2)],
    ids=["the gate is off", "nobody owns the repos", "a rehearsal"],
)
def test_a_contradiction_stops_the_publish_step_before_the_first_request(hub, step, changes, code):
    assert act(step | changes, work) == code
    assert hub.store.repos == {}


def test_parts_that_were_made_without_the_gate_are_not_published(hub, release, step):
    for part in PLAN:
        made = read_record(release / part)
        write_record(replace(made, config={**made.config, "gate": {"enabled": False}}), release / part)
    assert act(step, work) == 2
    assert hub.store.repos == {}
