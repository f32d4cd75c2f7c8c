"""Folders of safetensors while they are made: whole under their final name, wherever a run is killed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hubbot.errors import Unsupported
from hubbot.formats.folder import VariantFolder, finished_folders
from hubbot.formats.shards import TensorSpec
from hubbot.model import part_layout, read_facts
from tests.models import make_model
from tests.quantized import checkpoint, source_of

NAME = "a-variant"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(llama):
    """The checkpoint as a variant that rounds nothing."""
    return llama, read_facts(llama), checkpoint(llama)


def opened(model, place: Path, shard_size: int = 400_000, **changes: Any) -> VariantFolder:
    folder, facts, weights = model
    wanted: dict[str, Any] = {
        "source": source_of(folder),
        "facts": facts,
        "work": place / "work" / NAME,
        "out": place / "out" / NAME,
        "texts": {"config.json": "{}\n"},
        "specs": [TensorSpec.of(name, tensor) for name, tensor in weights.items()],
        "shard_size": shard_size,
    }
    return VariantFolder(**{**wanted, **changes})


def store_missing(made: VariantFolder, model) -> list[str]:
    """What a walk does that goes on. Returns the parts that were stored."""
    _, facts, weights = model
    missing = [part for part in part_layout(facts) if not made.holds(part)]
    for part in missing:
        tensors = {name: weights[name] for name in part.tensors}
        made.store(part, tensors, covers=part.tensors, notes=[part.name], errors={part.name: 0.1})
    return [part.name for part in missing]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Killed(BaseException):
    pass


STEPS = ((os, "pwrite"), (shutil, "rmtree"), (shutil, "copyfile"), (Path, "replace"), (Path, "write_text"))


@contextmanager
def killed_at(step: int) -> Iterator[list[int]]:
    """Whatever touches the disk, and is not done at once, is counted; the run ends before it is called the `step`th time."""
    count = [0]

    def told(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                raise Killed
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, told(getattr(owner, name)))
        yield count


def test_a_run_killed_before_any_step_ends_with_the_same_files_and_never_shows_half_of_them(model, tmp_path):
    store_missing(whole := opened(model, tmp_path / "whole"), model)
    with killed_at(0) as steps:
        files = whole.finish()
    wanted, told = digests(whole.out), (files.weight_bytes, files.notes, files.layer_errors)
    written = checkpoint(whole.out)
    assert written.keys() == model[2].keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in model[2].items())
    assert steps[0] >= 5
    stored = set()
    step = 0
    while True:
        step += 1
        place = tmp_path / str(step)
        earlier = place / "out" / NAME
        earlier.mkdir(parents=True)
        (earlier / "config.json").write_text("an earlier release")
        before = digests(earlier)
        with killed_at(step) as steps, suppress(Killed):
            made = opened(model, place)
            store_missing(made, model)
            made.finish()
        shown = digests(earlier)
        assert shown in (before, wanted, {})
        assert finished_folders(place / "work", place / "out") == ([earlier] if shown == wanted else [])
        made = opened(model, place)
        stored.add(len(store_missing(made, model)))
        files = made.finish()
        assert digests(made.out) == wanted
        assert (files.weight_bytes, files.notes, files.layer_errors) == told
        assert sorted(path.name for path in (place / "work").iterdir()) == [f"{NAME}.json"]
        if steps[0] < step:
            break
        shutil.rmtree(place)
    assert stored == {*range(len(part_layout(model[1])) + 1)}  # it goes on from wherever it had come to


@pytest.mark.parametrize("lost", ["partial", "shard", "size", "specs"])
def test_parts_whose_files_are_gone_or_of_another_layout_are_made_again(model, tmp_path, lost):
    store_missing(first := opened(model, tmp_path / "first"), model)
    made = shutil.copytree(tmp_path / "first", tmp_path / "second") / "work" / f"{NAME}.partial"
    assert store_missing(opened(model, tmp_path / "second"), model) == []
    more: dict[str, Any] = {}
    if lost == "partial":
        shutil.rmtree(made)
    if lost == "shard":
        next(iter(made.glob("*.safetensors"))).unlink()
    if lost == "size":
        more["shard_size"] = 10**9
    folder, facts, weights = model
    if lost == "specs":
        weights = {name: tensor.float() for name, tensor in weights.items()}
    other = folder, facts, weights
    again = opened(other, tmp_path / "second", **more)
    assert store_missing(again, other) == [part.name for part in part_layout(facts)]
    first.finish()
    again.finish()
    assert (digests(again.out) == digests(first.out)) == (lost in ("partial", "shard"))
    assert {name: tensor.dtype for name, tensor in checkpoint(again.out).items()} == {
        name: tensor.dtype for name, tensor in weights.items()
    }


def test_a_folder_lacks_what_no_part_stands_for_and_what_it_has_room_for_alone(model, tmp_path):
    folder, facts, weights = model
    specs = [TensorSpec.of(name, tensor) for name, tensor in weights.items()]
    made = opened(model, tmp_path, specs=[*specs, TensorSpec("model.more", "F32", (2,))])
    store_missing(made, model)
    with pytest.raises(Unsupported, match=rf"lacks 1 of {len(specs) + 1} tensors, model.more the first"):
        made.finish()
    assert not made.out.exists()
    more = replace(facts, tensors={**facts.tensors, "model.other": facts.tensors["model.norm.weight"]})
    made = opened((folder, more, weights), tmp_path)
    store_missing(made, model)
    with pytest.raises(Unsupported, match=rf"lacks 1 of {len(specs) + 1} tensors, model.other the first"):
        made.finish()
    assert not made.out.exists()
