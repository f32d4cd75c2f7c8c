"""Imports point down: every package stands in the contract of pyproject.toml, and nothing imports in a circle."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import grimp
import networkx
import pytest

ROOT = Path(__file__).parents[1]


def circles(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Everything that can be reached from itself, in groups."""
    groups = networkx.strongly_connected_components(networkx.DiGraph(arrows))
    return sorted(sorted(group) for group in groups if len(group) > 1)


def package(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.fixture(scope="module")
def arrows() -> set[tuple[str, str]]:
    """(importer, imported) of hubbot's own modules, imports inside functions and for types alone included."""
    graph = grimp.build_graph("hubbot", cache_dir=None)
    return {(one, other) for one in graph.modules for other in graph.find_modules_directly_imported_by(one)}


def test_a_circle_is_seen() -> None:
    assert circles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]) == [["a", "b", "c"]]


def test_no_packages_import_each_other(arrows: set[tuple[str, str]]) -> None:
    between = {(package(one), package(other)) for one, other in arrows}
    assert len(between) > 50
    assert circles((one, other) for one, other in between if one != other) == []


def test_no_modules_import_each_other(arrows: set[tuple[str, str]]) -> None:
    assert circles(arrows) == []


def test_every_package_stands_in_the_contract_once() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layered] = [contract for contract in contracts if contract["type"] == "layers"]
    named = [name for layer in layered["layers"] for name in re.split(r" \| ", layer)]
    there = {
        path.stem for path in (ROOT / "hubbot").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert layered["exhaustive"]
    assert sorted(named) == sorted(there - {"__init__"})
