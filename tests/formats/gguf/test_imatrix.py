"""The importance matrix: llama.cpp's format, its numbers, and its use."""

import numpy as np
import pytest
import torch
import transformers

from hubbot import llamacpp
from hubbot.formats.gguf.imatrix import ImportanceEntry, write_imatrix
from tests.formats.gguf.chain import (
    TEXT,
    TOKENS,
    checkpoint,
    convert,
    keys_and_tensors,
    make,
    open_format,
    parts,
    statistics_of,
)
from tests.models import texts

LENGTH = 64


def read_imatrix(path):
    """GGUF tensor name -> entry."""
    tensors = {tensor.name: tensor.data for tensor in llamacpp.gguf().GGUFReader(path).tensors}
    return {
        stem: ImportanceEntry(
            sums=np.array(tensors[f"{stem}.in_sum2"], dtype=np.float32).reshape(-1),
            tokens=int(tensors[f"{stem}.counts"].reshape(-1)[0]),
        )
        for stem in (name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2"))
    }


def test_what_is_written_is_read_back(tmp_path):
    entries = {"blk.0.ffn_up.weight": ImportanceEntry(sums=np.arange(8, dtype=np.float32), tokens=5)}
    write_imatrix(tmp_path / "a.imatrix", entries, dataset="text", chunks=3, length=64)
    found = read_imatrix(tmp_path / "a.imatrix")
    assert found.keys() == entries.keys()
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"].sums, np.arange(8))
    assert found["blk.0.ffn_up.weight"].tokens == 5
    np.testing.assert_allclose(found["blk.0.ffn_up.weight"].vector(), np.arange(8) / 5, rtol=1e-7)


def test_the_matrix_is_published_beside_the_files_and_they_tell_where_they_have_it_from(llama, tmp_path):
    files, _ = make(llama, ["Q4_K_M", "F16"], tmp_path, imatrix=True)
    matrix = tmp_path / "gguf" / f"{llama.name}.imatrix"
    assert files["Q4_K_M"].paths[-1] == matrix
    assert matrix not in files["F16"].paths  # nothing of it is in that file
    keys, _ = keys_and_tensors(files["Q4_K_M"].paths[0])
    assert keys["quantize.imatrix.file"] == matrix.name
    assert keys["quantize.imatrix.dataset"] == TEXT.dataset
    assert keys["quantize.imatrix.chunks_count"] == TEXT.windows
    assert keys["quantize.imatrix.entries_count"] == len(read_imatrix(matrix)) == 14
    weights = checkpoint(llama)
    block = parts(weights)[1]
    squares = statistics_of(block, weights)["model.layers.0.mlp.down_proj.weight"].squares.numpy()
    entry = read_imatrix(matrix)["blk.0.ffn_down.weight"]
    np.testing.assert_array_equal(entry.sums, squares)
    assert entry.tokens == TOKENS


def test_headers_count_what_the_matrix_covers_where_a_layer_was_never_reached(llama, tmp_path):
    form, weights = open_format(llama, ["Q4_K_M"], tmp_path, imatrix=True), checkpoint(llama)
    for part in parts(weights):
        seen = statistics_of(part, weights)
        seen.pop("model.layers.0.mlp.down_proj.weight", None)
        form.encode(part, {name: weights[name] for name in part.tensors}, seen)
    file, matrix = form.finish()["Q4_K_M"].paths
    keys, _ = keys_and_tensors(file)
    assert keys["quantize.imatrix.entries_count"] == len(read_imatrix(matrix)) == 13


@pytest.mark.slow
def test_mean_squares_equal_llama_imatrixs_on_the_same_tokens(llama, tmp_path):
    base = convert(llama, tmp_path / "base.gguf", "f32")
    text = tmp_path / "text.txt"
    text.write_text("".join(texts(12)), encoding="utf-8")
    out = tmp_path / "theirs.imatrix"
    arguments = ["-m", base, "-f", text, "-o", out, "-c", str(LENGTH), "-b", str(LENGTH), "--no-ppl", "-ngl", "0"]
    done = llamacpp.run_tool("llama-imatrix", [*arguments, "--chunks", "6", "-fa", "off"], timeout=300)
    assert out.exists(), done.stdout[-2000:]
    theirs = read_imatrix(out)

    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    ids = tokenizer(text.read_text(encoding="utf-8"))["input_ids"]
    windows = torch.tensor(ids[: 6 * LENGTH]).reshape(6, LENGTH).clone()
    windows[:, 0] = tokenizer.bos_token_id  # llama-imatrix begins each chunk with it
    ours = _mean_squares(llama, windows)
    names = {"mlp.down_proj": "ffn_down", "self_attn.o_proj": "attn_output", "self_attn.q_proj": "attn_q"}
    for theirs_name, own_name in [(f"blk.1.{b}.weight", f"model.layers.1.{a}") for a, b in names.items()]:
        assert theirs[theirs_name].tokens == 6 * LENGTH
        np.testing.assert_allclose(theirs[theirs_name].vector(), ours[own_name], rtol=2e-3)


def _mean_squares(folder, windows):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums = {}

    def listen(name):
        def hook(module, inputs):
            sums[name] = inputs[0].reshape(-1, inputs[0].shape[-1]).double().square().mean(0).numpy()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(listen(name))
    with torch.inference_mode():
        model(windows)
    return sums
