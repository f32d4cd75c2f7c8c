"""What mixtures of experts take, planned from their shapes alone; every figure is derived by hand here.

docs/planning.md names the terms.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from hubbot.domain import Source
from hubbot.errors import BudgetExceeded
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost
from hubbot.machine import Machine
from hubbot.model import ModelFacts, TensorInfo
from hubbot.planning.needs import evaluation_tokens, pass_of_gradients, shapes_of, with_text
from hubbot.planning.plan import plan, require
from hubbot.planning.plan_view import as_markdown
from hubbot.settings import load_settings

GB = 10**9
BITS = {"Q4_K_M": 4.9, "Q5_K_M": 5.7, "Q6_K": 6.6, "Q8_0": 8.5, "gptq-4bit-128g": 4.2}


def _facts(architecture: str, blocks: list[dict[str, tuple[int, ...]]], *, hidden: int, vocabulary: int) -> ModelFacts:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
    }
    for number, block in enumerate(blocks):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in block.items()}
    tensors = {name: TensorInfo(dtype="BF16", shape=shape, file="model.safetensors") for name, shape in shapes.items()}
    return ModelFacts(
        folder=Path("model"), architecture=architecture, model_type="", config={}, tensors=tensors, hidden_size=hidden,
        layers=len(blocks), vocab_size=vocabulary, context_length=32_768, kv_bytes_per_token=None, tied=False, experts=128,
    )  # fmt: skip


def _experts(count: int, hidden: int, inside: int) -> dict[str, tuple[int, ...]]:
    shapes = {"gate_proj": (inside, hidden), "up_proj": (inside, hidden), "down_proj": (hidden, inside)}
    return {f"mlp.experts.{expert}.{name}": shape for expert in range(count) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def qwen() -> ModelFacts:
    """Qwen3-30B-A3B: 48 such blocks, of which two stand for all."""
    attention: dict[str, tuple[int, ...]] = {
        "q_proj": (4096, 2048),
        "k_proj": (512, 2048),
        "v_proj": (512, 2048),
        "o_proj": (2048, 4096),
    }
    block: dict[str, tuple[int, ...]] = {f"self_attn.{name}": shape for name, shape in attention.items()}
    block |= {"mlp.gate": (128, 2048), "input_layernorm": (2048,), **_experts(128, 2048, 768)}
    return _facts("Qwen3MoeForCausalLM", [block] * 2, hidden=2048, vocabulary=151_936)


@pytest.fixture(scope="module")
def deepseek() -> ModelFacts:
    """DeepSeek-V3: a dense block and one of its 58 with experts."""
    attention: dict[str, tuple[int, ...]] = {
        "q_a_proj": (1536, 7168), "q_b_proj": (24_576, 1536), "kv_a_proj_with_mqa": (576, 7168),
        "kv_b_proj": (32_768, 512), "o_proj": (7168, 16_384),
    }  # fmt: skip
    attended: dict[str, tuple[int, ...]] = {f"self_attn.{name}": shape for name, shape in attention.items()}
    dense = attended | {"mlp.gate_proj": (18_432, 7168), "mlp.up_proj": (18_432, 7168), "mlp.down_proj": (7168, 18_432)}
    shared = {name.replace("experts.0", "shared_experts"): shape for name, shape in _experts(1, 7168, 2048).items()}
    mixture = attended | {"mlp.gate": (256, 7168), **shared, **_experts(256, 7168, 2048)}
    return _facts("DeepseekV3ForCausalLM", [dense, mixture], hidden=7168, vocabulary=129_280)


def _planned(facts: ModelFacts, names: str, machine: Machine, device: str):
    costs = {
        name: Cost(file_bytes=20 * GB, weight_bytes=20 * GB, bits_per_weight=BITS[name.removesuffix("-e2e")])
        for name in names.split(",")
    }
    source = Source(folder="model", repo=None, revision=None, files={}, license="mit")
    return plan(source, shapes_of(facts), parse_variants(names), load_settings(None, {}), machine, costs, device=device)


CARD = Machine(
    cpu="", cores=16, ram=64 * GB, ram_free=60 * GB, disk_free=2000 * GB, gpu="H100", vram=85 * GB, vram_free=84 * GB
)


def test_the_shape_of_qwen3_30b_a3b_is_planned_in_one_sweep_for_a_card_of_80_gb_and_64_gb_of_memory(qwen):
    shapes = shapes_of(qwen)
    experts = 128 * 3 * 2048 * 768
    block = experts + 2 * 4096 * 2048 + 2 * 512 * 2048 + 128 * 2048 + 2048
    assert (shapes.block_weights, shapes.block_bytes, shapes.expert_bytes) == (block, 2 * block, 2 * experts)
    # an expert's inputs and what is between its matrices; the rest of the block has two widths
    assert (shapes.hessians, shapes.expert_hessians) == (2 * (2048**2 + 4096**2), 128 * (2048**2 + 768**2))
    hessians = shapes.hessians + 2 * shapes.expert_hessians  # which a card sums in float64
    found = _planned(qwen, ",".join(BITS), CARD, "cuda:0")
    require(found)
    assert len(found.sweeps) == 1
    encodings = block * sum(BITS.values()) / 8
    activations = 4 * 8192 * (4 * 4096 + 8 * 2048)
    calibrating = 4 * block + 2 * experts + activations + 4 * hessians
    stored = 2 * block + 2 * 4 * 4096 * 2048
    assert found.need.vram == pytest.approx(0.9e9 + calibrating + stored, abs=1)
    assert found.need.vram == pytest.approx(12.1e9, rel=0.01)
    streams = 4 * 2048 * (128 * 2048 + (1 + len(BITS)) * 350_000)
    factoring = 5 * 4 * 4096**2  # where the card has no room for it
    assert found.need.ram == pytest.approx(1.3e9 + streams + stored + encodings + 2**30 + factoring, abs=1)
    assert found.need.ram < 26 * GB


def test_a_second_card_shares_the_sweep_and_takes_memory_of_the_host_for_its_process(qwen):
    names = ",".join(BITS)
    one, two = (_planned(qwen, names, replace(CARD, cards=cards), "cuda").need for cards in (1, 2))
    stored = shapes_of(qwen).block_bytes + 2 * 4 * 4096 * 2048
    encodings = shapes_of(qwen).block_weights * sum(BITS.values()) / 8
    base = 4 * 2048 * 350_000
    assert two.vram == one.vram
    factoring = 5 * 4 * 4096**2
    assert two.ram - one.ram == pytest.approx(1.3e9 + stored + encodings + 2**30 + factoring + base + 2 * 2**28, abs=2)


def test_the_shape_of_a_70b_model_is_planned_for_a_card_of_24_gb():
    attention: dict[str, tuple[int, ...]] = {
        "q_proj": (8192, 8192),
        "k_proj": (1024, 8192),
        "v_proj": (1024, 8192),
        "o_proj": (8192, 8192),
    }
    mlp: dict[str, tuple[int, ...]] = {
        "gate_proj": (28_672, 8192),
        "up_proj": (28_672, 8192),
        "down_proj": (8192, 28_672),
    }
    block = {f"self_attn.{name}": shape for name, shape in attention.items()} | {f"mlp.{n}": s for n, s in mlp.items()}
    llama = _facts("LlamaForCausalLM", [block], hidden=8192, vocabulary=128_256)
    small = replace(CARD, ram_free=200 * GB, vram=25 * GB, vram_free=24 * GB)
    found = _planned(llama, ",".join(BITS), small, "cuda:0")
    require(found)
    assert found.need.vram < 24 * GB
    weighed = _planned(llama, "gptq-4bit-128g-e2e", small, "cuda:0")
    require(weighed)
    bands = shapes_of(llama).bands
    assert bands == (2 * 8192 + 2 * 1024 + 2 * 28_672) * 4096 + 8192 * 4096
    weights = shapes_of(llama).block_weights
    stored = 2 * weights + 2 * 4 * 28_672 * 8192
    solving = 2 * 8192**2 + 3 * 28_672**2 + 28_672 * 8192 + 8 * 2**25
    weighing = 2 * bands + 5 * 4096**2  # with their factors, and what one is made by
    assert weighed.need.vram == pytest.approx(
        0.9e9 + stored + weights * (4 + 4.2 / 8) + 4 * (solving + weighing), abs=1
    )
    assert found.need.ram > 5 * 4 * 28_672**2  # for the widest Hessian's factors, which the card has no room for


@pytest.mark.parametrize(
    ("size", "longest", "changed", "tokens"),
    [
        (None, None, {}, 350_000),
        (40_000, None, {}, 10 * 2048),  # 20,000 tokens at most
        (40_000, 256, {}, 79 * 256),
        (40_000, None, {"evaluation.windows": 3}, 3 * 2048),
        (40_000, None, {"evaluation.stride": 1024}, 20 * 2048),
        (9_000_000, None, {}, 2198 * 2048),
        (0, None, {}, 2048),
    ],
)
def test_a_text_whose_size_is_known_comes_to_no_more_windows_than_its_bytes(size, longest, changed, tokens):
    settings = load_settings(None, changed)
    assert evaluation_tokens(with_text(settings, size, longest), longest, chat=False) == tokens


def test_gradients_take_disk_for_what_is_kept_of_their_pass_and_memory_for_what_passes_back(qwen):
    # 2,048 inputs: query, key, value and router; 4,096: what attention gives; of the experts there are none
    assert shapes_of(qwen).bands == (4096 + 512 + 512 + 128) * 4096 + 2048 * 2048
    plain, weighed = (_planned(qwen, name, CARD, "cpu").need for name in ("gptq-4bit-128g", "gptq-4bit-128g-e2e"))
    kept = 2 * ((2 + 1) * 65_536 * 2048 + shapes_of(qwen).bands)  # both in 16 bits; inputs are more than products here
    assert weighed.disk - plain.disk == kept


def test_a_calibration_of_few_tokens_passes_back_several_times_but_no_more_than_four(qwen):
    def passing(samples: int) -> tuple[int, int]:
        settings = load_settings(None, {"calibration.samples": samples, "calibration.length": 64})
        found = pass_of_gradients(shapes_of(qwen), settings)
        return found.forth, found.draws

    assert [passing(samples) for samples in (10, 300, 2000)] == [(640, 4), (300 * 64, 3), (65_536, 1)]


def test_the_pass_of_gradients_is_told_with_its_work_and_only_where_a_variant_asks_for_it(qwen):
    assert _planned(qwen, "gptq-4bit-128g", CARD, "cpu").passing is None
    found = _planned(qwen, "gptq-4bit-128g,gptq-4bit-128g-e2e", CARD, "cpu")
    assert found.passing is not None
    assert (found.passing.variants, found.passing.tokens, found.passing.draws) == (("gptq-4bit-128g-e2e",), 65_536, 1)
    weights, shapes = shapes_of(qwen).block_weights, shapes_of(qwen)
    work = 65_536 * (3 * weights + shapes.bands / 2) / (weights + shapes.hessians / 4)
    assert found.passing.calibrating == int(work)
    assert "65,536 tokens of the calibration pass forth" in as_markdown(found)


def test_the_shape_of_deepseek_v3_is_refused_for_a_card_by_what_one_block_takes(deepseek):
    experts = 256 * 3 * 7168 * 2048
    assert shapes_of(deepseek).expert_bytes == 2 * experts
    widths = (7168, 1536, 512, 16_384, 2048)  # of attention, router and shared expert
    assert shapes_of(deepseek).hessians == 2 * sum(width**2 for width in widths)
    assert shapes_of(deepseek).expert_hessians == 256 * (7168**2 + 2048**2)
    for names, least in (("Q4_K_M", 10 * experts), ("gptq-4bit-128g", 6 * experts + 8 * 256 * (7168**2 + 2048**2))):
        found = _planned(deepseek, names, replace(CARD, ram_free=200 * GB), "cuda:0")
        with pytest.raises(BudgetExceeded, match=r"GPU memory.*84\.00 GB may be used"):
            require(found)
        assert least < _needed(deepseek, names).need.vram < 1.5 * least


def test_the_shape_of_deepseek_v3_is_planned_for_a_host_with_256_gb_and_no_card(deepseek):
    host = Machine(cpu="", cores=64, ram=256 * GB, ram_free=250 * GB, disk_free=9000 * GB)
    for names in ("Q4_K_M,Q8_0", "gptq-4bit-128g"):
        found = _planned(deepseek, names, host, "cpu")
        require(found)
        assert 100 * GB < found.need.ram < 250 * GB


def _needed(facts: ModelFacts, names: str):
    """The plan for a card that holds anything."""
    large = Machine(
        cpu="",
        cores=16,
        ram=999 * GB,
        ram_free=999 * GB,
        disk_free=9000 * GB,
        gpu="",
        vram=999 * GB,
        vram_free=999 * GB,
    )
    return _planned(facts, names, large, "cuda:0")
