"""A preset is an intention: its variants take the group size that divides the model's widths."""

from __future__ import annotations

import pytest

from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats.names import names_made, parse_wanted
from hubbot.formats.protocol import Cost
from hubbot.planning.presets import resolve

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
    return resolve(parse_wanted(text), family_of_width(width, **more))


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
