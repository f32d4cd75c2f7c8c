"""What is read beside the weights is fetched, carried and makes another model; nothing else is."""

import json

import pytest

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.companions import (
    check_companions,
    check_modules,
    is_carried,
    is_fetched,
    is_licence,
    modules_with_weights,
)
from hubbot.record.fingerprint import matters

READ = (
    "generation_config.json tokenizer.json tokenizer.model tokenizer.model.v3 tekken.json tiktoken.model qwen.tiktoken "
    "chat_template.jinja chat_template.json additional_chat_templates/tool_use.jinja preprocessor_config.json "
    "processor_config.json modules.json 1_Pooling/config.json 2_Dense/config.json 2_Dense/model.safetensors "
    "config_sentence_transformers.json sentence_bert_config.json"
).split()
LEFT = (
    "tokenization_evil.py modeling.py old/tokenizer.json additional_chat_templates/run.py onnx/config.json "
    "1_Pooling/code.py consolidated.safetensors original/tokenizer.model"
).split()


@pytest.mark.parametrize("path", READ)
def test_what_converter_and_readers_read_goes_everywhere(path):
    assert is_fetched(path)
    assert is_carried(path)
    assert matters(path)


@pytest.mark.parametrize("path", LEFT)
def test_code_and_files_of_other_folders_stay_where_they_are(path):
    assert not is_fetched(path)
    assert not is_carried(path)


def test_licences_travel_and_make_no_new_model():
    for path in ("LICENSE", "LICENCE.txt", "NOTICE", "USE_POLICY.md"):
        assert is_carried(path)
        assert is_licence(path)
        assert not matters(path)
    assert not is_licence("docs/LICENSE")


def test_configuration_and_card_are_read_and_written_anew():
    for path in ("config.json", "README.md"):
        assert is_fetched(path)
        assert not is_carried(path)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({f"LICENSE-{number}": 1 for number in range(3_000)}, "3,000 files lie beside the weights"),
        ({"LICENSE": 200 * 2**20}, r"LICENSE has 209,715,200 bytes; at most 8,388,608 are read of a licence"),
        ({f"{n}_Pooling/config.json": 200 * 2**20 for n in range(4)}, "beside the weights have 838,860,800 bytes"),
    ],
)
def test_more_beside_the_weights_than_any_model_has_is_refused(sizes, says):
    check_companions({"tokenizer.json": 35 * 2**20, "LICENSE": 100_000})
    with pytest.raises(UnsafeSource, match=says):
        check_companions(sizes)


def _modules(folder, value):
    (folder / "modules.json").write_text(json.dumps(value))
    return {"modules.json": folder / "modules.json"}


@pytest.mark.parametrize("path", ["../other", "/etc", "1_Pooling/../..", "..", "C:\\x", "a//b", 7, None])
def test_a_module_outside_of_the_models_folder_is_refused(path, tmp_path):
    with pytest.raises(UnsafeSource, match=r"modules\.json must list modules, each with the path of a folder inside"):
        check_modules(_modules(tmp_path, [{"path": ""}, {"path": path}]))


@pytest.mark.parametrize("value", [{"path": "x"}, "1_Pooling", ["1_Pooling"], 3])
def test_what_is_no_list_of_modules_is_refused(value, tmp_path):
    with pytest.raises(UnsafeSource, match=r"modules\.json"):
        check_modules(_modules(tmp_path, value))


def test_modules_inside_of_the_folder_are_accepted(tmp_path):
    check_modules(_modules(tmp_path, [{"idx": 0, "path": ""}, {"path": "1_Pooling"}, {"path": "parts/2_Dense"}]))
    check_modules({})


def test_a_modules_weights_are_safetensors_or_the_model_is_refused(tmp_path):
    dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    files = _modules(tmp_path, [{"path": ""}, {"path": "1_Pooling", "type": "a.models.Pooling"}, dense])
    with pytest.raises(SourceRefused, match=r"names 2_Dense \(Dense\), and its weights are not stored as"):
        check_modules({**files, "2_Dense/pytorch_model.bin": tmp_path})
    check_modules({**files, "2_Dense/model.safetensors": tmp_path})
    assert modules_with_weights(tmp_path) == {"2_Dense": "Dense"}
    assert modules_with_weights(tmp_path / "elsewhere") == {}
