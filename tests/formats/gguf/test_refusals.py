"""What llama.cpp cannot do is said before any work, in one sentence, and code in a model's folder never runs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot import llamacpp
from hubbot.domain import Gguf, Source
from hubbot.errors import SourceRefused, ToolMissing, Unsupported
from hubbot.formats.gguf.check import read
from hubbot.formats.gguf.foreign import read_gguf_as_checkpoint
from hubbot.formats.gguf.format import costs
from hubbot.formats.protocol import Cost
from hubbot.model import read_facts
from hubbot.settings import GgufSettings
from tests.formats.gguf.chain import make, open_format
from tests.models import make_model, make_other


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def _change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_architecture_that_the_converter_does_not_know_is_named_as_the_step(copy, tmp_path):
    _change(copy, "config.json", architectures=["XGLMForCausalLM"])
    with pytest.raises(Unsupported, match="converter cannot handle copy: it does not know the architecture"):
        open_format(copy, ["Q4_0"], tmp_path / "out")


def test_a_pre_tokenizer_that_the_converter_does_not_know_is_named_as_the_step(tmp_path):
    folder = make_model("gpt_neox", tmp_path / "tiny")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(Unsupported, match="does not recognize the BPE pre-tokenizer"):
        open_format(folder, ["Q4_0"], tmp_path / "out")


def test_a_vocabulary_in_mistrals_own_file_alone_is_told_with_what_to_put_beside_it(copy, tmp_path):
    for name in ("tokenizer.json", "tokenizer.model"):
        (copy / name).unlink(missing_ok=True)
    (copy / "tekken.json").write_text("{}")
    with pytest.raises(Unsupported, match=r"in tekken\.json alone .*; with a tokenizer\.json of the same vocabulary"):
        open_format(copy, ["Q4_0"], tmp_path / "out")


def test_a_type_that_needs_an_importance_matrix_is_refused_without_one(llama, tmp_path):
    with pytest.raises(Unsupported, match="IQ2_XS needs an importance matrix"):
        open_format(llama, ["Q4_0", "IQ2_XS"], tmp_path)


def test_a_tensor_that_no_gguf_has_a_name_for_is_refused(copy, tmp_path):
    path = copy / "model.safetensors"
    save_file(load_file(path) | {"model.strange.weight": torch.zeros(4, 4)}, path, metadata={"format": "pt"})
    with pytest.raises(Unsupported, match="does not know one of the checkpoint's tensors"):
        open_format(copy, ["Q4_0"], tmp_path / "out")


def test_code_in_the_models_folder_never_runs(copy, tmp_path):
    # the one tokenizer for which the Llama converter tells transformers to trust the folder's own code
    ran = tmp_path / "ran"
    (copy / "tokenization_evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
    _change(copy, "tokenizer_config.json", tokenizer_class="HybridDNATokenizer", auto_map=auto_map)
    with pytest.raises(Unsupported):
        open_format(copy, ["Q4_0"], tmp_path / "out")
    assert not ran.exists()


def test_a_damaged_file_fails_the_load_check_and_does_not_end_the_run(llama, tmp_path):
    files, _ = make(llama, ["Q4_0"], tmp_path)
    path = files["Q4_0"].paths[0]
    path.write_bytes(path.read_bytes()[:-4096])
    check = read([path], None).check
    assert not check.loaded
    assert not check.passed
    assert check.error


def test_a_file_whose_rows_are_in_another_order_fails_the_load_check(llama, tmp_path):
    import transformers

    files, decoded = make(llama, ["Q8_0"], tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    own = dict(model.named_parameters())
    tokens = torch.randint(3, 400, (1, 32), generator=torch.Generator().manual_seed(0))
    errors = {}
    for order in ("right", "reversed"):
        with torch.inference_mode():
            for name, value in decoded["Q8_0"].items():
                swap = order == "reversed" and "o_proj" in name
                own[name].copy_(value.flip(0) if swap else value)
            save_file({"tokens": tokens, "logits": model(tokens).logits.contiguous()}, tmp_path / "ref.safetensors")
        errors[order] = read(files["Q8_0"].paths, tmp_path / "ref.safetensors").check
    assert errors["right"].passed
    assert not errors["reversed"].passed
    assert "diverge" in errors["reversed"].error


def test_a_gguf_of_another_model_is_refused_by_the_tensor_that_differs(llama, tmp_path):
    files, _ = make(llama, ["Q4_0"], tmp_path)
    other = make_model("smollm3", tmp_path / "other")
    with pytest.raises(Unsupported, match="is no GGUF of this base model"):
        read_gguf_as_checkpoint(files["Q4_0"].paths[0], read_facts(other))


def test_a_shard_without_its_siblings_is_refused(llama, tmp_path):
    lone = tmp_path / "m-00001-of-00002.gguf"
    lone.touch()
    with pytest.raises(SourceRefused, match=r"m-00002-of-00002\.gguf is missing"):
        read_gguf_as_checkpoint(lone, read_facts(llama))


def test_an_absent_llama_cpp_is_told_with_every_place_that_was_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("HUBBOT_LLAMA_CPP", str(tmp_path / "nowhere"))
    llamacpp.find.cache_clear()
    try:
        with pytest.raises(ToolMissing, match=r"nowhere.*hubbot setup"):
            llamacpp.find()
    finally:
        monkeypatch.undo()
        llamacpp.find.cache_clear()


def test_a_type_in_which_no_matrix_is_rounded_is_refused_and_no_f16_bears_its_name(tmp_path):
    odd = {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 5, "intermediate_size": 144}
    folder = make_other("LlamaConfig", odd, tmp_path / "tiny")
    facts = read_facts(folder)
    source = Source(folder=str(folder), repo=None, revision=None, files={})
    told = costs(
        [Gguf(type="Q4_K_M"), Gguf(type="BF16")],
        source,
        facts,
        tmp_path / "plan",
        GgufSettings(imatrix=False),
        context=64,
    )
    assert isinstance(told["BF16"], Cost)
    assert "rounds no matrix of this model in Q4_K_M: output.weight has 80 columns" in str(told["Q4_K_M"])
