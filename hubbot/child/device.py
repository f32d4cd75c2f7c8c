"""The devices that a setting stands for."""

from __future__ import annotations

__all__ = ["settle_device", "settle_devices"]


def settle_device(name: str) -> str:
    """`auto` becomes the first GPU where there is one."""
    if name != "auto":
        return name
    import torch  # takes seconds, which a plan with a named device does without

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def settle_devices(name: str) -> list[str]:
    """`auto` and `cuda` become all GPUs that are visible, `cuda:1` that one."""
    import torch

    if name not in {"auto", "cuda"} or not torch.cuda.is_available():
        return [settle_device(name)]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
