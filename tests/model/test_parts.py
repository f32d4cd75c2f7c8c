"""Cutting checkpoints into parts, by the names that the architectures of transformers give their tensors."""

import pytest

from hubbot.errors import Unsupported
from hubbot.model.parts import PartKind, part_layout_of
from hubbot.model.safetensors import TensorInfo

# Names of one checkpoint each: before the blocks, in a block, after the blocks.
CHECKPOINTS = {
    "llama": (
        ["model.embed_tokens.weight"],
        "model.layers.{}.mlp.up_proj.weight",
        ["model.norm.weight", "lm_head.weight"],
    ),
    "tied": (["model.embed_tokens.weight"], "model.layers.{}.mlp.up_proj.weight", ["model.norm.weight"]),
    "gpt-neox": (
        ["gpt_neox.embed_in.weight"],
        "gpt_neox.layers.{}.attention.query_key_value.weight",
        ["gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight"],
    ),
    "gpt2-without-prefix": (["wte.weight", "wpe.weight"], "h.{}.attn.c_attn.weight", ["ln_f.weight", "ln_f.bias"]),
    "falcon": (
        ["transformer.word_embeddings.weight"],
        "transformer.h.{}.mlp.dense_h_to_4h.weight",
        ["transformer.ln_f.weight"],
    ),
    "bloom": (
        ["word_embeddings.weight", "word_embeddings_layernorm.weight"],
        "h.{}.self_attention.dense.weight",
        ["ln_f.weight"],
    ),
    "opt": (
        ["model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"],
        "model.decoder.layers.{}.fc1.weight",
        ["model.decoder.final_layer_norm.weight"],
    ),
    "mpt": (["transformer.wte.weight"], "transformer.blocks.{}.ffn.up_proj.weight", ["transformer.norm_f.weight"]),
    "mamba": (["backbone.embeddings.weight"], "backbone.layers.{}.mixer.in_proj.weight", ["backbone.norm_f.weight"]),
    "gemma3-multimodal": (
        [
            "language_model.model.embed_tokens.weight",
            "multi_modal_projector.mm_soft_emb_norm.weight",
            "vision_tower.vision_model.embeddings.patch_embedding.weight",
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
            "vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
            "vision_tower.vision_model.post_layernorm.weight",
            "vision_tower.norm.weight",
        ],
        "language_model.model.layers.{}.mlp.up_proj.weight",
        ["language_model.model.norm.weight", "language_model.lm_head.weight"],
    ),
    "modules-with-numbers": (
        ["model.embed_tokens.weight"],
        "model.layers.{}.mlp.experts.0.up_proj.weight",
        ["model.norm.weight", "lm_head.weight"],
    ),
}


def tensors(names):
    return {name: TensorInfo(dtype="BF16", shape=(4, 4), file="x", size=32) for name in names}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_tensor_is_in_the_part_that_computes_with_it(name):
    before, block, after = CHECKPOINTS[name]
    blocks = [block.format(number) for number in range(3)]
    parts = part_layout_of(tensors([*after, *reversed(blocks), *before]), layers=3)
    assert [part.name for part in parts] == ["embedding", "block-00000", "block-00001", "block-00002", "head"]
    assert set(parts[0].tensors) == set(before)
    assert [part.tensors for part in parts if part.kind is PartKind.BLOCK] == [(name,) for name in blocks]
    assert set(parts[-1].tensors) == set(after)


def test_blocks_are_ordered_by_number_and_not_by_name():
    parts = part_layout_of(tensors(f"model.layers.{n}.w.weight" for n in range(12)), layers=12)
    assert parts[3].tensors == ("model.layers.2.w.weight",)
    assert parts[11].tensors == ("model.layers.10.w.weight",)


def test_a_missing_block_is_refused():
    with pytest.raises(Unsupported, match="speaks of 3 decoder blocks"):
        part_layout_of(tensors(["model.layers.0.w.weight", "model.layers.2.w.weight"]), layers=3)


def in_turns(lists, count, rest=("mlp.up_proj.weight", "attn.o_proj.weight")):
    return [f"model.{name}.layers.{block}.{each}" for name in lists for block in range(count) for each in rest]


@pytest.mark.parametrize("layers", [4, 32])
def test_lists_that_are_gone_through_in_turns_are_one_block_with_what_lies_beside_them(layers):
    blocks = [*in_turns(["low", "high"], 4), "model.first_state", "model.norm.weight"]
    parts = part_layout_of(tensors(["model.embed_tokens.weight", *blocks, "lm_head.weight"]), layers)
    assert [part.tensors for part in parts] == [("model.embed_tokens.weight",), tuple(blocks), ("lm_head.weight",)]
    assert [part.in_turns for part in parts] == [False, True, False]


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (in_turns(["low", "high"], 4), 6),  # of which no list has as many
        ([*in_turns(["low"], 4), *in_turns(["high"], 4, ("mlp.up_proj.weight",))], 8),
        ([*in_turns(["low"], 2), *in_turns(["high"], 4)], 8),
    ],
)
def test_lists_that_are_not_alike_or_do_not_go_into_the_count_are_no_turns(names, layers):
    with pytest.raises(Unsupported, match=rf"config\.json speaks of {layers} decoder blocks"):
        part_layout_of(tensors(["model.embed_tokens.weight", *names]), layers)


def test_a_list_beside_a_tower_that_is_built_alike_is_the_decoder():
    names = ["model.embed_tokens.weight", *in_turns(["vision_encoder", "text"], 4), "lm_head.weight"]
    assert [part.name for part in part_layout_of(tensors(names), 4)][1:-1] == [f"block-0000{n}" for n in range(4)]
    assert not any(part.in_turns for part in part_layout_of(tensors(names), 4))
