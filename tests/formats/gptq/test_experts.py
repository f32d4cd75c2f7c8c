"""GPTQ of mixtures of experts: a matrix an expert, read by GPTQModel."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hubbot.domain import Bnb, Family, Gptq, Source
from hubbot.errors import Unsupported
from hubbot.formats.bnb import layout as bnb
from hubbot.formats.foreign import read_artefact
from hubbot.formats.gptq.choice import choose
from hubbot.formats.gptq.definition import Definition, definition_of, names_for
from hubbot.formats.gptq.experts import even_statistics, seldom_seen
from hubbot.formats.gptq.format import GPTQ, costs
from hubbot.formats.gptq.layers import _refuse_experts
from hubbot.formats.linears import Linear, Linears, find_linears
from hubbot.formats.protocol import InputStatistics
from hubbot.formats.stack import Stack
from hubbot.model import read_facts
from hubbot.settings import load_settings
from tests.formats.mixtures import swept
from tests.models import make_model

VARIANT = Gptq(bits=4, group_size=32)
SMALL = {"hidden_size": 32, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}


def source(folder: Path) -> Source:
    files = {path.name: "" for path in folder.iterdir()} if folder.exists() else {}
    return Source(folder=str(folder), repo=None, revision=None, files=files)


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_gptqmodel_reads_experts_that_the_checkpoint_stores_or_calls_otherwise(family: str, tmp_path: Path) -> None:
    compare_with_gptqmodel(family, tmp_path)


@pytest.mark.slow
def test_gptqmodel_computes_what_the_sweep_computed(tmp_path: Path) -> None:
    compare_with_gptqmodel("qwen3_moe", tmp_path)


def compare_with_gptqmodel(family: str, tmp_path: Path) -> None:
    folder = make_model(family, tmp_path / "tiny")
    facts = read_facts(folder)
    result, saved = swept(folder, tmp_path, {VARIANT.name: GPTQ})
    assert not result.failed
    assert 0 < result.scores[VARIANT.name].kld.mean < 1
    read = read_artefact(result.files[VARIANT.name].paths[0].parent, facts)._tensors
    assert set(read) == set(facts.tensors)
    weights = load_file(folder / "model.safetensors")
    for name, error in result.layer_errors[VARIANT.name].items():
        weight = weights[name].float()
        apart = (read[name].decode() - weight).square().sum() / weight.square().sum()
        assert float(apart) == pytest.approx(error, rel=1e-3), name
    check = read_apart(result.files[VARIANT.name].paths, saved[VARIANT.name])
    assert check["passed"], check["error"]
    assert str(check["runtime"]).startswith("gptqmodel")


def read_apart(paths: Sequence[Path], reference: Path) -> dict[str, object]:
    """The load check in a process of its own: GPTQModel changes transformers' classes of experts in the one it runs in."""
    code = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path; from hubbot.formats import gptq;"
        "*paths, reference = map(Path, sys.argv[1:]);"
        "reading = gptq.read(paths, reference, prompts=[[5, 6, 7]], new_tokens=4);"
        "print(json.dumps(asdict(reading.check)))"
    )
    command = [sys.executable, "-c", code, *map(str, paths), str(reference)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_experts_matrix_is_a_layer_and_routers_stay_as_they_are(tmp_path: Path) -> None:
    facts = read_facts(make_model("mixtral", tmp_path / "tiny"))
    experts = [linear for linear in find_linears(facts).blocks if linear.expert]
    assert len(experts) == 2 * 4 * 3
    assert {(linear.out_features, linear.in_features) for linear in experts} == {(512, 256), (256, 512)}


@pytest.mark.slow
def test_experts_that_gptqmodel_takes_no_codes_for_are_refused_in_the_plan(tmp_path: Path) -> None:
    facts = read_facts(make_model("granitemoe", tmp_path / "tiny"))
    with pytest.raises(Unsupported, match=r"takes no codes for .*experts\.0\.gate_proj and 23 more layers, 89% of"):
        costs([VARIANT], facts, source(facts.folder), load_settings(None, {}).gptq)


def test_a_tensor_of_all_experts_that_cannot_be_split_is_refused_by_its_name() -> None:
    whole = Linears(blocks=(), head=None, head_module=None, outside=(), stacked=("model.layers.0.mlp.experts.w",))
    with pytest.raises(
        Unsupported, match=r"as one tensor \(model.layers.0.mlp.experts.w\), in a way that cannot be split"
    ):
        _refuse_experts(whole, Family.GPTQ, gptqmodel=True)


def as_defined(folder: Path) -> tuple[Linears, list[str], Definition]:
    """A model's layers and tensors, and a reader that takes codes for all its layers under transformers' own paths."""
    facts = read_facts(folder)
    found = find_linears(facts)
    layers = {layer.module: (layer.out_features, layer.in_features) for layer in (*found.blocks, *found.pieces)}
    inside = {layer.tensor for layer in (*found.blocks, *found.pieces)} | {
        cut.tensor for cut in found.split_biases.values()
    }
    others = frozenset(found.targets.get(name, name) for name in facts.tensors if name not in inside)
    definition = Definition(layers=layers, tensors=others | {*found.split_biases}, fault=None)
    return found, list(facts.tensors), definition


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Linears, list[str], Definition]:
    return as_defined(make_model("mixtral", tmp_path_factory.mktemp("mixtral") / "tiny"))


def test_files_call_every_tensor_as_gptqmodels_own_model_does(mixtral: tuple[Linears, list[str], Definition]) -> None:
    names = names_for(*mixtral)
    assert not names.left
    assert names.names["model.layers.0.block_sparse_moe.gate.weight"] == "model.layers.0.mlp.gate.weight"
    experts = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for theirs, ours in experts.items():
        called = names.names[f"model.layers.1.block_sparse_moe.experts.2.{theirs}.weight"]
        assert called == f"model.layers.1.mlp.experts.2.{ours}.weight"
    assert "model.layers.0.self_attn.q_proj.weight" not in names.names


def test_what_gptqmodel_would_not_read_is_refused_with_the_reason(
    mixtral: tuple[Linears, list[str], Definition],
) -> None:
    linears, tensors, whole = mixtral
    expert, query = "model.layers.0.mlp.experts.3.down_proj", "model.layers.1.self_attn.q_proj"
    without = {path: size for path, size in whole.layers.items() if path != expert}
    cases = {
        "cannot take this model \\(no sigmoid\\)": replace(whole, fault="no sigmoid"),
        f"has no layer {expert} to hold .*experts.3.w2.weight": replace(whole, layers=without),
        "takes .*q_proj for a layer of 8 outputs": replace(whole, layers={**whole.layers, query: (8, 256)}),
        "looks for model.extra.bias, which no tensor": replace(whole, tensors=whole.tensors | {"model.extra.bias"}),
        "takes no codes for model.layers.0.mlp.experts.0.gate_proj and 23 more layers, 8.%": replace(
            whole,
            layers={path: size for path, size in whole.layers.items() if "experts" not in path},
            tensors=whole.tensors | {f"{path}.weight" for path in whole.layers},
        ),
    }
    for told, definition in cases.items():
        with pytest.raises(Unsupported, match=told):
            names_for(linears, tensors, definition)


def test_a_few_layers_that_gptqmodel_takes_no_codes_for_stay_as_they_are(
    mixtral: tuple[Linears, list[str], Definition],
) -> None:
    linears, tensors, whole = mixtral
    query = "model.layers.1.self_attn.q_proj"
    fewer = {path: size for path, size in whole.layers.items() if path != query}
    names = names_for(linears, tensors, replace(whole, layers=fewer, tensors=whole.tensors | {f"{query}.weight"}))
    choice = choose(linears, VARIANT, left=names.left)
    assert [layer.module for layer in choice.kept] == [query]
    assert f"{query}.weight" not in choice.rounded
    assert choice.note
    assert choice.note.endswith(f"GPTQModel takes no codes for them, {query}.weight [256, 256] the first")


def test_a_tensor_of_all_experts_is_cut_into_their_matrices_and_put_together_again(tmp_path: Path) -> None:
    """gpt-oss stores [experts, in, out], and a gate beside every up projection; the lots are halves, as GPTQModel cuts them."""
    folder = make_model("gpt_oss", tmp_path / "tiny")
    linears, _, _ = as_defined(folder)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stacked = torch.randn(read_facts(folder).tensors[name].shape)
    pieces = [piece for piece in linears.pieces if piece.tensor == name]
    assert len(pieces) == 2 * 4
    up = next(piece for piece in pieces if piece.module == "model.layers.0.mlp.experts.3.up_proj")
    assert up.statistics == f"{name}[3]"
    assert torch.equal(up.upright(stacked), stacked[3, :, stacked.shape[2] // 2 :].T)
    bias = linears.split_biases["model.layers.0.mlp.experts.3.up_proj.bias"]
    assert torch.equal(bias.of(torch.arange(4 * 8).reshape(4, 8)), torch.arange(28, 32))
    whole = Stack(
        torch.zeros_like(stacked), True, [(piece.cut, Kept(piece.upright(stacked))) for piece in pieces if piece.cut]
    )
    assert torch.equal(whole.decode(), stacked)


@dataclass(frozen=True)
class Kept:
    weight: torch.Tensor

    def decode(self) -> torch.Tensor:
        return self.weight


@pytest.mark.slow
def test_gptqmodel_says_what_it_would_read_and_where_its_blocks_stop(tmp_path: Path) -> None:
    """Of GLM-4 MoE as long as it is so: with a defuser that knows the router there is no fault, and nothing is refused."""
    found = definition_of(make_model("mixtral", tmp_path / "mixtral"))
    assert found.layers["model.layers.0.mlp.experts.3.down_proj"] == (256, 512)
    assert "model.layers.0.mlp.gate.weight" in found.tensors
    assert found.fault is None
    theirs = transformers.Glm4MoeConfig(
        **SMALL, num_hidden_layers=2, first_k_dense_replace=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16
    )
    theirs.save_pretrained(tmp_path)
    assert "'tuple' object has no attribute 'sigmoid'" in (definition_of(tmp_path).fault or "")


def test_bitsandbytes_is_refused_with_the_share_that_would_stay(tmp_path: Path) -> None:
    facts = read_facts(make_model("mixtral", tmp_path / "tiny"))
    with pytest.raises(
        Unsupported, match=r"89% of the weights in the layers of MixtralForCausalLM's blocks are experts"
    ):
        bnb.costs([Bnb(kind="nf4")], facts, source(facts.folder), load_settings(None, {}).bnb)


def test_an_expert_that_saw_hardly_a_token_is_rounded_plainly() -> None:
    def seen(tokens: int) -> InputStatistics:
        return InputStatistics(squares=torch.ones(4), hessian=torch.eye(4), tokens=tokens)

    linears = [Linear(name, name, 2, 4, expert=True) for name in ("busy", "rare", "never")]
    statistics = {"dense": seen(1000), "busy": seen(6), "rare": seen(5)}
    seldom = seldom_seen([*linears, Linear("dense", "dense", 2, 4)], statistics)
    assert [linear.name for linear in seldom] == ["rare", "never"]
    even = even_statistics(seldom, like=statistics)
    assert even["rare"] is even["never"]
    assert even["rare"].hessian is not None
    assert torch.equal(even["rare"].hessian, torch.eye(4))
