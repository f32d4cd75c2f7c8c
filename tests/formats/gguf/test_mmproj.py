"""The files that see images: what llama.cpp's converter writes, and what is said where it writes none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from hubbot import llamacpp
from hubbot.formats.gguf import published
from hubbot.formats.gguf.mmproj import plan_vision, write_vision
from hubbot.formats.gguf.snapshot import Snapshot
from hubbot.model import read_facts
from hubbot.model.companions import PROCESSORS
from tests.conformance.models import write_tiny
from tests.quantized import source_of
from tests.vision import make_vision

pytestmark = pytest.mark.slow


def test_the_files_are_tensor_for_tensor_what_the_converter_itself_writes(tmp_path: Path) -> None:
    folder = make_vision("qwen3_vl", tmp_path / "tiny")
    facts = read_facts(folder)
    plan = plan_vision(source_of(folder), facts, Snapshot(facts).read)
    paths = write_vision(plan, Snapshot(facts).read, tmp_path / "work", tmp_path / "out")
    assert [path.name for path in paths] == ["mmproj-tiny-F16.gguf", "mmproj-tiny-Q8_0.gguf"]
    assert sum(path.stat().st_size for path in paths) == plan.bytes
    converter = llamacpp.find().source / "convert_hf_to_gguf.py"
    for path, kind in zip(paths, ("f16", "q8_0"), strict=True):
        theirs = tmp_path / f"{kind}.gguf"
        command = [sys.executable, str(converter), str(folder), "--mmproj", "--outtype", kind, "--outfile", str(theirs)]
        subprocess.run(command, check=True, capture_output=True)
        ours, wanted = ({one.name: one for one in llamacpp.gguf().GGUFReader(each).tensors} for each in (path, theirs))
        assert list(ours) == list(wanted)
        assert all(ours[name].tensor_type == wanted[name].tensor_type for name in wanted)
        assert all(np.array_equal(ours[name].data, wanted[name].data) for name in wanted)


def test_a_tower_of_internvl_is_called_as_the_converter_knows_it(tmp_path: Path) -> None:
    facts = read_facts(make_vision("internvl", tmp_path / "tiny"))
    plan = plan_vision(source_of(facts.folder), facts, Snapshot(facts).read)
    held = {leaf for placed in plan.files["mmproj-tiny-F16.gguf"].tensors for leaf in placed.tensor.leaves}
    assert held == {name for name in facts.tensors if name.startswith(("vision_tower.", "multi_modal_projector."))}


@pytest.mark.parametrize(("kind", "why"), [
    ("internvl", "leaves out 64 of the 64 tensors that see, vision_tower.embeddings.cls_token the first"),
    ("llava", "Unsupported model type: clip_vision_model"),
])  # fmt: skip
def test_where_the_converter_makes_no_such_file_the_plan_says_that_the_text_alone_is_read(
    kind: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "_TILES", "of no class")  # the converter's filter passes over InternVL's own names
    folder = make_vision(kind, tmp_path / "tiny")
    facts = read_facts(folder)
    plan = plan_vision(source_of(folder), facts, Snapshot(facts).read)
    assert not plan.files
    assert (plan.note or "").startswith("the GGUF files read text alone")
    assert why in (plan.note or "")
    assert "leave them out" not in (plan.note or "")


def test_a_part_that_sees_without_a_word_on_how_pictures_are_cut_is_left_out(tmp_path: Path) -> None:
    folder = make_vision("gemma3", tmp_path / "tiny")
    for name in PROCESSORS:
        (folder / name).unlink(missing_ok=True)
    plan = plan_vision(source_of(folder), (facts := read_facts(folder)), Snapshot(facts).read)
    assert not plan.files
    assert "neither preprocessor_config.json nor processor_config.json" in (plan.note or "")


def test_the_end_of_pixtrals_lines_is_a_row_of_the_embeddings_that_the_converter_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_vision("mistral3", tmp_path / "tiny")
    facts = read_facts(folder)
    plan = plan_vision(source_of(folder), facts, Snapshot(facts).read)
    path, _ = write_vision(plan, Snapshot(facts).read, tmp_path / "work", tmp_path / "out")
    tensors = {one.name: one for one in llamacpp.gguf().GGUFReader(path).tensors}
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    number = next(token["id"] for token in added if token["content"] == "[IMG_BREAK]")
    embeddings = load_file(folder / "model.safetensors")["language_model.model.embed_tokens.weight"]
    assert np.array_equal(tensors["v.token_embd.img_break"].data, embeddings[number].float().numpy())
    monkeypatch.setattr(published, "_BREAK", "no class has it")
    without = plan_vision(source_of(folder), facts, Snapshot(facts).read)
    assert "leaves out the embedding of [IMG_BREAK], without which llama.cpp loads no such file" in (without.note or "")


def test_what_paints_images_is_no_part_of_what_sees_them(tmp_path: Path) -> None:
    """Most of Janus' tensors beside the text make images; llama.cpp's converter takes those that see."""
    folder = write_tiny("JanusForConditionalGeneration", tmp_path / "tiny")
    facts = read_facts(folder)
    plan = plan_vision(source_of(folder), facts, Snapshot(facts).read)
    assert plan.note is None
    assert len(plan.files) == 2
