"""GPTQ folders: exact costs, repeatable bytes, refusals."""

import hashlib
import json
import os
import re
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.domain import Gptq
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats.gptq.format import costs
from hubbot.formats.gptq.solver import prepare
from hubbot.formats.linears import find_linears
from hubbot.formats.protocol import Cost
from hubbot.model import part_layout, read_facts
from hubbot.settings import GptqSettings
from tests.models import FAMILIES, make_model
from tests.quantized import checkpoint, encode_all, gptq_format, gptqs, source_of, statistics

CASES = [(name, tied) for name, family in FAMILIES.items() for tied in family.tied]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama") / "tiny", tied=False)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_every_2d_weight_of_the_blocks_but_no_other_is_a_linear_layer(family, tied, tmp_path):
    facts = read_facts(make_model(family, tmp_path / "tiny", tied=tied))
    inside = {name for part in part_layout(facts)[1:-1] for name in part.tensors if len(facts.tensors[name].shape) == 2}
    linears = find_linears(facts)
    assert set(linears.by_name) == inside
    assert not linears.outside
    assert (linears.head is None) == tied
    for linear in linears.blocks:
        assert facts.tensors[linear.name].shape == (linear.out_features, linear.in_features)


@pytest.mark.parametrize("shard_size", [400_000, 5 * 10**9])
def test_sizes_are_known_exactly_before_a_weight_is_read(llama, shard_size, tmp_path):
    names = ["gptq-4bit-128g", "gptq-3bit-64g-asym", "gptq-2bit--1g"]
    settings = GptqSettings(shard_size=shard_size)
    facts = read_facts(llama)
    expected = costs(gptqs(names), facts, source_of(llama), settings)
    family = gptq_format(llama, names, tmp_path, shard_size=shard_size)
    encode_all(family, llama)
    for name, files in family.finish().items():
        cost = expected[name]
        assert isinstance(cost, Cost)
        assert files.weight_bytes == cost.weight_bytes
        assert sum(path.stat().st_size for path in files.paths) == cost.file_bytes
        assert cost.bits_per_weight == 8 * files.weight_bytes / facts.parameters
        shards = [path for path in files.paths if path.suffix == ".safetensors"]
        assert (len(shards) > 1) == (shard_size < 10**6)


def test_shards_hold_what_safetensors_own_writer_would_write(llama, tmp_path):
    family = gptq_format(llama, ["gptq-4bit-128g"], tmp_path, shard_size=400_000)
    encode_all(family, llama)
    files = family.finish()["gptq-4bit-128g"]
    shards = [path for path in files.paths if path.suffix == ".safetensors"]
    index = json.loads((tmp_path / "gptq/gptq-4bit-128g/model.safetensors.index.json").read_text())
    for path in shards:
        tensors = load_file(path)
        save_file(tensors, tmp_path / "again.safetensors", {"format": "pt"})
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
        assert all(index["weight_map"][name] == path.name for name in tensors)


def test_a_part_encoded_again_after_a_kill_leaves_the_same_files(llama, tmp_path):
    names = ["gptq-4bit-128g", "gptq-4bit-32g-actorder"]
    once, twice = gptq_format(llama, names, tmp_path / "a"), gptq_format(llama, names, tmp_path / "b")
    encode_all(once, llama)
    encode_all(twice, llama)
    weights, seen = checkpoint(llama), statistics(llama)
    again = gptq_format(llama, names, tmp_path / "b")
    part = part_layout(read_facts(llama))[1]
    again.encode(part, {name: weights[name] for name in part.tensors}, seen)
    once.finish()
    again.finish()
    assert _digests(tmp_path / "a" / "gptq") == _digests(tmp_path / "b" / "gptq")
    before = _digests(tmp_path / "b")
    repeated = gptq_format(llama, names, tmp_path / "b").finish()
    assert _digests(tmp_path / "b") == before
    assert set(repeated["gptq-4bit-128g"].layer_errors) == set(find_linears(read_facts(llama)).by_name)


def test_nothing_is_written_twice(llama, tmp_path, monkeypatch):
    """Neither a part on its way to the shards nor a shard on its way to its place."""
    written, pwrite = [0], os.pwrite

    def counted(descriptor: int, data: memoryview, offset: int) -> int:
        done = pwrite(descriptor, data, offset)
        written[0] += done
        return done

    monkeypatch.setattr(os, "pwrite", counted)
    family = gptq_format(llama, ["gptq-4bit-128g"], tmp_path)
    encode_all(family, llama)
    shards = {path.stat().st_ino: path.stat().st_size for path in (tmp_path / ".work").rglob("*.safetensors")}
    files = [path for path in family.finish()["gptq-4bit-128g"].paths if path.suffix == ".safetensors"]
    assert {path.stat().st_ino: path.stat().st_size for path in files} == shards
    weights = [tensor.nbytes for path in files for tensor in load_file(path).values()]
    assert written == [sum(weights)]


def test_a_hessian_is_made_ready_once_for_each_pair_of_group_size_and_order_and_one_at_a_time(
    llama, tmp_path, monkeypatch
):
    ready: list[tuple[Gptq, weakref.ref]] = []

    def told(hessian, layout, damping):
        assert not any(earlier() for _, earlier in ready)  # two of the widest are as large as a block
        made = prepare(hessian, layout, damping)
        ready.append((layout, weakref.ref(made.factor)))
        return made

    monkeypatch.setattr("hubbot.formats.gptq.sharing.prepare", told)
    names = ["gptq-4bit-128g", "gptq-4bit-32g", "gptq-8bit-128g", "gptq-4bit-32g-actorder"]
    part = part_layout(read_facts(llama))[1]
    weights = checkpoint(llama)
    gptq_format(llama, names, tmp_path).encode(part, {name: weights[name] for name in part.tensors}, statistics(llama))
    pairs = Counter((layout.group_size, layout.act_order) for layout, _ in ready)
    assert set(pairs) == {(128, False), (32, False), (32, True)}
    assert len(set(pairs.values())) == 1


def test_embedding_norms_and_head_keep_their_bytes_and_companions_are_copied(llama, tmp_path):
    family = gptq_format(llama, ["gptq-4bit-128g"], tmp_path)
    encode_all(family, llama)
    folder = family.finish()["gptq-4bit-128g"].paths[0].parent
    written, source = checkpoint(folder), checkpoint(llama)
    linears = find_linears(read_facts(llama)).by_name
    for name, tensor in source.items():
        if name not in linears:
            assert torch.equal(written[name], tensor)
            assert written[name].dtype == tensor.dtype
        else:
            assert name not in written
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (llama / name).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == json.loads((folder / "quantize_config.json").read_text())
    assert config | {"quantization_config": None} == json.loads((llama / "config.json").read_text()) | {
        "quantization_config": None
    }


def test_a_missing_part_is_found_before_the_files_get_their_names(llama, tmp_path):
    family = gptq_format(llama, ["gptq-4bit-128g"], tmp_path)
    weights, seen = checkpoint(llama), statistics(llama)
    for part in part_layout(read_facts(llama))[:-1]:
        family.encode(part, {name: weights[name] for name in part.tensors}, seen)
    with pytest.raises(Unsupported, match="lacks"):
        family.finish()
    assert not (tmp_path / "gptq" / "gptq-4bit-128g").exists()


@pytest.mark.parametrize(
    ("width", "variant", "wanted"),
    [
        (160, "gptq-4bit-128g", "160 columns, not a multiple of the group size 128"),
        (176, "gptq-4bit-16g", "176 outputs"),
    ],
)
def test_a_width_that_the_format_cannot_hold_is_refused_with_the_tensor_and_what_to_do(
    width, variant, wanted, tmp_path
):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = make_model("llama", tmp_path / "tiny")
    config = LlamaConfig.from_pretrained(folder)
    config.intermediate_size = width
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    refusal = costs(gptqs([variant]), read_facts(folder), source_of(folder), GptqSettings())[variant]
    assert isinstance(refusal, UnsupportedShape)
    assert re.search(wanted, str(refusal))
    assert "mlp." in str(refusal)
    with pytest.raises(UnsupportedShape):
        gptq_format(folder, [variant], tmp_path / "out")


def test_a_layer_without_calibration_inputs_is_refused(llama, tmp_path):
    family = gptq_format(llama, ["gptq-4bit-128g"], tmp_path)
    weights = checkpoint(llama)
    part = part_layout(read_facts(llama))[1]
    with pytest.raises(Unsupported, match="No calibration inputs"):
        family.encode(part, {name: weights[name] for name in part.tensors}, {})


def test_a_tied_head_cannot_be_quantized(tmp_path):
    folder = make_model("llama", tmp_path / "tiny", tied=True)
    with pytest.raises(Unsupported, match="lm_head"):
        gptq_format(folder, ["gptq-4bit-128g"], tmp_path / "out", lm_head=True)
