"""What a block leaves for later ones, kept window by window."""

from __future__ import annotations

import pytest
import torch

from hubbot.errors import Unsupported
from hubbot.sweep.shared import SharedStates


def mapping(states: dict[str, torch.Tensor], windows: slice) -> SharedStates:
    return SharedStates(states, windows, torch.device("cpu"), lambda some: torch.empty((5, *some.shape[1:])))


def test_what_is_left_of_some_windows_is_found_again_by_them_alone() -> None:
    states: dict[str, torch.Tensor] = {}
    keys, values = torch.randn(5, 2, 3), torch.randn(5, 4)
    for windows in (slice(0, 2), slice(2, 5)):
        mapping(states, windows)["full"] = keys[windows], values[windows]
    later = mapping(states, slice(1, 4))
    assert list(later) == ["full"]
    assert len(later) == 1
    found = later["full"]
    assert torch.equal(found[0], keys[1:4])
    assert torch.equal(found[1], values[1:4])


def test_what_no_block_has_left_is_missing() -> None:
    with pytest.raises(KeyError):
        mapping({}, slice(0, 1))["full"]


def test_what_is_not_of_the_windows_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"leaves \[3, 2\] for later ones \(full\), which are not so many windows"):
        mapping({}, slice(0, 2))["full"] = (torch.zeros(3, 2),)
