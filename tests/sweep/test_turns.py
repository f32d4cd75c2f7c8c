"""A model that goes through two lists of blocks in turns, again and again, is walked as one block: HRM."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hubbot.child.source import examine
from hubbot.errors import Unsupported
from hubbot.formats import costs_of
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost
from hubbot.model import part_layout, read_facts
from hubbot.settings import Settings
from tests.models import make_other
from tests.quantized import source_of
from tests.sweep.rounding import RoundingFormat, decoded_checkpoint
from tests.sweep.test_architectures import perplexity
from tests.sweeps import run_sweep, windows

HRM = {"num_hidden_layers": 3, "H_cycles": 2, "L_cycles": 3, "num_attention_heads": 4, "head_dim": 16}
CALLS = {"L_module": 2 * 3, "H_module": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As on the Hub: query, key, value and gate are one tensor, gate and up another, and the first state is no zeros."""
    folder = make_other("HrmTextConfig", HRM, tmp_path_factory.mktemp("hrm") / "tiny", bytes_vocabulary=True)
    tensors = load_file(folder / "model.safetensors")
    assert "model.L_module.layers.2.attn.gqkv_proj.weight" in tensors
    tensors["model.z_L_init"] = torch.randn(64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("counted", ["in all", "in one list"])
def test_base_variant_and_statistics_are_those_of_all_turns(folder: Path, tmp_path: Path, counted: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_layers_per_stack"]) == (3 * 2 * (3 + 1), 3)
    if counted == "in one list":  # as its authors' own program writes it
        del config["num_layers_per_stack"]
        (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    made = RoundingFormat(tmp_path, {"fine": 60})
    result = run_sweep(copy, tmp_path, [made], calibration=windows(1, 4), evaluation=windows(2, 5))
    assert result.base is not None
    assert result.base.perplexity == pytest.approx(perplexity(folder), rel=1e-6)
    save_file(decoded_checkpoint(folder, 60), copy / "model.safetensors", metadata={"format": "pt"})
    assert result.scores["fine"].perplexity == pytest.approx(perplexity(copy), rel=1e-6)
    assert result.scores["fine"].perplexity != pytest.approx(result.base.perplexity, rel=1e-5)

    wanted: dict[str, list[torch.Tensor]] = defaultdict(list)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stored = {
        "self_attn.q_proj": "attn.gqkv_proj",
        "self_attn.o_proj": "attn.o_proj",
        "mlp.up_proj": "mlp.gate_up_proj",
        "mlp.down_proj": "mlp.down_proj",
    }
    for path, module in model.named_modules():
        if name := next((path.replace(*pair) for pair in stored.items() if path.endswith(pair[0])), None):
            module.register_forward_pre_hook(
                lambda _, args, name=name: wanted[f"{name}.weight"].append(args[0].flatten(0, 1))
            )
    with torch.inference_mode():
        model(windows(1, 4).tokens)
    assert made.seen.keys() - {"lm_head.weight"} == wanted.keys()
    for name, pieces in wanted.items():
        rows = torch.cat(pieces)
        assert made.seen[name].tokens == len(rows) == CALLS[name.split(".")[1]] * windows(1, 4).tokens.numel()
        torch.testing.assert_close(made.seen[name].squares, rows.square().sum(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(made.seen[name].hessian, rows.T @ rows, rtol=1e-3, atol=1e-2)


def test_a_plan_knows_of_one_block_that_is_all_but_embedding_and_head(folder: Path) -> None:
    facts = examine(read_facts(folder))
    embedding, block, head = part_layout(facts)
    assert (embedding.tensors, head.tensors) == (("model.embed_tokens.weight",), ("lm_head.weight",))
    assert {*block.tensors} == facts.tensors.keys() - {*embedding.tensors, *head.tensors}
    assert (facts.stream_width, facts.companions, facts.borrowed) == (64, (), {})


def test_gradients_are_refused_in_the_plan_since_some_turns_keep_none(folder: Path, tmp_path: Path) -> None:
    facts = examine(read_facts(folder), gradients=True)
    costs = costs_of(parse_variants("w4a16-32g,w4a16-32g-e2e"), source_of(folder), facts, tmp_path, Settings())
    assert isinstance(costs["w4a16-32g"], Cost)
    assert isinstance(costs["w4a16-32g-e2e"], Unsupported)
    assert "goes through its blocks in turns, and may keep no gradients of some" in str(costs["w4a16-32g-e2e"])
