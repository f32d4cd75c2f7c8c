"""The cache of machine code, without a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubbot.formats.gguf.cuda import compiler


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Texts that were compiled; machine code is the text itself with its card."""
    seen: list[str] = []

    def compile_text(text: str, options: tuple[str, ...]) -> bytes:
        seen.append(text)
        return f"{text} {options[-1]}".encode()

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "_compiled", compile_text)
    monkeypatch.setattr(compiler, "_version", lambda: (13, 0))
    return seen


def test_a_program_is_compiled_once_for_a_kind_of_card(compiled):
    first, again = (compiler.cubin("a", (9, 0)) for _ in range(2))

    assert first == again == b"a --gpu-architecture=sm_90"
    assert compiled == ["a"]


def test_another_text_card_or_compiler_is_compiled_anew(compiled, monkeypatch):
    compiler.cubin("a", (9, 0))
    compiler.cubin("b", (9, 0))
    assert compiler.cubin("a", (8, 9)) == b"a --gpu-architecture=sm_89"
    monkeypatch.setattr(compiler, "_version", lambda: (13, 1))
    compiler.cubin("a", (9, 0))

    assert compiled == ["a", "b", "a", "a"]


def test_a_place_that_cannot_be_written_to_costs_time_and_nothing_else(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))

    assert compiler.cubin("a", (9, 0)) == compiler.cubin("a", (9, 0))
    assert compiled == ["a", "a"]
