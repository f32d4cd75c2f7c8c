"""A model whose part that sees wants a package which is not here is one of text, and says so."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hubbot.child.source import examine
from hubbot.domain import Source
from hubbot.errors import Unsupported
from hubbot.formats import costs_of
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost
from hubbot.model import part_layout, read_facts
from hubbot.model.absent import absent_part_of, absent_parts, part_of_timm
from hubbot.model.empty import build_model
from hubbot.model.whole import load_whole
from hubbot.settings import Settings
from hubbot.sweep.blocks import BlockModel
from tests.conformance.gemma3n import SMALL_GEMMA3N, add_eyes
from tests.vision import make_vision

pytestmark = pytest.mark.skipif(find_spec("timm") is not None, reason="timm is here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_eyes(make_vision("gemma3n", tmp_path_factory.mktemp("absent") / "tiny", plan=SMALL_GEMMA3N))


def test_a_part_that_wants_a_package_is_left_out_and_the_others_are_there(folder: Path) -> None:
    model = build_model(folder)
    [(path, part)] = absent_parts(model).items()
    assert path == part_of_timm(model) == "model.vision_tower"
    assert part.wants == "TimmWrapperModel requires the timm library but it was not found in your environment"
    with pytest.raises(ImportError, match="timm"):
        part(pixel_values=torch.zeros(1))
    assert sum(1 for name, _ in model.named_parameters() if "audio_tower" in name) > 20
    assert absent_part_of("model.vision_tower.timm_model.conv_stem.bn.weight", [path]) == path
    assert absent_part_of("model.embed_vision.embedding.weight", [path]) is None


def test_the_plan_says_what_was_left_out_and_how_much_it_is(folder: Path) -> None:
    facts = read_facts(folder)
    [note] = examine(facts).notes
    assert note.startswith(
        "model.vision_tower was not run, and nothing is said of it: TimmWrapperModel requires the timm library"
    )
    assert f"its {sum('vision_tower' in name for name in facts.tensors)} tensors go into folders as they are" in note


def test_weights_that_the_class_expects_and_passes_over_stay_for_llama_cpp_which_asks_for_them(
    folder: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "tiny"))
    tensors = load_file(copied / "model.safetensors")
    shared, own = (f"model.language_model.layers.{layer}.self_attn.k_proj.weight" for layer in (3, 0))
    tensors[shared] = tensors[own].clone()  # of a layer that shares the keys of an earlier one
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    assert examine(read_facts(copied)).unused == ()


def test_a_text_part_that_wants_a_package_is_not_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(part: object, **_: object) -> None:
        msg = f"{type(part).__name__} requires another library. It was not found."
        raise ImportError(msg)

    with monkeypatch.context() as context:
        context.setattr(AutoModel, "from_config", absent)
        with pytest.raises(Unsupported, match="Gemma3nTextConfig requires another library"):
            build_model(folder)
        assert AutoModel.from_config is absent


def test_gptq_which_transformers_reads_by_optimum_is_refused_and_the_same_codes_are_not(
    folder: Path, tmp_path: Path
) -> None:
    names = "gptq-4bit-32g,w4a16-32g,bnb-nf4"
    source = Source(
        folder=str(folder), repo=None, revision=None, files={}, architecture="Gemma3nForConditionalGeneration"
    )
    costs = costs_of(
        parse_variants(names),
        source,
        examine(read_facts(folder)),
        tmp_path,
        Settings.model_validate({"variants": names}),
    )
    assert [isinstance(cost, Cost) for cost in costs.values()] == [False, True, True]
    assert str(costs["gptq-4bit-32g"]).startswith("model.vision_tower is a model of timm's, at which optimum stops")


@torch.inference_mode()
def test_marks_around_images_are_read_from_the_tables_that_a_text_reads_them_from(folder: Path) -> None:
    """Gemma 3n has an embedding of their own for them, in the part that sees and in the one that hears."""
    tokens = torch.arange(500, 518)[None]
    parts = part_layout(read_facts(folder))
    walked = BlockModel(folder, parts, torch.device("cpu"))
    stored = load_file(folder / "model.safetensors")
    walked.install({name: stored[name] for name in parts[0].tensors})
    whole, given = load_whole(folder, torch.float32).eval(), []
    whole.model.language_model.layers[0].register_forward_pre_hook(lambda _, hidden: given.append(hidden[0]))
    whole(input_ids=tokens)
    assert torch.equal(walked.embed(tokens), walked.passage.layout.rows(given[0]))
