"""What stands in a GGUF is what convert_hf_to_gguf.py, run as a program over the same folder, writes."""

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from hubbot import llamacpp
from hubbot.domain import Gguf, Source
from hubbot.errors import Unsupported
from hubbot.formats.gguf.check import read
from hubbot.formats.gguf.converter import convert
from hubbot.formats.gguf.plan import plan_files
from hubbot.model import read_facts
from hubbot.model.agreement import agreed
from hubbot.settings import GgufSettings
from tests.conformance.models import write_tiny
from tests.formats.gguf.chain import checkpoint, keys_and_tensors, make, open_format, quantize
from tests.models import make_model, make_other

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "short_factor": [1.0] * 6}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
GRANITE = {
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 128,
    "embedding_multiplier": 12,
}

# name -> configuration class, values. The classes read their own parameters, raw or through transformers (Mamba 2,
# Nemotron), change their architecture by them (Granite 4 without a state-space block), or hand on to another (Ministral 3).
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "granite-four-dense": ("GraniteMoeHybridConfig", GRANITE | {"layer_types": ["attention"] * 2}),
    "ministral-three": ("Ministral3Config", {"head_dim": 16}),
    "mamba-two": ("Mamba2Config", {"state_size": 16, "head_dim": 16, "num_heads": 8, "expand": 2, "n_groups": 1}),
    "nemotron": ("NemotronConfig", {}),
    "arcee": ("ArceeConfig", {"head_dim": 16}),
    "ernie": ("Ernie4_5Config", {"head_dim": 16}),
    "llama-three": ("LlamaConfig", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}}),
    "phi-long": (
        "Phi3Config",
        {
            "pad_token_id": 0,
            "original_max_position_embeddings": 64,
            "rope_parameters": LONG
            | {"long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 4.0], "original_max_position_embeddings": 64},
        },
    ),
    "qwen-yarn": ("Qwen3Config", {"head_dim": 16, "rope_parameters": YARN}),
    "qwen-embedding": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "olmo-three": ("Olmo3Config", {"sliding_window": 32}),
    "lfm-two": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
}
BYTES = ("olmo-three", "lfm-two")  # GPT-2's vocabulary

PROGRAM = """
import pathlib, runpy, sys
script, *folders = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(script).parent))
for folder in folders:
    sys.argv = [script, folder, "--outfile", folder + ".gguf", "--outtype", "bf16"]
    runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of all the architectures, each with the program's file beside it; one process makes them all."""
    work = tmp_path_factory.mktemp("others")
    made = {
        name: make_other(config, values, work / name, bytes_vocabulary=name in BYTES)
        for name, (config, values) in OTHERS.items()
    }
    _pool_the_last_token(made["qwen-embedding"])
    _as_published(made["granite-four-dense"], layer_types=["attention"] * 2, position_embedding_type="rope")
    script = llamacpp.find().source / "convert_hf_to_gguf.py"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, script, *made.values()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return made


def _as_published(folder, **keys):
    """Keys of config.json as they are on the Hub; transformers 5.23 writes `full_attention`, which the converter takes for a state space."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def _pool_the_last_token(folder):
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_file_is_the_programs_own_with_llama_quantize_after_it(name, folders, tmp_path):
    files, _ = make(folders[name], ["BF16"], tmp_path, decoded=False)
    ours = files["BF16"].paths[0]
    theirs = quantize(folders[name].with_name(f"{name}.gguf"), tmp_path / "theirs.gguf", "BF16")
    assert keys_and_tensors(ours) == keys_and_tensors(theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    if name == "qwen-embedding":
        assert keys_and_tensors(ours)[0]["qwen3.pooling_type"] == llamacpp.gguf().PoolingType.LAST


def test_a_model_is_pooled_as_its_modules_say_where_the_converters_class_does_not_look(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "tiny")
    _pool_the_last_token(folder)
    found = convert(folder, read_facts(folder).tensors, checkpoint(folder).__getitem__).metadata
    assert found["llama.pooling_type"].value == llamacpp.gguf().PoolingType.LAST


def test_what_another_tool_says_of_a_quantization_does_not_stop_whole_weights(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "tiny")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": None}}))
    assert convert(folder, read_facts(folder).tensors, checkpoint(folder).__getitem__).architecture == "llama"


def test_files_that_the_converter_trips_over_are_given_to_it_as_they_are_meant(tiny_model, tmp_path):
    plain = tiny_model("llama")
    folder = shutil.copytree(plain, tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "pad_token_id": -1, "text_config": None, "vision_config": None})
    )
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # tiktoken's, beside the tokenizer.json that counts
    card = b"---\nlicense: mit\ntags: [llama, 3.1, 2026-01-01]\nlanguage: [no, en]\n---\n# J\xfcrgen\n"
    (folder / "README.md").write_bytes(card)
    found = convert(folder, read_facts(folder).tensors, checkpoint(folder).__getitem__).metadata
    assert found["general.tags"].value == ["llama", "3.1", "2026-01-01"]
    assert found["general.languages"].value == ["no", "en"]
    assert "tokenizer.ggml.padding_token_id" not in found
    theirs = convert(plain, read_facts(plain).tensors, checkpoint(plain).__getitem__).metadata
    assert found["tokenizer.ggml.tokens"].value == theirs["tokenizer.ggml.tokens"].value


def test_names_of_a_model_that_was_saved_out_of_a_wrapper_are_converted(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "tiny")
    wrapped = {
        f"model.{name}" if name.startswith("model.") else name: value for name, value in checkpoint(folder).items()
    }
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
    names = {tensor.name for tensor in convert(folder, agreed(read_facts(folder)).tensors, wrapped.__getitem__).tensors}
    assert {"token_embd.weight", "blk.1.attn_q.weight", "output_norm.weight"} <= names


def test_what_the_model_has_no_place_for_is_in_no_file(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "tiny")
    strays = {"v_head.summary.weight": torch.ones(1, 256), "model.position_ids": torch.arange(8)}
    save_file({**checkpoint(folder), **strays}, folder / "model.safetensors", metadata={"format": "pt"})
    facts = agreed(read_facts(folder))
    source = Source(folder=str(folder), repo=None, revision=None, files={})
    planned = plan_files(
        [Gguf(type="Q8_0")], source, facts, tmp_path, imatrix=None, settings=GgufSettings(imatrix=False), read=checkpoint(folder).__getitem__
    )  # fmt: skip
    assert not any(set(tensor.leaves) & strays.keys() for tensor in planned.model.tensors)


def test_a_head_of_its_own_that_the_converter_takes_the_embedding_for_is_told(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("gemma2"), tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = checkpoint(folder)
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = Source(folder=str(folder), repo=None, revision=None, files={})
    with pytest.raises(
        Unsupported, match=r"converter leaves lm_head\.weight out \(1 in all\), with which the model computes"
    ):
        plan_files(
            [Gguf(type="Q8_0")], source, agreed(read_facts(folder)), tmp_path, imatrix=None, settings=GgufSettings(imatrix=False), read=weights.__getitem__
        )  # fmt: skip


def _quantized(shape):
    """A shape as llama-quantize writes it: no outer dimension of one."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["granite-four-dense", "ministral-three"])
def test_llama_cpp_loads_what_a_class_made_of_its_own_parameters(name, folders, tmp_path):
    files, _ = make(folders[name], ["Q8_0"], tmp_path)
    check = read(files["Q8_0"].paths, None).check
    assert check.passed, check.error


TEMPLATES = {"tool_use": "{{ 'tool' }}", "default": "{{ 'usual' }}", "rag": "{{ 'rag' }}"}


def test_the_sources_templates_stand_in_the_file_whatever_the_converter_chose(tmp_path):
    folder = make_model("llama", tmp_path / "tiny")
    path = folder / "tokenizer_config.json"
    stale = [{"name": name, "template": "stale"} for name in ("default", "gone")]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": stale}))
    (folder / "chat_template.jinja").write_text(TEMPLATES["default"])
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(TEMPLATES[name])
    files, _ = make(folder, ["Q8_0"], tmp_path / "out")
    keys, _ = keys_and_tensors(files["Q8_0"].paths[0])
    found = {key: value for key, value in keys.items() if key.startswith("tokenizer.chat_template")}
    assert found == {
        "tokenizer.chat_template": TEMPLATES["default"],
        "tokenizer.chat_template.rag": TEMPLATES["rag"],
        "tokenizer.chat_template.tool_use": TEMPLATES["tool_use"],
        "tokenizer.chat_templates": ["rag", "tool_use"],
    }


def test_a_null_in_the_configuration_does_not_cost_the_file_its_template(tmp_path):
    folder = make_model("llama", tmp_path / "tiny")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))
    text = (folder / "chat_template.jinja").read_text()
    files, _ = make(folder, ["Q8_0"], tmp_path / "out")
    assert keys_and_tensors(files["Q8_0"].paths[0])[0]["tokenizer.chat_template"] == text


@pytest.mark.slow
def test_a_qwen3_next_without_prediction_heads_is_converted_without_them(tmp_path):
    folder = write_tiny("Qwen3NextForCausalLM", tmp_path / "tiny")
    facts = read_facts(folder)
    converted = convert(folder, facts.tensors, load_file(folder / "model.safetensors").__getitem__)
    assert any(tensor.name == "blk.1.attn_q.weight" for tensor in converted.tensors)
    assert converted.metadata["qwen3next.block_count"].value == 2


@pytest.mark.slow
def test_a_number_that_the_configuration_lacks_is_told_by_its_key(tmp_path):
    folder = write_tiny("DbrxForCausalLM", tmp_path / "tiny")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["attn_config"]["clip_qkv"] = None
    path.write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=r"it has None for dbrx\.attention\.clamp_kqv"):
        open_format(folder, ["Q8_0"], tmp_path / "out")


@pytest.mark.slow
def test_a_first_token_that_transformers_passes_over_is_told_to_a_converter_that_asks_for_it(tmp_path):
    """DeepSeek V3.2's: transformers 5 drops `add_bos_token` beside a tokenizer.json."""
    model = write_tiny("DeepseekV32ForCausalLM", tmp_path / "tiny")
    assert json.loads((model / "tokenizer_config.json").read_text())["add_bos_token"]
    before = AutoTokenizer.from_pretrained(model)
    assert not before.add_bos_token
    converted = convert(model, read_facts(model).tensors, lambda _: pytest.fail("no weight is read"))
    assert converted.architecture == "deepseek32"
    assert not AutoTokenizer.from_pretrained(model).add_bos_token
