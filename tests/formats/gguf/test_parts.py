"""Parts may arrive once, twice, or after a kill; what was encoded can be read back in the checkpoint's layout."""

import shutil

import numpy as np
import pytest
import torch

from hubbot import llamacpp
from hubbot.domain import Family, Gguf, Source
from hubbot.errors import HubbotError, SourceRefused
from hubbot.formats.gguf.check import read
from hubbot.formats.gguf.foreign import read_gguf_as_checkpoint
from hubbot.formats.gguf.format import costs
from hubbot.formats.protocol import Cost
from hubbot.hub.publish.publication import publish
from hubbot.hub.publish.repo_release import RepoRelease
from hubbot.model import read_facts
from hubbot.record.file import write_record
from hubbot.settings import GgufSettings
from tests.formats.gguf.chain import checkpoint, keys_and_tensors, make, open_format, parts, statistics_of
from tests.hub.models import record

TYPES = ["Q4_K_M", "Q6_K", "IQ2_XS"]


def _feed(form, folder, some=slice(None), twice=False):
    weights = checkpoint(folder)
    for part in parts(weights)[some]:
        for _ in range(2 if twice else 1):
            form.encode(part, {name: weights[name] for name in part.tensors}, statistics_of(part, weights))


def _bytes(files):
    return {name: [path.read_bytes() for path in done.paths] for name, done in files.items()}


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_run_that_was_killed_after_any_part_ends_with_the_same_files(llama, tmp_path, done):
    whole, _ = make(llama, TYPES, tmp_path / "whole", imatrix=True)
    first = open_format(llama, TYPES, tmp_path / "killed", imatrix=True)
    _feed(first, llama, slice(0, done))
    first.close()
    second = open_format(llama, TYPES, tmp_path / "killed", imatrix=True)
    _feed(second, llama, slice(done, None), twice=True)
    assert _bytes(second.finish()) == _bytes(whole)


class Killed(BaseException):
    pass


def test_a_run_that_was_killed_while_it_finished_ends_with_the_same_files(llama, tmp_path, monkeypatch):
    whole, _ = make(llama, TYPES, tmp_path / "whole", imatrix=True)
    first = open_format(llama, TYPES, tmp_path / "killed", imatrix=True)
    _feed(first, llama)

    def die():
        raise Killed

    monkeypatch.setattr(first._files["Q6_K"][0], "finish", die)
    with pytest.raises(Killed):
        first.finish()
    assert [path.name for path in (tmp_path / "killed" / "gguf").glob("*.gguf")] == [f"{llama.name}-Q4_K_M.gguf"]
    first.close()
    second = open_format(llama, TYPES, tmp_path / "killed", imatrix=True)
    assert _bytes(second.finish()) == _bytes(whole)


def test_an_earlier_release_stays_whole_until_its_successor_takes_its_name(llama, tmp_path):
    old, _ = make(llama, ["Q4_0"], tmp_path)
    before = _bytes(old)
    form = open_format(llama, ["Q4_0"], tmp_path, work=tmp_path / "another", quantized_by="somebody else")
    _feed(form, llama, slice(0, 2))
    form.close()
    assert _bytes(old) == before
    form = open_format(llama, ["Q4_0"], tmp_path, work=tmp_path / "another", quantized_by="somebody else")
    _feed(form, llama, slice(2, None))
    assert _bytes(form.finish()) != before


def test_parts_written_under_another_header_are_held_no_longer(llama, tmp_path):
    first = open_format(llama, TYPES, tmp_path, imatrix=True)
    _feed(first, llama, slice(0, 2))
    first.close()
    done = parts(checkpoint(llama))[:2]
    same = open_format(llama, TYPES, tmp_path, imatrix=True)
    assert all(same.holds(part) for part in done)
    same.close()
    other = open_format(llama, TYPES, tmp_path, imatrix=True, quantized_by="a name that moves the weights")
    assert not any(other.holds(part) for part in done)
    other.close()


def test_parts_that_were_lost_are_not_made_up(llama, tmp_path):
    form = open_format(llama, ["Q4_K_M"], tmp_path, imatrix=True)
    _feed(form, llama, slice(0, 2))
    with pytest.raises(HubbotError, match="never encoded"):
        form.finish()


def test_partial_files_do_not_end_in_gguf_and_final_ones_appear_only_at_the_end(llama, tmp_path):
    form = open_format(llama, ["Q4_0"], tmp_path)
    _feed(form, llama)
    assert not list(tmp_path.rglob("*.gguf"))
    form.finish()
    assert [path.name for path in tmp_path.rglob("*.gguf")] == [f"{llama.name}-Q4_0.gguf"]


def test_a_shared_tensor_of_equal_type_is_one_decoded_object(llama, tmp_path):
    form = open_format(llama, ["Q5_K_M", "Q6_K"], tmp_path)
    weights = checkpoint(llama)
    head = parts(weights)[-1]
    found = form.encode(head, {name: weights[name] for name in head.tensors}, {})
    assert found["Q5_K_M"]["lm_head.weight"] is found["Q6_K"]["lm_head.weight"]
    form.close()


def test_lossless_types_decode_to_the_source_and_offer_nothing_to_measure(llama, tmp_path):
    files, decoded = make(llama, ["BF16", "F32"], tmp_path)
    assert decoded == {"BF16": {}, "F32": {}}
    for done in files.values():
        found = read_gguf_as_checkpoint(done.paths[0], read_facts(llama))
        for name, weight in checkpoint(llama).items():
            assert torch.equal(found[name].decode(), weight.float()), name


def test_decoded_tensors_are_what_is_in_the_file_in_the_checkpoints_row_order(llama, tmp_path):
    files, decoded = make(llama, ["Q8_0"], tmp_path)
    foreign = read_gguf_as_checkpoint(files["Q8_0"].paths[0], read_facts(llama))
    for name, weight in checkpoint(llama).items():
        if weight.ndim == 2:
            assert torch.equal(decoded["Q8_0"][name], foreign[name].decode())
            off = (decoded["Q8_0"][name] - weight.float()).abs().amax(1) / weight.float().abs().amax(1)
            assert off.max() < 1 / 127, f"{name} has rows in another order"


def test_sizes_are_known_exactly_before_anything_is_read(llama, tmp_path):
    names = ["Q4_K_M", "IQ3_M", "F16"]
    source = Source(folder=str(llama), repo=None, revision=None, files={})
    variants = [Gguf(type=name) for name in names]
    told = costs(variants, source, read_facts(llama), tmp_path / "plan", GgufSettings(imatrix=False), context=64)
    files, _ = make(llama, names, tmp_path / "out")
    for name in names:
        cost = told[name]
        assert isinstance(cost, Cost)
        assert cost.file_bytes == sum(path.stat().st_size for path in files[name].paths)
        assert cost.weight_bytes == files[name].weight_bytes
    assert isinstance(told["F16"], Cost)
    assert told["F16"].bits_per_weight == pytest.approx(16, rel=0.01)


def test_files_above_the_limit_are_split_as_llama_cpp_reads_them(llama, tmp_path):
    whole, _ = make(llama, ["Q4_K_M"], tmp_path / "whole")
    settings = GgufSettings(imatrix=False, shard_size=300_000)
    split, _ = make(llama, ["Q4_K_M"], tmp_path / "split", settings=settings)
    paths = split["Q4_K_M"].paths
    assert len(paths) > 2
    assert paths[0].name == f"{llama.name}-Q4_K_M-00001-of-{len(paths):05d}.gguf"
    keys, tensors = keys_and_tensors(whole["Q4_K_M"].paths[0])
    found = {}
    for number, path in enumerate(paths):
        own, held = keys_and_tensors(path)
        assert (own["split.no"], own["split.count"], own["split.tensors.count"]) == (number, len(paths), len(tensors))
        assert sum(len(data) for _, _, data in held.values()) <= 300_000 or len(held) == 1
        found |= held
        if number == 0:
            assert {key: own[key] for key in keys} == keys
    assert found == tensors
    assert read(paths, None).check.loaded
    whole_of_shards = read_gguf_as_checkpoint(paths[1], read_facts(llama))
    assert "lm_head.weight" in whole_of_shards


@pytest.mark.slow
def test_a_new_template_uploads_the_first_shard_alone_where_it_holds_no_weight(llama, tmp_path, hub):
    settings = GgufSettings(imatrix=True, first_shard="metadata")
    changed = tmp_path / llama.name
    shutil.copytree(llama, changed)
    (changed / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    ada = hub.seen(hub.user("ada"))
    made = []
    for number, folder in enumerate((llama, changed)):
        out = tmp_path / f"{number}"
        done = make(folder, ["Q4_K_M"], out, imatrix=True, settings=settings)[0]["Q4_K_M"]
        paths = [path for path in done.paths if path.suffix == ".gguf"]
        assert [path.name[-20:] for path in paths] == ["-00001-of-00002.gguf", "-00002-of-00002.gguf"]
        assert keys_and_tensors(paths[0])[1] == {}
        assert read(paths, None).check.loaded
        made.append(paths)
        hub.journal.clear()
        publish(_release(paths, out, number), ada, mode="main")
        assert hub.journal.count("PUT /storage/") == (2 if number == 0 else 1)
    (keys, weights), (new_keys, same) = ([path.read_bytes() for path in paths] for paths in made)
    assert keys != new_keys
    assert weights == same
    assert hub.read("ada/tiny-GGUF", made[1][0].name) == new_keys


def _release(paths, out, number):
    files = {f"gguf/{path.name}": path.read_bytes() for path in paths}
    write_record(record(seed=number, variants={"Q4_K_M": files}), out)
    there = {path.name: path for path in paths}
    return RepoRelease(
        repo_id="ada/tiny-GGUF",
        branches={"main": {**there, "hubbot.json": out / "hubbot.json"}},
        title=f"Release {number}",
        description="",
        family=Family.GGUF,
    )


def test_weights_that_are_not_finite_are_refused_naming_the_tensor(llama, tmp_path):
    form = open_format(llama, ["Q4_0"], tmp_path)
    weights = checkpoint(llama)
    part = parts(weights)[1]
    held = {name: weights[name].clone() for name in part.tensors}
    held["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    with pytest.raises(SourceRefused, match=r"blk\.0\.ffn_up\.weight"):
        form.encode(part, held, {})
    form.close()


def test_vocabulary_rows_that_the_converter_drops_stay_what_they_were(tmp_path):
    from tests.models import make_model

    folder = make_model("gemma3", tmp_path / "tiny")
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "embed_tokens" in name)
    extra = torch.full((16, weights[name].shape[1]), 0.5, dtype=weights[name].dtype)
    weights[name] = torch.cat([weights[name], extra])
    save_file(weights, path, metadata={"format": "pt"})
    text = (folder / "config.json").read_text().replace('"vocab_size": 512', '"vocab_size": 528')
    (folder / "config.json").write_text(text)
    files, decoded = make(folder, ["Q8_0"], tmp_path / "out")
    assert decoded["Q8_0"][name].shape == weights[name].shape
    if keys_and_tensors(files["Q8_0"].paths[0])[1]["token_embd.weight"][1][1] == 512:
        assert torch.equal(decoded["Q8_0"][name][512:], extra.float())
    np.testing.assert_allclose(decoded["Q8_0"][name][:512], weights[name][:512].float(), atol=0.05)


def test_the_pinned_tree_is_the_only_gguf_package():
    origin = llamacpp.gguf().__file__
    assert origin.startswith(str(llamacpp.find().source))
