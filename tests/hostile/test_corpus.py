"""Every bad repo and file is refused by a sentence that names the rule, cheaply, and touches nothing."""

import multiprocessing
import os
import re
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from hubbot.confine.isolate import call
from hubbot.confine.stage import Stage
from hubbot.errors import HubbotError, SourceRefused, UnsafeSource
from hubbot.model import check_finite, part_layout, read_facts, unpickle
from hubbot.model.gguf import read_gguf_header
from tests.hostile import gguf_files, model, repos

MEMORY = 700 * 2**20  # generous: a hundredth of what the crafted sizes ask for
SECONDS = 30  # generous: the slowest case takes under two


@pytest.fixture
def folder(tmp_path):
    return model.write_model(tmp_path / "model")


@pytest.fixture
def untouched(tmp_path):
    """Call a function and see that no file under tmp_path changed."""

    def watch(function, *arguments):
        before = _listing(tmp_path)
        try:
            return function(*arguments)
        finally:
            assert _listing(tmp_path) == before

    return watch


def _listing(folder):
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (status.st_size, status.st_mtime_ns, status.st_mode) for path, status in found.items()}


@pytest.fixture(scope="module")
def narrow():
    """A process in which whoever asks for MEMORY bytes more than what is there already gets a MemoryError."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_narrow) as pool:
        yield pool


def _narrow():
    from hubbot.model import config  # noqa: F401 -- what it brings along is no part of a case

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.fixture
def bounded(narrow):
    """The error that a function raises, within bounds of time and memory."""

    def call_bounded(function, *arguments):
        asked = narrow.submit(function, *arguments)
        with pytest.raises(HubbotError) as caught:
            asked.result(SECONDS)
        return caught.value

    return call_bounded


def _take(size):
    return len(bytes(size))


def test_the_bound_on_memory_refuses_who_exceeds_it(narrow):
    assert narrow.submit(_take, MEMORY // 2).result(SECONDS) == MEMORY // 2
    with pytest.raises(MemoryError):
        narrow.submit(_take, 2 * MEMORY).result(SECONDS)


def _is_one_plain_sentence(error):
    text = str(error)
    assert text.endswith(".")
    assert len(text) < 1_000
    assert text.isprintable(), "a terminal or a log must show it as it is"


def test_the_honest_model_is_accepted(folder):
    facts = read_facts(folder)
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.parameters == 1_704  # 2 * 32 * 8 + 8 + 2 * 592
    assert facts.license == "apache-2.0"
    assert not facts.tied
    check_finite(folder, facts)


def test_the_honest_model_in_shards_is_the_same_model(tmp_path, folder):
    sharded = read_facts(model.write_sharded(tmp_path / "sharded"))
    assert sharded.parameters == read_facts(folder).parameters
    assert [part.name for part in part_layout(sharded)] == ["embedding", "block-00000", "block-00001", "head"]


@pytest.mark.parametrize("case", repos.BAD)
def test_a_bad_repo_is_refused(folder, untouched, bounded, case):
    spoil, error, says = repos.BAD[case]
    spoil(folder)
    caught = untouched(bounded, read_facts, folder)
    assert type(caught) is error
    assert re.search(re.escape(says) if "|" not in says else says, str(caught)), str(caught)
    _is_one_plain_sentence(caught)


@pytest.mark.parametrize("case", gguf_files.BAD)
def test_a_crafted_gguf_file_is_refused(tmp_path, untouched, bounded, case):
    build, error, says = gguf_files.BAD[case]
    build(tmp_path / "model.gguf")
    caught = untouched(bounded, read_gguf_header, tmp_path / "model.gguf")
    assert type(caught) is error
    assert says in str(caught)
    _is_one_plain_sentence(caught)


def test_the_corpus_holds_what_the_project_promises():
    assert len(repos.BAD) + len(gguf_files.BAD) + len(repos.NOT_FINITE) >= 60


@pytest.mark.parametrize("place", [0, 1, 63])
@pytest.mark.parametrize("case", repos.NOT_FINITE)
def test_a_weight_that_is_not_finite_is_named(folder, case, place):
    dtype, value = repos.NOT_FINITE[case]
    header, _ = model.entries()
    position = 0
    for entry in header.values():
        count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // 4
        entry |= {"dtype": dtype, "data_offsets": [position, position + count * len(value)]}
        position += count * len(value)
    data = bytearray(position)
    begin = header["model.layers.1.self_attn.q_proj.weight"]["data_offsets"][0] + place * len(value)
    data[begin : begin + len(value)] = value
    model.write_safetensors(folder / "model.safetensors", header, bytes(data))
    facts = read_facts(folder)
    with pytest.raises(
        SourceRefused,
        match=re.escape(
            f"model.layers.1.self_attn.q_proj.weight in model.safetensors holds a value at [{place // 8}, {place % 8}]"
        ),
    ):
        check_finite(folder, facts)


@pytest.mark.parametrize("case", ["remote-code", "pickle-only", "a-header-of-100-gigabytes", "an-anchors-bomb"])
def test_the_refusal_reaches_the_parent_of_the_confined_process(folder, tmp_path, case):
    spoil, error, says = repos.BAD[case]
    spoil(folder)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    stage = Stage(target="inside:architecture", question=str, answer=str)
    with pytest.raises(error, match=re.escape(says)):
        call(stage, str(folder), work=tmp_path / "work", readable=[folder], environ=environ)


def test_a_pickle_that_runs_code_is_refused_by_the_weights_only_loader(folder, tmp_path, untouched):
    import torch

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeSource, match="weights-only loader refuses"):
        untouched(lambda: read_facts(folder, allow_pickle=True))
    with pytest.raises(UnsafeSource, match="weights-only loader refuses"):
        unpickle(folder, tmp_path / "converted")
    assert not (tmp_path / "owned").exists()


def test_an_honest_pickle_becomes_safetensors_for_who_opts_in(folder, tmp_path):
    import torch

    (folder / "model.safetensors").unlink()
    tensors = {name: torch.randn(shape) for name, shape in model.shapes().items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    listed = read_facts(folder, allow_pickle=True)
    made = unpickle(folder, tmp_path / "converted")
    facts = read_facts(made)
    assert {name: info.shape for name, info in facts.tensors.items()} == {n: i.shape for n, i in listed.tensors.items()}
    from safetensors.torch import load_file

    found = load_file(made / "model-00001-of-00001.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_pickle_of_tensors_in_another_order_becomes_the_same_safetensors(folder, tmp_path):
    import torch
    from safetensors.torch import load_file

    (folder / "model.safetensors").unlink()
    tensors = {name: torch.randn(shape) for name, shape in model.shapes().items()}
    turned = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in tensors.items()}
    torch.save(turned, folder / "pytorch_model.bin")
    found = load_file(unpickle(folder, tmp_path / "converted") / "model-00001-of-00001.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_belongs_to_a_pickled_model_is_beside_its_safetensors(folder, tmp_path):
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({name: torch.zeros(shape) for name, shape in model.shapes().items()}, folder / "pytorch_model.bin")
    kept = ("1_Pooling/config.json", "additional_chat_templates/rag.jinja", "LICENSE", "config.json")
    for name in kept[:3]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    made = unpickle(folder, tmp_path / "converted")
    assert all((made / name).is_file() for name in kept)
    assert not (made / "pytorch_model.bin").exists()
