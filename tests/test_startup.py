"""What computes nothing starts without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "bitsandbytes")
PROGRAM = f"""
import sys
from hubbot.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print(f"\\nended with {{stop.code}}, loaded {{sorted(set({HEAVY}) & set(sys.modules))}}")
"""


@pytest.mark.parametrize("words", ["--help", "plan --help", "watch --dry-run"])
def test_it_starts_without_torch(words: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hubbot.toml").write_text('[watch]\nauthors = ["maker"]\n')
    hub.model("maker/one", {"config.json": b"{}"})
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.stdout.splitlines()[-1] == "ended with 0, loaded []", told.stderr
