"""Models that read text and images, whole jobs: the text part in every family, the part that sees images untouched."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hubbot.domain import Record
from hubbot.formats.gguf.naming import is_vision
from hubbot.model import part_layout, read_facts
from hubbot.model.config import read_config
from hubbot.model.empty import config_defaults
from hubbot.model.parts import PartKind
from hubbot.sweep.blocks import BlockModel
from tests.jobs import make
from tests.vision import make_vision

FOLDERS = ("gptq-4bit-32g", "w4a16-32g", "bnb-nf4", "bnb-int8")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision("gemma3", tmp_path_factory.mktemp("vision") / "tiny-gemma")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job") / "out"


@pytest.fixture(scope="module")
def record(model: Path, out: Path) -> Record:
    names = f"Q8_0,{','.join(FOLDERS)}"
    return make(model, out.parent, variants=names, evaluation__samples=False)


def test_a_configuration_may_leave_to_transformers_what_it_does_not_say(model: Path, tmp_path: Path) -> None:
    """Gemma 3's own config.json names no vocabulary and no heads."""
    values = json.loads((model / "config.json").read_text())
    kept = ("model_type", "hidden_size", "num_hidden_layers")
    text = {key: value for key, value in values["text_config"].items() if key in kept}
    (tmp_path / "config.json").write_text(json.dumps(values | {"text_config": text}))
    read = read_config(tmp_path / "config.json", config_defaults)
    assert (read.hidden_size, read.layers, read.vocab_size, read.heads, read.kv_heads) == (256, 2, 262_208, 8, 4)


def test_what_only_images_pass_through_is_not_read_for_a_text(model: Path) -> None:
    read: list[str] = []

    class Noted(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            read.append(name)
            return super().__getitem__(name)

    parts = part_layout(read_facts(model))
    walked = BlockModel(model, parts, torch.device("cpu"))
    stored = load_file(model / "model.safetensors")
    walked.install(Noted({name: stored[name] for name in parts[0].tensors}))
    assert read
    assert not any("vision_tower" in name for name in read)
    assert any("vision_tower" in name for name in parts[0].tensors)


def test_every_family_passes_with_the_text_part(record: Record) -> None:
    assert {variant.name: variant.reason for variant in record.variants if not variant.passed} == {}
    assert len(record.variants) == 1 + len(FOLDERS)


def test_the_part_that_sees_is_made_by_llama_cpp_beside_the_text_and_computes_as_transformers(record: Record) -> None:
    variant = next(each for each in record.variants if each.name == "Q8_0")
    seeing = [Path(file.path).name for file in variant.files if is_vision(file.path)]
    assert seeing == ["mmproj-tiny-gemma-F16.gguf", "mmproj-tiny-gemma-Q8_0.gguf"]
    assert [image.file for image in variant.images] == seeing
    for image, limit in zip(variant.images, (0.002, 0.02), strict=True):
        assert image.passed, image
        assert 0 < (image.distance or 0) < limit
        assert image.kld is not None
        assert abs(image.kld) < 0.002  # 0.0002 here, where the text's own rounding gives 0.00006
        assert image.said == image.base


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_keeps_the_class_the_processor_and_what_sees_images(
    name: str, record: Record, model: Path, out: Path
) -> None:
    variant = next(each for each in record.variants if each.name == name)
    folder = out / Path(next(file.path for file in variant.files if file.path.endswith("/config.json"))).parent
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Gemma3ForConditionalGeneration"]
    for file in ("preprocessor_config.json", "processor_config.json", "chat_template.jinja"):
        assert (folder / file).read_bytes() == (model / file).read_bytes()
    stored, original = load_file(folder / "model.safetensors"), load_file(model / "model.safetensors")
    embedding = part_layout(read_facts(model))[0]
    assert embedding.kind is PartKind.EMBEDDING
    assert len(embedding.tensors) > 30  # the tower among them
    assert all(stored[tensor].equal(original[tensor]) for tensor in embedding.tensors)


@pytest.mark.heavy
def test_the_lines_of_the_card_show_a_folders_model_a_picture(model: Path, tmp_path: Path) -> None:
    names = ["gptq-4bit-32g", "bnb-nf4"]
    made = make(model, tmp_path, variants=",".join(names), evaluation__samples=False, check__card=True)
    assert [(trial.verdict, trial.error) for one in made.variants for trial in one.trials] == [("agrees", None)] * 2
    for card in (tmp_path / "out" / "cards").glob("*/README.md"):
        for code in re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL):
            assert "AutoProcessor" in code


@pytest.mark.heavy
def test_lines_that_want_a_library_which_is_not_there_were_not_tried(tmp_path: Path) -> None:
    """Its processor sees films too."""
    if find_spec("torchvision"):
        pytest.skip("torchvision is there")
    model = make_vision("qwen2_vl", tmp_path / "tiny-qwen")
    made = make(model, tmp_path, variants="bnb-nf4", evaluation__samples=False, check__card=True)
    [variant] = made.variants
    assert variant.passed
    assert variant.trials == ()
