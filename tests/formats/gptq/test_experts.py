"""GPTQ of mixtures of experts: a matrix an expert, read by GPTQModel."""

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from hubbot.domain import Bnb, Gptq, Source
from hubbot.errors import Unsupported
from hubbot.formats import gptq
from hubbot.formats.bnb import layout as bnb
from hubbot.formats.gptq.experts import even_statistics, seldom_seen
from hubbot.formats.gptq.format import GptqFormat, costs
from hubbot.formats.linears import Linear, find_linears
from hubbot.formats.protocol import Cost, InputStatistics
from hubbot.model import part_layout, read_facts
from hubbot.settings import load_settings
from hubbot.sweep.references import References
from hubbot.sweep.walk import SweepInput, sweep
from hubbot.sweep.windows import Windows
from tests.models import make_model

VARIANT = Gptq(bits=4, group_size=32)
SMALL = {"hidden_size": 32, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}


def source(folder: Path) -> Source:
    return Source(folder=str(folder), repo=None, revision=None, files={})


def windows(seed: int, count: int) -> Windows:
    tokens = torch.randint(3, 400, (count, 48), generator=torch.Generator().manual_seed(seed))
    return Windows(tokens=tokens, first_target=(1,) * count)


@pytest.mark.slow
def test_gptqmodel_computes_what_the_sweep_computed(tmp_path: Path) -> None:
    folder = make_model("qwen3_moe", tmp_path / "tiny")
    facts, settings = read_facts(folder), load_settings(None, {})
    made = GptqFormat(
        variants=[VARIANT],
        source=source(folder),
        facts=facts,
        work=tmp_path / "work",
        out=tmp_path / "out",
        settings=settings.gptq,
    )
    evaluation = windows(2, 3)
    references = References(evaluation)
    task = SweepInput(
        folder=folder,
        tensors=facts.tensors,
        parts=part_layout(facts),
        calibration=windows(1, 12),
        evaluation=evaluation,
        work=tmp_path,
        device=torch.device("cpu"),
        references=references,
    )
    result = sweep(task, [made])
    assert not result.failed
    assert 0 < result.scores[VARIANT.name].kld.mean < 1
    saved = references.save(tmp_path / "references")
    check = read_apart(result.files[VARIANT.name].paths, saved[VARIANT.name])
    assert check["passed"], check
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


def test_a_checkpoint_that_stacks_its_experts_is_refused_by_the_tensor(tmp_path: Path) -> None:
    facts = read_facts(make_model("granitemoe", tmp_path / "tiny"))
    with pytest.raises(Unsupported, match=r"all experts of a block as one tensor \(model.layers.0.block_sparse_moe"):
        costs([VARIANT], facts, source(facts.folder), load_settings(None, {}).gptq)


def test_experts_under_names_that_gptqmodel_does_not_look_for_are_refused_in_the_plan(tmp_path: Path) -> None:
    gptq = load_settings(None, {}).gptq
    theirs = read_facts(make_model("mixtral", tmp_path / "mixtral"))
    with pytest.raises(Unsupported, match=r"block_sparse_moe\.experts\.0\.w1\.weight, and GPTQModel"):
        costs([VARIANT], theirs, source(theirs.folder), gptq)
    ours = read_facts(make_model("qwen3_moe", tmp_path / "qwen"))
    assert isinstance(costs([VARIANT], ours, source(ours.folder), gptq)[VARIANT.name], Cost)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "module"), [("Glm4Moe", "glm4_moe"), ("Glm4MoeLite", "glm4_moe_lite")])
def test_a_block_that_the_reader_computes_with_another_router_is_refused(architecture: str, module: str) -> None:
    """As long as it is so: with a defuser that knows the router this fails, and the refusal goes."""
    theirs = importlib.import_module(f"defuser.modeling.unfused_moe.{module}")
    block = getattr(theirs, f"Linear{architecture}MoE")(getattr(transformers, f"{architecture}Config")(**SMALL))
    with pytest.raises(AttributeError, match="'tuple' object has no attribute 'sigmoid'"):
        block(torch.zeros(1, 2, SMALL["hidden_size"]))
    assert "takes one tensor from the router" in (gptq.refusal(f"{architecture}ForCausalLM") or "")
    assert gptq.refusal("Qwen3MoeForCausalLM") is None


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
