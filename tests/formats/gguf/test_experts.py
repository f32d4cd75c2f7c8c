"""GGUF files of mixtures of experts: llama-quantize's own bytes, an importance vector an expert."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hubbot.errors import Unsupported
from hubbot.formats.gguf.imatrix import ImportanceEntry
from hubbot.formats.protocol import InputStatistics, expert_name
from hubbot.model import part_layout, read_facts
from hubbot.model.parts import PartKind
from tests.formats.gguf.chain import checkpoint, convert, keys_and_tensors, open_format, quantize
from tests.models import make_model
from tests.tiers import suite

UNSEEN = 2  # the expert that the made-up calibration never reached


def statistics_of(part, weights) -> dict[str, InputStatistics]:
    """Made up, another for every matrix and expert; one expert saw nothing."""
    found = {}
    generator = torch.Generator().manual_seed(part.index)

    def seen(columns: int, tokens: int) -> InputStatistics:
        return InputStatistics(
            squares=tokens * torch.rand(columns, generator=generator) ** 2, hessian=None, tokens=tokens
        )

    for name in part.tensors if part.kind is PartKind.BLOCK else ():
        shape = weights[name].shape
        if len(shape) == 3:
            found |= {expert_name(name, e): seen(shape[2], 5 + e) for e in range(shape[0]) if e != UNSEEN}
        elif len(shape) == 2 and f".experts.{UNSEEN}." not in name:
            found[name] = seen(shape[1], 100)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", suite(["qwen3_moe", "deepseek_v3", "mixtral", "granitemoe"], first=2))
@pytest.mark.parametrize("imatrix", [False, True], ids=["static", "imatrix"])
def test_files_equal_llama_quantizes(family, imatrix, tmp_path):
    folder = make_model(family, tmp_path / "tiny")
    if (
        family == "deepseek_v3"
    ):  # the Hub's config.json says so; to one that does not hubbot adds it, and the converter by itself not
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"scoring_func": "sigmoid"}))
    # the inputs of DeepSeek's split projections are no layer's of the checkpoint, so types that need them are out
    names = ["Q4_K_M", "IQ2_XS" if imatrix and family != "deepseek_v3" else "Q2_K", "MXFP4_MOE"]
    form = open_format(folder, names, tmp_path / "out", imatrix=imatrix)
    weights = checkpoint(folder)
    for part in part_layout(read_facts(folder)):
        found = form.encode(
            part, {name: weights[name] for name in part.tensors}, statistics_of(part, weights) if imatrix else {}
        )
        experts = [name for name in part.tensors if "experts" in name and weights[name].ndim > 1]
        assert found["Q4_K_M"].keys() >= {name for name in experts if "shared" not in name}
    files = form.finish()
    base = convert(folder, tmp_path / "base.gguf")
    for name in names:
        matrix = next((path for path in files[name].paths if path.suffix == ".imatrix"), None)
        theirs = keys_and_tensors(
            quantize(base, tmp_path / f"{name}.gguf", name, imatrix=str(matrix) if matrix else None)
        )
        keys, tensors = keys_and_tensors(files[name].paths[0])
        assert tensors == theirs[1]
        assert {key for key in keys if keys[key] != theirs[0].get(key)} <= {"quantize.imatrix.file"}


@pytest.mark.slow
def test_every_expert_is_rounded_by_the_hessian_of_its_own_inputs_and_an_unseen_one_as_ever(tmp_path):
    folder = make_model("qwen3_moe", tmp_path / "tiny")
    form = open_format(folder, ["Q4_0", "Q4_0_H"], tmp_path / "out", imatrix=True)
    weights, hessians = checkpoint(folder), {}
    for part in part_layout(read_facts(folder)):
        seen = statistics_of(part, weights)
        for seed, (name, one) in enumerate(seen.items()):
            x = torch.randn(64, len(one.squares), generator=torch.Generator().manual_seed(seed))
            hessians[name] = x.T @ x
            seen[name] = replace(one, hessian=hessians[name])
        found = form.encode(part, {name: weights[name] for name in part.tensors}, seen)
        for name in found["Q4_0"].keys() & {n for n in part.tensors if ".experts." in n and weights[n].ndim > 1}:
            plain, rounded = found["Q4_0"][name].decode(), found["Q4_0_H"][name].decode()
            stacked = weights[name].ndim == 3
            for expert in range(len(plain)) if stacked else [None]:
                key, at = (expert_name(name, expert), expert) if stacked else (name, slice(None))
                lost = [(one[at] - weights[name].float()[at]) for one in (plain, rounded)]
                if key in hessians:
                    before, after = (float(((error @ hessians[key]) * error).sum()) for error in lost)
                    assert after < 0.9 * before, key
                else:
                    assert torch.equal(*lost), key
    assert any("experts" in name for name in hessians)
    form.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", suite(["bamba", "lfm2", "falcon"], first=1))
def test_files_of_hybrids_and_other_decoders_equal_llama_quantizes(family, tmp_path):
    folder = make_model(family, tmp_path / "tiny")
    form = open_format(folder, ["Q4_K_M"], tmp_path / "out")
    weights = checkpoint(folder)
    for part in part_layout(read_facts(folder)):
        form.encode(part, {name: weights[name] for name in part.tensors}, {})
    made = form.finish()["Q4_K_M"].paths[0]
    base = convert(folder, tmp_path / "base.gguf")
    assert keys_and_tensors(made)[1] == keys_and_tensors(quantize(base, tmp_path / "theirs.gguf", "Q4_K_M"))[1]


def test_an_expert_without_tokens_counts_every_input_alike():
    entry = ImportanceEntry(sums=np.array([[2, 4], [0, 0]], np.float32), tokens=np.array([2, 0]))
    np.testing.assert_array_equal(entry.vector(), [[1, 2], [1, 1]])


@pytest.mark.slow
def test_mxfp4_of_gpt_oss_equals_llama_quantizes_and_is_refused_without_experts(tmp_path, llama):
    folder = make_model("gpt_oss", tmp_path / "tiny")
    form = open_format(folder, ["MXFP4_MOE"], tmp_path / "out")
    weights = checkpoint(folder)
    for part in part_layout(read_facts(folder)):
        form.encode(part, {name: weights[name] for name in part.tensors}, {})
    made = form.finish()["MXFP4_MOE"].paths[0]
    base = convert(folder, tmp_path / "base.gguf")
    assert keys_and_tensors(made) == keys_and_tensors(quantize(base, tmp_path / "theirs.gguf", "MXFP4_MOE"))
    with pytest.raises(Unsupported, match=r"has no experts\. Take Q8_0"):
        open_format(llama, ["MXFP4_MOE"], tmp_path / "dense")
