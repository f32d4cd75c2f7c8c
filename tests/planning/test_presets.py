"""A preset is an intention: its variants take the group size that divides the model's widths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubbot.domain import Source
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats.names import names_made, parse_wanted
from hubbot.formats.protocol import Cost
from hubbot.planning.presets import resolve

SOURCE = Source(folder="/m", repo=None, revision=None, files={}, context_length=32_768, kv_bytes_per_token=131_072)
COST = Cost(file_bytes=10, weight_bytes=9, bits_per_weight=4.5)


def family_of_width(width, *, unknown=()):
    """Costs as GPTQ tells them of a model with one width."""

    def cost(variant):
        if variant.name in unknown:
            return Unsupported(f"{variant.name} is not known")
        size = getattr(variant, "group_size", 1)
        return COST if width % size == 0 else UnsupportedShape(f"{width} columns, not a multiple of {size}")

    return lambda variants: {variant.name: cost(variant) for variant in variants}


def resolved(text, width, **more):
    return resolve(parse_wanted(text), family_of_width(width, **more), SOURCE)


@pytest.mark.parametrize(("width", "group"), [(1024, 128), (576, 64), (96, 32), (48, 16)])
@pytest.mark.parametrize("preset", ["small", "default"])
def test_the_largest_group_size_that_divides_every_width_is_taken_and_told(preset, width, group):
    found = resolved(preset, width)
    name = f"gptq-4bit-{group}g"
    assert name in [variant.name for variant in found.variants]
    assert all(isinstance(cost, Cost) for cost in found.costs.values())
    assert len(found.notes) == (group != 128)
    if group != 128:
        assert found.notes[0].startswith(f"{name} in place of gptq-4bit-128g of the preset {preset}: {width} columns")


def test_what_stands_in_for_two_is_made_once():
    found = resolved("gptq", 96)
    assert [variant.name for variant in found.variants] == ["gptq-4bit-32g", "gptq-8bit-32g"]


def test_a_variant_that_is_named_in_full_means_itself():
    found = resolved("small,gptq-4bit-128g", 576)
    assert isinstance(found.costs["gptq-4bit-128g"], UnsupportedShape)
    assert "gptq-4bit-64g" not in found.costs
    assert not found.notes


def test_a_variant_without_any_fitting_size_keeps_its_own_reason():
    found = resolved("small", 50)
    assert "not a multiple of 128" in str(found.costs["gptq-4bit-128g"])


def test_another_reason_than_a_shape_changes_no_group_size():
    found = resolved("small", 576, unknown=["gptq-4bit-128g"])
    assert "is not known" in str(found.costs["gptq-4bit-128g"])


def test_a_finished_release_is_recognized_by_what_stands_in():
    made = ["Q4_K_M", "gptq-4bit-64g", "bnb-nf4"]
    assert names_made("small", made) == made
    assert names_made("small", ["Q4_K_M"]) == ["Q4_K_M", "gptq-4bit-128g", "bnb-nf4"]
    assert names_made("gptq-4bit-128g", made) == ["gptq-4bit-128g"]


# --- what fits a memory ----------------------------------------------------------------------------------------------

GB = 10**9
SIZES = {
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q4_K_M": 4.9,
    "Q4_K_S": 4.7,
    "IQ4_XS": 4.5,
    "Q3_K_M": 4.0,
    "Q2_K": 3.2,
}


def of_eight_billion(variants):
    """Costs as GGUF tells them of a model with 8 B weights, whose cache of 4,096 tokens takes 0.54 GB."""
    return {
        one.name: Cost(file_bytes=int(SIZES[one.name] * GB), weight_bytes=1, bits_per_weight=4.0)
        if one.name in SIZES
        else COST
        for one in variants
    }


def fitted(text, costs=of_eight_billion, source=SOURCE):
    return resolve(parse_wanted(text), costs, source)


@pytest.mark.parametrize(
    ("text", "name", "end"),
    [
        ("fit-80GB", "Q8_0", "together 9.54 GB"),
        ("fit-8GB", "Q6_K", "; Q8_0 would take 9.54 GB"),
        ("fit-6GB", "Q4_K_M", "; Q5_K_M would take 6.74 GB"),
        ("fit-4.237GB", "Q2_K", "; Q3_K_M would take 5.04 GB"),
    ],
)
def test_the_best_type_whose_file_and_cache_fit_the_memory_is_made_and_the_sum_is_told(text, name, end):
    found = fitted(text)
    assert [variant.name for variant in found.variants] == [name]
    [note] = found.notes
    assert note.startswith(f"{name} is the best type that fits ")
    assert "536.9 MB for the cache of 4,096 tokens and 500.0 MB for the runtime, together " in note
    assert note.endswith(end)


def test_a_context_that_is_shorter_than_4096_tokens_takes_less():
    source = Source(folder="/m", repo=None, revision=None, files={}, context_length=1_024, kv_bytes_per_token=131_072)
    [note] = fitted("fit-7.3GB", source=source).notes
    assert note.startswith("Q6_K is the best")
    assert "134.2 MB for the cache of 1,024 tokens" in note
    assert fitted("fit-7.3GB").variants[0].name == "Q5_K_M"


def test_a_memory_too_small_for_every_type_is_a_sentence_and_keeps_nothing_else_back():
    with pytest.raises(
        Unsupported, match=r"Nothing fits 4\.00 GB: Q2_K takes .* together 4\.24 GB.* Ask for more memory"
    ):
        fitted("fit-4GB")
    found = fitted("fit-4GB,bnb-nf4")
    assert [variant.name for variant in found.variants] == ["bnb-nf4"]
    assert found.notes[0].startswith("Nothing fits 4.00 GB")


def test_a_type_that_cannot_be_made_is_passed_over_and_where_none_can_the_reason_is_kept():
    def without(*names):
        return lambda variants: (
            of_eight_billion(variants)
            | {one.name: Unsupported(f"no {one.name} of these layers") for one in variants if one.name in names}
        )

    assert fitted("fit-8GB", without("Q6_K")).variants[0].name == "Q5_K_M"
    with pytest.raises(Unsupported, match=r"fit-8GB: no Q8_0 of these layers"):
        fitted("fit-8GB", without(*SIZES))


@pytest.mark.parametrize(
    ("text", "name"),
    [("fit-80GB_D", "Q8_0"), ("fit-8GB_D", "Q6_K"), ("fit-6gb_d", "Q4_K_M_D"), ("fit-4.237GB_D", "Q2_K_D")],
)
def test_what_fits_has_measured_types_where_they_are_asked_for(text, name):
    def costs(variants):
        sizes = of_eight_billion([replace(one, allocated=False) for one in variants])
        return {one.name: sizes[one.type] for one in variants if one.type in SIZES} | {
            one.name: Unsupported("not of this test") for one in variants if one.type not in SIZES
        }

    found = fitted(text, costs)
    assert [variant.name for variant in found.variants] == [name]
    assert found.notes[0].startswith(f"{name} is the best type that fits ")
    assert names_made(text, [name]) == [name]
    with pytest.raises(Unsupported, match=r"Nothing fits 4\.00 GB: Q2_K_D takes"):
        fitted("fit-4GB_D", costs)


def test_two_memories_and_what_is_named_in_full_are_made_once_each():
    found = fitted("fit-8GB,Q4_K_M,fit-6GB,fit-5.6GB")
    assert [variant.name for variant in found.variants] == ["Q4_K_M", "Q6_K", "IQ4_XS"]
    assert names_made("fit-8GB,Q4_K_M", ["Q6_K", "Q4_K_M"]) == ["Q4_K_M", "Q6_K"]
    assert names_made("fit-8GB", ["Q4_K_M"]) == ["Q4_K_M"]
