"""Every family that hubbot promises, from folder to llama.cpp's own logits."""

import pytest
import torch
import transformers
from safetensors.torch import save_file

from hubbot.formats.gguf.check import read
from tests.formats.gguf.chain import checkpoint, convert, keys_and_tensors, make, quantize
from tests.models import FAMILIES, make_model
from tests.tiers import suite

CASES = [(name, tied) for name, family in FAMILIES.items() for tied in family.tied]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tied"), suite(CASES, first=6, spread=True))
def test_a_familys_files_equal_llama_quantizes_and_decode_to_what_llama_cpp_computes(family, tied, tmp_path):
    folder = make_model(family, tmp_path / "tiny", tied=tied)
    files, decoded = make(folder, ["Q4_K_M", "F32"], tmp_path / "out")
    # transformers 5 moves `rotary_pct`, which llama.cpp's own script then misses, and nobody teaches that script Qwen 2's
    # pre-tokenizer with this vocabulary; the logits below still judge the files
    known_to_script = family not in ("gpt_neox", "cohere2", "qwen2")
    base = convert(folder, tmp_path / "base.gguf") if known_to_script else None
    for name in ("Q4_K_M", "F32") if base else ():
        theirs = keys_and_tensors(quantize(base, tmp_path / f"{name}.gguf", name))
        assert keys_and_tensors(files[name].paths[0]) == theirs

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    # F32: llama.cpp looks GELU up in a table of half precision (1e-8 where it is used). Q4_K_M: activations of 8 bits.
    for name, tolerance in (("F32", 1e-6), ("Q4_K_M", 2e-3)):
        reference = tmp_path / f"{name}.safetensors"
        logits = _logits(model, checkpoint(folder) | decoded[name])
        save_file({"tokens": _tokens(), "logits": logits}, reference)
        check = read([files[name].paths[0]], reference, tolerance=tolerance).check
        assert check.passed, check
        assert check.generated is not None
    for name, weight in checkpoint(folder).items():
        if weight.ndim == 2:
            assert name in decoded["Q4_K_M"], f"{name} is not decoded"


def _tokens() -> torch.Tensor:
    return torch.randint(3, 400, (2, 48), generator=torch.Generator().manual_seed(0))


def _logits(model, weights) -> torch.Tensor:
    with torch.inference_mode():
        own = dict(model.named_parameters())
        for name, value in weights.items():
            if name in own:
                own[name].copy_(value)
        return model(_tokens()).logits.float().contiguous()
