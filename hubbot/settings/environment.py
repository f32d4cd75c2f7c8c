"""The variables of the environment that hubbot obeys; the only place that reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["hub_endpoint", "hub_token"]


def hub_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """HF_TOKEN: what reads private and gated models and publishes."""
    return environ.get("HF_TOKEN", "").strip() or None


def hub_endpoint(environ: Mapping[str, str] = os.environ) -> str | None:
    """HF_ENDPOINT: another Hub than huggingface.co."""
    return environ.get("HF_ENDPOINT", "").strip() or None
