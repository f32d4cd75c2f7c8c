"""Whatever bytes the parsers of our own are given, they succeed or raise a HubbotError."""

import json
import re
import string
import struct
from dataclasses import asdict
from functools import partial

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubbot.bot.verdicts import Known
from hubbot.bot.watch import Policy, judge
from hubbot.bot.webhook import events_of, from_job, read_delivery
from hubbot.errors import BadSettings, HubbotError
from hubbot.formats.names import parse_variants
from hubbot.hub.client import Hub
from hubbot.hub.read.listing import candidate, collection, read_contents
from hubbot.hub.read.reader import Page, Reader
from hubbot.model import read_facts
from hubbot.model.front_matter import parse_front_matter
from hubbot.model.gguf import read_gguf_header
from hubbot.model.safetensors import DTYPE_BITS, read_header
from hubbot.model.snapshot import plain_name
from hubbot.model.strict_json import parse_object
from hubbot.record.file import from_json, to_json
from hubbot.release.licence import judge_licence
from hubbot.settings import load_settings
from hubbot.settings.watch import WatchSettings
from tests.hostile import model
from tests.hub.models import record

pytestmark = pytest.mark.slow
hostile = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

numbers = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, 8, 2**31, 2**63, 2**64, -1, True])
scalars = st.none() | numbers | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def only_hubbot_errors(function, *arguments):
    """The function's result, or None where it refused in one line."""
    try:
        return function(*arguments)
    except HubbotError as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None


# --- safetensors ---------------------------------------------------------------------------------------

entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(DTYPE_BITS)) | scalars,
        "shape": st.lists(st.integers(0, 4) | numbers, max_size=4) | scalars,
        "data_offsets": st.lists(st.integers(0, 64) | numbers, max_size=3) | scalars,
        "extra": values,
    },
)


@hostile
@given(data=st.binary(max_size=300))
def test_any_bytes_as_a_safetensors_file(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    only_hubbot_errors(read_header, path)


@hostile
@given(
    header=st.dictionaries(
        st.sampled_from(["a.weight", "b.weight", "__metadata__"]) | st.text(max_size=6), entry | values, max_size=4
    ),
    size=st.integers(0, 80),
)
def test_any_json_as_a_safetensors_header(tmp_path, header, size):
    path = tmp_path / "x.safetensors"
    model.write_safetensors(path, header, bytes(size))
    tensors = only_hubbot_errors(read_header, path)
    if tensors:  # what is accepted is laid out as the format demands
        end = path.stat().st_size - size
        for info in tensors.values():
            assert info.offset == end
            end += info.size
        assert end == path.stat().st_size


@hostile
@given(cut=st.integers(0, 5_000), flips=st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 255)), max_size=4))
def test_a_damaged_honest_file(tmp_path, cut, flips):
    path = tmp_path / "x.safetensors"
    header, size = model.entries()
    model.write_safetensors(path, header, bytes(size))
    data = bytearray(path.read_bytes())
    for place, change in flips:
        data[place % len(data)] ^= change
    path.write_bytes(data[: len(data) - cut])
    only_hubbot_errors(read_header, path)


@hostile
@given(shapes=st.dictionaries(st.sampled_from(list("abcdef")), st.lists(st.integers(0, 5), max_size=3), min_size=1))
def test_what_the_safetensors_library_writes_is_read(tmp_path, shapes):
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {name: np.ones(shape, np.float16) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "np"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: (info.dtype, list(info.shape)) for name, info in found.items()} == {
        n: ("F16", s) for n, s in shapes.items()
    }


# --- GGUF ----------------------------------------------------------------------------------------------


@hostile
@given(
    data=st.binary(max_size=200),
    version=st.sampled_from([2, 3]),
    counts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_any_bytes_as_a_gguf_header(tmp_path, data, version, counts):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, *counts) + data)
    only_hubbot_errors(read_gguf_header, path)


@hostile
@given(
    keys=st.lists(
        st.tuples(st.text(string.ascii_lowercase + ".", max_size=9), st.integers(0, 14), st.binary(max_size=40)),
        max_size=3,
    ),
    tensors=st.lists(
        st.tuples(
            st.text("ab", max_size=3),
            st.lists(st.integers(0, 2**64 - 1) | st.integers(1, 64), max_size=5),
            st.integers(0, 45),
            st.integers(0, 256),
        ),
        max_size=3,
    ),
)
def test_any_keys_and_tensors_in_a_gguf_file(tmp_path, keys, tensors):
    path = model.gguf(tmp_path / "x.gguf", keys=keys, tensors=tensors)
    header = only_hubbot_errors(read_gguf_header, path)
    if header:
        assert all(tensor.offset + tensor.size <= path.stat().st_size for tensor in header.tensors.values())


# --- JSON, YAML, names ---------------------------------------------------------------------------------


@hostile
@given(
    data=st.binary(max_size=200)
    | st.text(string.printable, max_size=200).map(str.encode)
    | values.map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_as_json(data):
    found = only_hubbot_errors(lambda: parse_object(data, name="x.json"))
    assert found is None or isinstance(found, dict)


@hostile
@given(
    weight_map=st.dictionaries(
        st.sampled_from(sorted(model.shapes())) | st.text(max_size=5), st.text(max_size=12) | scalars, max_size=5
    )
)
def test_any_index(tmp_path, weight_map):
    folder = model.write_sharded(tmp_path / "model")
    model.write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    only_hubbot_errors(read_facts, folder)


@hostile
@given(name=st.text(max_size=30) | st.sampled_from([".", "..", "a/../b", "CON", "a\\b", "a\0"]))
def test_a_plain_name_stays_in_its_folder(tmp_path, name):
    if plain_name(name):
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()


@hostile
@given(yaml=st.text(max_size=200) | st.text(" \n-:[]{}&*!|>'\"#%@`?,abc01~.", max_size=80))
def test_any_text_as_front_matter(yaml):
    only_hubbot_errors(parse_front_matter, f"---\n{yaml}\n---\n")


@hostile
@given(
    front=st.dictionaries(
        st.sampled_from(
            ["license", "license_name", "license_link", "language", "tags", "base_model", "pipeline_tag", "gated"]
        ),
        values,
        max_size=5,
    )
)
def test_any_values_in_front_matter(front):
    text = yaml.safe_dump(front, allow_unicode=True)
    found = only_hubbot_errors(parse_front_matter, f"---\n{text}---\n")
    if found:
        only_hubbot_errors(judge_licence, found.license, found.license_name, found.license_link)


@hostile
@given(
    changes=st.dictionaries(
        st.sampled_from(
            [*model.CONFIG, "text_config", "auto_map", "quantization_config", "num_experts", "head_dim", "n_layer"]
        ),
        values,
        min_size=1,
        max_size=4,
    )
)
def test_any_values_in_a_config(tmp_path, changes):
    folder = model.write_model(tmp_path / "model")
    model.config(folder, **changes)
    only_hubbot_errors(read_facts, folder)


@hostile
@given(
    content=values,
    name=st.sampled_from(
        [
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "added_tokens.json",
            "generation_config.json",
            "chat_template.json",
        ]
    ),
)
def test_any_values_in_tokenizer_files(tmp_path, content, name):
    folder = model.write_model(tmp_path / "model")
    model.write_json(folder / name, content)
    only_hubbot_errors(read_facts, folder)


@hostile
@given(names=st.text(max_size=40) | st.from_regex(r"gptq-[0-9-]{1,9}bit-[0-9-]{1,9}g(-[a-z]{1,9})?", fullmatch=True))
def test_any_text_as_variant_names(names):
    found = only_hubbot_errors(parse_variants, names)
    assert found is None or ",".join(v.name for v in parse_variants(",".join(v.name for v in found))) == ",".join(
        v.name for v in found
    )


@hostile
@given(
    size=st.text(max_size=20)
    | st.from_regex(r"[0-9]{1,400}(\.[0-9]{1,5})? ?[KMGTkmgt]?[iI]?[bB]?", fullmatch=True)
    | values
)
def test_any_value_as_a_size(size):
    found = only_hubbot_errors(load_settings, None, {"budget.ram": size})
    assert found is None or found.budget.ram is None or found.budget.ram >= 0


@pytest.mark.parametrize("size", ["9" * 400, "1e400", "inf", "nan", "-1", "", "GB", "1,5GB", "٣GB"])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(BadSettings):
        load_settings(None, {"budget.ram": size})


# --- what the Hub sends ----------------------------------------------------------------------------------

HONEST_DELIVERY = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": "maker/one", "id": "x"},
    "updatedRefs": [{"ref": "refs/heads/main", "oldSha": None, "newSha": "2" * 40}],
}
HONEST_RECORD = json.loads(to_json(record(variants={"Q8_0": {"gguf/tiny-Q8_0.gguf": b"GGUF"}})))
POLICY = Policy(watch=WatchSettings(), settings="s", version="1", bits={"Q8_0": 8.5}, targets=lambda _: {}, disk=10**12)
HONEST_MODEL = {
    "id": "maker/one",
    "sha": "1" * 40,
    "lastModified": "2026-01-01T00:00:00.000Z",
    "tags": ["safetensors", "license:mit", "base_model:quantized:maker/base"],
    "config": {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "fp8"}},
    "cardData": {"license": "mit", "base_model": ["maker/base"], "base_model_relation": "quantized"},
    "safetensors": {"parameters": {"F32": 16}, "total": 16},
}


def spoilt(honest):
    """An honest value of JSON with a part of it replaced by something else."""
    if isinstance(honest, dict):
        inner = st.fixed_dictionaries({}, optional={key: spoilt(value) | values for key, value in honest.items()})
        return inner | st.just(honest)
    if isinstance(honest, list):
        return st.lists(st.one_of([spoilt(item) for item in honest] or [values]), max_size=3) | st.just(honest)
    return st.just(honest) | scalars


@hostile
@given(body=spoilt(HONEST_DELIVERY).map(json.dumps) | st.text(max_size=60) | st.binary(max_size=60))
def test_any_webhook_delivery(body):
    delivery = only_hubbot_errors(read_delivery, body)
    for event in events_of(delivery) if delivery else ():
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", event.model)
        assert re.fullmatch(r"[0-9a-f]{40}", event.sha)
        assert event.ref == "refs/heads/main" or event.ref.startswith("refs/tags/")


@hostile
@given(payload=spoilt(HONEST_DELIVERY).map(json.dumps) | st.text(max_size=60), repo=st.text(max_size=20))
def test_any_payload_of_a_job_that_a_webhook_started(payload, repo):
    secret = "s" * 16
    environ = {"HUBBOT_WEBHOOK_SECRET": secret, "WEBHOOK_SECRET": secret}
    environ |= {"WEBHOOK_PAYLOAD": payload, "WEBHOOK_REPO_ID": repo}
    for event in only_hubbot_errors(from_job, environ) or ():
        assert event.model == repo or not repo


@hostile
@given(info=spoilt(HONEST_MODEL) | values)
def test_any_entry_of_a_list_of_models(info):
    found = candidate(info)
    if found is not None:
        assert re.fullmatch(r"[0-9a-f]{40}", found.sha)
        verdict = judge(found, Known(), POLICY)
        assert verdict.reason
        assert json.dumps(asdict(found))


class Told(Reader):
    """A reader that was told the answers."""

    def __init__(self, tree, refs):
        super().__init__(Hub())
        self.answers = {"tree": tree, "refs": refs}

    def get(self, path, params=None, *, etag=None):
        return Page(body=self.answers["refs" if path.endswith("refs") else "tree"], etag=None, next=None)


HONEST_TREE = [
    {"type": "file", "path": "model.safetensors", "oid": "a" * 40, "lfs": {"oid": "b" * 64, "size": 3}},
    {"type": "file", "path": "config.json", "oid": "c" * 40},
    {"type": "directory", "path": "onnx", "oid": "d" * 40},
]
HONEST_REFS = {"tags": [{"name": "v1", "targetCommit": "1" * 40}], "branches": []}


@hostile
@given(tree=spoilt(HONEST_TREE) | values, refs=spoilt(HONEST_REFS) | values)
def test_any_list_of_a_repos_files_and_refs(tree, refs):
    found = only_hubbot_errors(partial(read_contents, tags=True), Told(tree, refs), "maker/one", "1" * 40)
    assert found is None or json.dumps(found.files)


@hostile
@given(body=spoilt({"items": [{"type": "model", "id": "maker/one", "lastModified": "2026-01-01"}]}) | values)
def test_any_collection(body):
    found = only_hubbot_errors(collection, Told(body, None), "maker/best-1")
    assert found is None or found[0] is None or json.dumps(found[0])


@hostile
@given(text=spoilt(HONEST_RECORD).map(json.dumps) | st.text(max_size=80) | st.binary(max_size=80))
def test_any_text_as_hubbot_json(text):
    found = only_hubbot_errors(from_json, text)
    if found is not None:
        again = from_json(to_json(found))
        assert to_json(again) == to_json(found)
