"""The variables of the environment that hubbot obeys; the only place that reads them.

What a way in needs of them it is given as an argument; what a deep place needs of the machine (a compiler, a
folder) has a function here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

__all__ = [
    "PROCESS",
    "compiler",
    "github_identity",
    "github_run",
    "github_token",
    "hub_endpoint",
    "hub_token",
    "in_github_actions",
    "llama_cpp",
    "plain_encoders",
    "search_path",
    "surveys",
]

PROCESS: MutableMapping[str, str] = os.environ  # of this process, for who takes an environment as an argument


def hub_token(environ: Mapping[str, str] = PROCESS) -> str | None:
    """HF_TOKEN: what reads private and gated models and publishes."""
    return environ.get("HF_TOKEN", "").strip() or None


def hub_endpoint(environ: Mapping[str, str] = PROCESS) -> str | None:
    """HF_ENDPOINT: another Hub than huggingface.co."""
    return environ.get("HF_ENDPOINT", "").strip() or None


def github_token(environ: Mapping[str, str] = PROCESS) -> str | None:
    """GITHUB_TOKEN: what `hubbot serve` dispatches to a repository with, and `hubbot request` answers issues."""
    return environ.get("GITHUB_TOKEN", "").strip() or None


def github_identity(environ: Mapping[str, str] = PROCESS) -> tuple[str, str] | None:
    """Where a GitHub job asks who it is, and with what token: ACTIONS_ID_TOKEN_REQUEST_URL and …_TOKEN."""
    url, token = (environ.get(f"ACTIONS_ID_TOKEN_REQUEST_{name}", "") for name in ("URL", "TOKEN"))
    return (url, token) if url and token else None


def github_run(environ: Mapping[str, str] = PROCESS) -> Mapping[str, str]:
    """Of a job of GitHub's: its repository, where the API and the pages are, and the number of its run; empty: not said."""
    return {
        name: environ.get(f"GITHUB_{name}", "").strip() for name in ("REPOSITORY", "API_URL", "SERVER_URL", "RUN_ID")
    }


def in_github_actions(environ: Mapping[str, str] = PROCESS) -> bool:
    return environ.get("GITHUB_ACTIONS") == "true"


def llama_cpp(environ: Mapping[str, str] = PROCESS) -> Path | None:
    """HUBBOT_LLAMA_CPP: another folder with llama.cpp than the one that `hubbot setup` makes."""
    named = environ.get("HUBBOT_LLAMA_CPP")
    return Path(named) if named else None


def surveys(environ: Mapping[str, str] = PROCESS) -> Path | None:
    """HUBBOT_SURVEYS: another folder than ~/.cache/hubbot/surveys to keep what was found out of models; empty: keep none."""
    named = environ.get("HUBBOT_SURVEYS")
    if named is not None:
        return Path(named) if named else None
    try:
        return Path.home() / ".cache" / "hubbot" / "surveys"
    except RuntimeError:  # a user of a container whom nobody has entered
        return None


def plain_encoders(environ: Mapping[str, str] = PROCESS) -> bool:
    """HUBBOT_PLAIN_ENCODERS: encode with llama.cpp's own functions, not with the faster ones of the same bytes."""
    return bool(environ.get("HUBBOT_PLAIN_ENCODERS"))


def compiler(environ: Mapping[str, str] = PROCESS) -> str:
    return environ.get("CC", "cc")


def search_path(environ: Mapping[str, str] = PROCESS) -> str:
    """PATH: where programs are found."""
    return environ.get("PATH", os.defpath)
