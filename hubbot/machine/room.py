"""What a card has room for."""

from __future__ import annotations

import torch

__all__ = ["room_on"]


def room_on(device: torch.device) -> int:
    """Bytes of a card that nothing lies in: its driver's, and those that torch has taken from it and not given out."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
