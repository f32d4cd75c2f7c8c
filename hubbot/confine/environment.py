"""The environment of every process that hubbot starts: what is listed here and nothing else.

An allow-list, so that a token of tomorrow stays out too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hubbot import llamacpp
from hubbot.confine.places import hubbot_roots
from hubbot.environment import PROCESS

__all__ = ["NETWORK", "allowed", "confined"]

# Names, and beginnings of names.
_NAMES = frozenset(
    "PATH LANG LANGUAGE TZ TERM COLUMNS LINES NO_COLOR FORCE_COLOR CI GITHUB_ACTIONS USER LOGNAME LD_LIBRARY_PATH "
    "LD_PRELOAD VIRTUAL_ENV CC CXX HUBBOT_LLAMA_CPP CUBLAS_WORKSPACE_CONFIG PYTHONDONTWRITEBYTECODE "
    "HOME TMPDIR XDG_CACHE_HOME HF_HOME HF_HUB_OFFLINE HF_HUB_DISABLE_TELEMETRY HF_DATASETS_OFFLINE "
    "TRANSFORMERS_OFFLINE".split()
)
_BEGINNINGS = tuple("LC_ CUDA_ NVIDIA_ ROCR_ HIP_ OMP_ MKL_ OPENBLAS_ TORCH_ PYTORCH_ TRITON_ GGML_ GPTQMODEL_".split())
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "KEY")

# Threads that wait for work sleep: where others want the cores too, spinning takes many times what the work does
# (docs/benchmarks.md). The environment's own word goes first.
_WAITING = {"OMP_WAIT_POLICY": "passive"}

# torch's memory on a card grows in place: between blocks of fixed size a tenth of a small card lay in pieces too small to use.
_GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

# What a process that speaks to the Hub needs besides; beginnings, in capitals.
NETWORK = tuple(
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY SSL_CERT_ REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HF_HUB_ HF_XET_".split()
)


def allowed(environ: Mapping[str, str] = PROCESS, *, more: tuple[str, ...] = ()) -> dict[str, str]:
    """What of an environment a child may see, and where it finds hubbot.

    more: beginnings of further names.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _NAMES or name.startswith(_BEGINNINGS) or name.upper().startswith(more))
        and not any(word in name.upper() for word in _SECRET_WORDS)
    }
    return kept | {"PYTHONPATH": os.pathsep.join(hubbot_roots(environ.get("PYTHONPATH", "")))}


def confined(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment of a child with a home of its own and no network."""
    own = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",  # its home outlives it: what it leaves there is not run before the next one has its walls
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GPTQMODEL_OFFLINE": "1",  # it would fetch the sources of a kernel, and takes another one so
    }
    return _WAITING | _GROWING | allowed(environ) | own | _llama_cpp()


def _llama_cpp() -> dict[str, str]:
    """Names the llama.cpp found here, as the child has another home to search."""
    place = llamacpp.place()
    return {"HUBBOT_LLAMA_CPP": str(place.absolute())} if (place / "source").is_dir() else {}
