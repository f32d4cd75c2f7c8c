"""What a checkpoint stores is the model that its config.json describes, or it is refused by name and value."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from hubbot.child.source import examine
from hubbot.domain import Gptq, Source
from hubbot.errors import SourceRefused, Unsupported
from hubbot.formats.gptq import format as gptq
from hubbot.model import check_finite, part_layout, read_facts
from hubbot.settings import GptqSettings
from hubbot.sweep.blocks import BlockModel
from tests.model.folders import change, copied, rewrite
from tests.models import make_model


@pytest.fixture
def folder(tiny_model, tmp_path):
    return copied(tiny_model("llama"), tmp_path)


@pytest.fixture
def tied(tiny_model, tmp_path):
    return copied(tiny_model("llama", tied=True), tmp_path)


def examined(folder):
    return examine(read_facts(folder))


def refusal(folder, kind=SourceRefused):
    with pytest.raises(kind) as caught:
        examined(folder)
    return str(caught.value)


def grown(name, rows):
    def edit(tensors):
        tensors[name] = torch.cat([tensors[name], tensors[name][:rows]])

    return edit


def test_a_model_that_agrees_is_read_with_nothing_to_say(folder):
    facts = examined(folder)
    assert (facts.tied, facts.twins, facts.prediction, facts.notes) == (False, (), (), ())


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_rows_beyond_vocab_size_are_named_with_both_shapes(folder, name):
    rewrite(folder, grown(name, 8))
    said = refusal(folder)
    assert name in said
    assert "[520, 256]" in said
    assert "(vocab_size 512) describes [512, 256]" in said


def test_a_vocab_size_beyond_the_rows_is_named(folder):
    change(folder / "config.json", vocab_size=600)
    assert "(vocab_size 600) describes [600, 256]" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [("intermediate_size", 768, "mlp"), ("num_key_value_heads", 4, "self_attn.k_proj"), ("hidden_size", 128, "")],
)
def test_a_width_that_differs_is_named_with_its_tensor(folder, key, value, stored):
    change(folder / "config.json", **{key: value})
    said = refusal(folder)
    assert "is stored with the shape" in said
    assert stored in said


def test_a_tie_that_config_json_does_not_speak_of_is_named(tied):
    change(tied / "config.json", tie_word_embeddings=None)
    said = refusal(tied)
    assert "No lm_head.weight is stored" in said
    assert "tie_word_embeddings is false" in said


def test_a_family_that_ties_unless_told_otherwise_is_tied(tiny_model, tmp_path):
    folder = copied(tiny_model("gemma3"), tmp_path)
    change(folder / "config.json", tie_word_embeddings=None)
    assert examined(folder).tied


def stores_both(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def test_a_tied_head_that_is_stored_again_is_harmless_while_it_is_equal(tied):
    rewrite(tied, stores_both)
    facts = examined(tied)
    assert facts.tied
    assert [set(pair) for pair in facts.twins] == [{"lm_head.weight", "model.embed_tokens.weight"}]
    check_finite(tied, facts)


def test_a_tied_head_that_is_stored_again_in_another_type_is_compared_by_its_numbers(tied):
    def edit(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].float()

    rewrite(tied, edit)
    check_finite(tied, examined(tied))

    def change_one(tensors):
        tensors["lm_head.weight"][-1, -1] += 2**-20

    rewrite(tied, change_one)
    with pytest.raises(SourceRefused, match="are both stored and differ"):
        check_finite(tied, examined(tied))


def test_a_tied_head_that_differs_from_its_embedding_is_refused_though_transformers_would_untie_it(tied):
    def edit(tensors):
        stores_both(tensors)
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite(tied, edit)
    with pytest.raises(SourceRefused, match="are both stored and differ"):
        check_finite(tied, examined(tied))


def test_a_tied_model_that_stores_its_head_alone_is_refused(tied):
    rewrite(tied, lambda tensors: {n.replace("model.embed_tokens", "lm_head"): t for n, t in tensors.items()})
    assert "only lm_head.weight is stored" in refusal(tied)


def test_a_missing_bias_is_named_though_its_weight_is_there(tiny_model, tmp_path):
    folder = copied(tiny_model("qwen2"), tmp_path)
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != "model.layers.1.self_attn.k_proj.bias"})
    assert "no weights for model.layers.1.self_attn.k_proj.bias" in refusal(folder)


def test_a_stored_bias_that_the_model_has_no_place_for_is_named(folder):
    def edit(tensors):
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(256)

    rewrite(folder, edit)
    assert "model.layers.0.self_attn.q_proj.bias is stored, and the model" in refusal(folder)


@pytest.mark.parametrize("name", ["lm_head.bias", "model.norm.bias", "norm.bias"])
def test_a_stored_bias_beside_the_blocks_that_its_module_lacks_is_named(name, folder):
    rewrite(folder, lambda tensors: {**tensors, name: torch.ones(256)})
    assert f"{name} is stored, and the model" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("v_head.summary.weight", (1, 256)), ("model.layers.0.self_attn.sinks", (4,)), ("model.layers.1.mlp.k_scale", ())],
)
def test_what_nothing_takes_and_is_no_weight_of_a_module_is_noted(name, shape, folder):
    rewrite(folder, lambda tensors: {**tensors, name: torch.ones(shape)})
    facts = examined(folder)
    assert facts.unused == (name,)
    assert any(f"{name} is stored but no part" in note for note in facts.notes)


def test_names_with_a_prefix_that_the_model_has_not_are_told(folder):
    rewrite(folder, lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()})
    said = refusal(folder)
    assert "no weights for model.embed_tokens.weight" in said
    assert "They are stored under names that begin with _orig_mod., which a trainer put there" in said
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if "layers.1" not in n})
    change(folder / "config.json", num_hidden_layers=1)
    rewrite(
        folder, lambda tensors: {n.replace("_orig_mod.", "").replace("q_proj", "query"): t for n, t in tensors.items()}
    )
    assert "What it stores and the model has no place for begins with model.layers.0.self_attn.query.weight" in refusal(
        folder
    )


@pytest.mark.parametrize("base", ["weight", "base_layer.weight"])
def test_an_adapter_among_the_weights_is_to_be_merged(folder, base):
    layer = "model.layers.0.self_attn.q_proj"

    def edit(tensors):
        tensors[f"{layer}.{base}"] = tensors.pop(f"{layer}.weight")
        tensors[f"{layer}.lora_A.default.weight"] = torch.ones(8, 256)

    rewrite(folder, edit)
    assert f"{layer}.lora_A.default.weight is of an adapter (LoRA) that was not merged" in refusal(folder)


def test_masks_that_transformers_knows_to_pass_over_are_in_no_file_and_not_spoken_of(tmp_path):
    folder = make_model("gpt_neox", tmp_path / "tiny")
    mask = {
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8),
    }
    rewrite(folder, lambda tensors: {**tensors, **mask})
    facts = examined(folder)
    assert (set(facts.unused), facts.notes) == (set(mask), ())


def test_tables_that_follow_from_the_configuration_are_passed_over(folder):
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32), "position_ids": torch.arange(8)}
    rewrite(folder, lambda tensors: {**tensors, **table})
    facts = examined(folder)
    assert (set(facts.unused), facts.notes) == (set(table), ())


def test_one_parameter_stored_under_two_names_is_refused(folder):
    def edit(tensors):
        tensors["norm.weight"] = tensors["model.norm.weight"].clone()

    rewrite(folder, edit)
    assert "are both stored for model.norm.weight" in refusal(folder)


def test_prefixes_that_are_missing_are_found(tied):
    rewrite(tied, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    assert examined(tied).tied


# --- prediction blocks ------------------------------------------------------------------------------


def with_a_third_block(tensors):
    third = {n.replace("layers.1.", "layers.2."): t.clone() for n, t in tensors.items() if "layers.1." in n}
    return {**tensors, **third}


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_hidden_layers"])
def test_a_block_that_config_json_calls_a_prediction_block_is_no_part_of_the_model(folder, key):
    rewrite(folder, with_a_third_block)
    change(folder / "config.json", **{key: 1})
    facts = examined(folder)
    assert facts.prediction
    assert all(name.startswith("model.layers.2.") for name in facts.prediction)
    assert "predicts further tokens (MTP)" in facts.notes[0]


def test_a_block_with_tensors_that_only_prediction_blocks_have_is_one(folder):
    rewrite(
        folder, lambda tensors: with_a_third_block(tensors) | {"model.layers.2.eh_proj.weight": torch.ones(256, 512)}
    )
    assert "model.layers.2.eh_proj.weight" in examined(folder).prediction


def test_prediction_blocks_that_stand_apart_are_noted(folder):
    rewrite(folder, lambda tensors: tensors | {"model.mtp_layers.0.input_proj.weight": torch.ones(256, 512)})
    assert examined(folder).prediction == ("model.mtp_layers.0.input_proj.weight",)


def test_an_ordinary_block_beyond_the_last_is_refused_with_the_key_to_correct(folder):
    rewrite(folder, with_a_third_block)
    said = refusal(folder, Unsupported)
    assert "num_hidden_layers 2" in said
    assert "set num_hidden_layers to 3" in said


# --- numbers ------------------------------------------------------------------------------------------


def test_float64_is_rounded_to_float32_and_told(folder):
    rewrite(folder, lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})
    change(folder / "config.json", dtype="float64")
    facts = examined(folder)
    assert {info.dtype for info in facts.tensors.values()} == {"F32"}
    assert facts.config["dtype"] == "float32"
    assert "rounded to float32" in facts.notes[0]


def test_float64_beyond_float32_is_named(folder):
    def edit(tensors):
        doubled = {name: tensor.double() for name, tensor in tensors.items()}
        doubled["model.norm.weight"][7] = 1e39
        return doubled

    rewrite(folder, edit)
    with pytest.raises(SourceRefused, match=r"model.norm.weight in model.safetensors holds a value at \[7\]"):
        check_finite(folder, examined(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_value_beyond_float16_is_found_with_its_place(folder, dtype):
    def edit(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = -(2.0**17)
        tensors["model.layers.1.mlp.up_proj.weight"][9, 9] = 2.0**16
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    rewrite(folder, edit)
    large = check_finite(folder, examined(folder))
    assert [(name, found.value, found.index) for name, found in large.items()] == [
        ("model.layers.1.mlp.up_proj.weight", 2.0**17, (3, 5))
    ]


def test_what_float16_holds_is_not_large(folder):
    def edit(tensors):
        tensors["model.norm.weight"][0] = 65280.0  # the largest bfloat16 below float16's limit

    rewrite(folder, edit)
    assert check_finite(folder, examined(folder)) == {}


def test_packed_integers_without_their_configuration_are_refused_as_quantized(folder):
    def edit(tensors):
        tensors["model.layers.0.input_layernorm.weight"] = torch.ones(256, dtype=torch.int8)

    rewrite(folder, edit)
    assert "is stored as I8" in refusal(folder)


# --- models that transformers builds in a way that hubbot cannot walk ------------------------------------


def test_a_model_whose_blocks_are_given_what_depends_on_more_than_a_token_is_refused_without_a_weight(tmp_path):
    model = model_of(make_model("gemma4", tmp_path / "gemma4"))
    text = model.model.model
    project = text.project_per_layer_inputs
    text.project_per_layer_inputs = lambda *given: project(*given).cumsum(1)
    with pytest.raises(
        Unsupported,
        match=r"cannot walk Gemma4ForCausalLM block by block.* more of the text than the token that it goes with \(0\)",
    ):
        _ = model.passage


def test_a_model_that_runs_a_block_twice_is_refused_without_a_weight(folder):
    model = model_of(folder)
    first, _ = model.blocks
    model.model.model.layers = torch.nn.ModuleList([first, first])
    with pytest.raises(Unsupported, match=r"block by block.* block 0 is run more than once"):
        _ = model.passage


def model_of(folder):
    return BlockModel(folder, part_layout(read_facts(folder)), torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "width", "companions"),
    [
        ("llama", 256, ()),
        # beside the hidden states keys and values of two heads, of either kind of attention
        ("gemma4", 256 + 2 * 2 * (64 + 128), (4 * 32,) * 4),
        ("gemma3n", 4 * 256 + 2 * 2 * (64 + 64), (4 * 32,) * 4),
    ],
)
def test_what_passes_between_blocks_is_told_without_a_weight(tmp_path, family, width, companions):
    found = examined(make_model(family, tmp_path / family))
    assert (found.stream_width, found.companions) == (width, companions)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"num_attention_heads": 0},
        {"rms_norm_eps": "small"},
        {"hidden_act": "no such function"},
        {"rope_parameters": {"rope_type": "no such type"}},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_parameters": 7},
        {"layer_types": ["no such attention"] * 2},
        {"pad_token_id": -600},
        {"dtype": "float7"},
        {"model_type": "no-such-type"},
        {"attention_bias": "yes", "mlp_bias": {"a": 1}},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_whatever_transformers_raises_over_config_json_becomes_one_sentence(folder, keys):
    change(folder / "config.json", **keys)
    said = None
    try:
        examined(folder)
    except (SourceRefused, Unsupported) as error:
        said = str(error)
    assert said is None or "\n" not in said


@pytest.mark.parametrize(("family", "told"), [("llama", True), ("phi3", False)])
def test_rotary_positions_of_a_part_of_each_head_that_the_class_passes_over_are_told(
    family, told, tiny_model, tmp_path
):
    folder = copied(tiny_model(family), tmp_path)
    config = read_facts(folder).config
    rope = {"rope_type": "default", "rope_theta": 10000.0, **(config.get("rope_parameters") or {})}
    change(folder / "config.json", rope_parameters={**rope, "partial_rotary_factor": 0.5})
    facts = examined(folder)
    assert [note for note in facts.notes if "0.5 of each head" in note] == list(facts.notes) == list(facts.notes[:told])
    source = Source(folder=str(folder), repo=None, revision=None, files={})
    variants = [Gptq(bits=8, group_size=32, act_order=False, symmetric=True)]
    with pytest.raises(Unsupported, match=r"GPTQModel.*does not, so that it stops") if told else nullcontext():
        gptq.costs(variants, facts, source, GptqSettings())
