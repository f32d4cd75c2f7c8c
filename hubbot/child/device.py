"""The device that `auto` stands for."""

from __future__ import annotations

__all__ = ["settle_device"]


def settle_device(name: str) -> str:
    """`auto` becomes the first GPU where there is one."""
    if name != "auto":
        return name
    import torch  # takes seconds, which a plan with a named device does without

    return "cuda:0" if torch.cuda.is_available() else "cpu"
