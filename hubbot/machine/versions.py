"""Versions of hubbot and of the tools that shape its output, for the record."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from hubbot import __version__, llamacpp

__all__ = ["INSTALL", "commit", "tools", "version"]

_PACKAGES = "torch transformers huggingface-hub datasets accelerate safetensors tokenizers".split()


# the package asks for all that it reads but GPTQModel, which declares another torch (docs/dependencies.md)
INSTALL = {
    "gptqmodel": "Run `pip install 'hubbot[gptq]'`, then `pip install --no-deps gptqmodel==7.7.0` (`make setup` in a checkout).",
    "compressed_tensors": "Run `pip install compressed-tensors==0.20.0` (`make setup` in a checkout).",
    "bitsandbytes": "Run `pip install --force-reinstall hubbot` (`make setup` in a checkout).",
}


def version() -> str:
    return __version__


def commit() -> str | None:
    """The commit of hubbot's checkout, None where it was installed from a package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def tools(more: Iterable[str] = ()) -> dict[str, str]:
    """Name -> version of Python, llama.cpp and the packages that are installed, those of `more` among them."""
    found = {"python": sys.version.split()[0], "llama.cpp": llamacpp.runtime_name().removeprefix("llama.cpp ")}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
