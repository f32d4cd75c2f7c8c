"""Where windows and tokens lie in what blocks are given, and which of it goes with the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hubbot.errors import SourceRefused
from hubbot.sweep.given import BlockArguments, Given, Layout, companions_of, shared_mappings

SAME, MIXED = torch.tensor([[5, 5, 5]]), torch.tensor([[5, 7, 7]])


def given(tokens: torch.Tensor, *, of: Callable[[torch.Tensor], Any]) -> Given:
    """What a block of a model is given whose one argument is `of` of the tokens."""
    return Given(tokens[..., None].float(), [BlockArguments((), {"beside": of(tokens)})])


def noted(of: Callable[[torch.Tensor], Any]) -> list[Given]:
    every = (SAME, MIXED, MIXED.flip(1), SAME.repeat(2, 1), SAME.repeat(1, 2))
    return [given(tokens, of=of) for tokens in every]


@pytest.mark.parametrize(
    ("axes", "windows", "tokens", "rest"),
    [("wth", 0, 1, (6,)), ("cwth", 1, 2, (4, 6)), ("wtch", 0, 1, (4, 6)), ("twh", 1, 0, (6,)), ("wt", 0, 1, ())],
)
def test_rows_of_any_layout_are_windows_by_tokens_and_come_back_as_they_were(axes, windows, tokens, rest):
    sizes = {"c": 4, "h": 6}

    def shape(count: int, length: int) -> torch.Size:
        return torch.Size({"w": count, "t": length, **sizes}[axis] for axis in axes)

    layout = Layout.between(shape(1, 3), shape(2, 3), shape(1, 5))
    assert layout == Layout(windows=windows, tokens=tokens, rest=rest)
    tensor = torch.randn(shape(2, 5))
    rows = layout.rows(tensor)
    assert rows.shape == (2, 5, layout.width)
    assert torch.equal(layout.given(rows), tensor)
    assert torch.equal(rows[1, 3], tensor.select(windows, 1).select(tokens - (windows < tokens), 3).flatten())


def test_a_shape_without_one_dimension_of_windows_and_one_of_tokens_has_no_layout():
    one = torch.Size((1, 4, 8))
    assert Layout.between(one, torch.Size((1, 4, 8)), torch.Size((1, 8, 8))) is None
    assert Layout.between(one, torch.Size((2, 4, 8)), torch.Size((2, 4, 8))) is None
    assert Layout.between(one, torch.Size((2, 4, 8)), torch.Size((1, 8, 16))) is None


def test_what_does_not_depend_on_the_text_is_no_companion():
    assert companions_of(*noted(lambda tokens: torch.ones(tokens.shape))) == ()


def test_what_is_no_number_is_not_taken_for_what_changes_with_the_text():
    with pytest.raises(SourceRefused, match=r"what is no number \(beside\)"):
        companions_of(*noted(lambda tokens: (torch.full((4,), float("nan")), torch.ones(4))))


def test_what_goes_with_each_token_is_one():
    [found] = companions_of(*noted(lambda tokens: tokens[..., None] * torch.ones(4)))
    assert (found.block, found.key, found.layout.rest, found.bytes) == (0, "beside", (4,), 16)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (lambda tokens: tokens.cumsum(1), "more of the text than the token"),
        (lambda tokens: tokens * torch.arange(tokens.shape[1]), "more of the text than the token"),
        (lambda tokens: tokens.sum(1), "more of the text than the token"),
        (lambda tokens: (tokens,), "changes with the text"),
        (lambda tokens: tokens.to("meta"), "changes with the text"),
    ],
    ids=["all before", "its place", "all", "nested", "no data"],
)
def test_what_depends_on_the_text_in_another_way_is_told(of, why):
    with pytest.raises(ValueError, match=why):
        companions_of(*noted(of))


def test_blocks_that_are_given_one_tensor_share_its_table():
    def two(tokens: torch.Tensor) -> Given:
        one = tokens * 2
        blocks = [BlockArguments((one,), {}), BlockArguments((one, tokens * 3), {})]
        return Given(tokens, blocks)

    every = (SAME, MIXED, MIXED.flip(1), SAME.repeat(2, 1), SAME.repeat(1, 2))
    assert [(each.block, each.key, each.table) for each in companions_of(*map(two, every))] == [
        (0, 0, 0),
        (1, 0, 0),
        (1, 1, 1),
    ]


def test_an_empty_mapping_is_what_blocks_share_and_a_filled_one_is_not():
    blocks = [BlockArguments(({}, {"mask": 1}), {"shared": {}, "other": None})]
    assert shared_mappings(blocks) == (frozenset({0, "shared"}),)
