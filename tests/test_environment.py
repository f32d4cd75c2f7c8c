"""One module reads the environment; everything else is given what it needs."""

from __future__ import annotations

import ast
from pathlib import Path

import hubbot

PACKAGE = Path(hubbot.__file__).parent
READER = "environment.py"


def _reads(tree: ast.AST) -> bool:
    names = {("os", "environ"), ("os", "getenv"), ("os", "environb")}
    found = any(
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in names
        for node in ast.walk(tree)
    )
    imported = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "os"
        and {"environ", "getenv"} & {a.name for a in node.names}
        for node in ast.walk(tree)
    )
    return found or imported


def test_one_module_reads_the_environment():
    readers = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if _reads(ast.parse(path.read_text("utf-8")))
    }
    assert readers == {READER}
