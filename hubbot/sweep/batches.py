"""How much of the streams passes through the model at a time; what a plan counts with too."""

__all__ = ["SLOT", "batch_tokens", "logit_bytes"]

SLOT = 2**28  # bytes of a tensor that a process shows to the others at once, where several share a sweep

_BATCH_TOKENS = 4096  # tokens that pass a block together
_BATCH_TOKENS_ON_A_CARD = 8192
_LOGIT_BYTES = 32 * 2**20  # of one batch of logits
_LOGIT_BYTES_ON_A_CARD = 512 * 2**20  # where a smaller product leaves most of it idle


def batch_tokens(device: str) -> int:
    """How many tokens pass a block together. device: as torch writes it, `cpu` or `cuda:0`."""
    return _BATCH_TOKENS_ON_A_CARD if device.startswith("cuda") else _BATCH_TOKENS


def logit_bytes(device: str) -> int:
    """Of one batch of logits."""
    return _LOGIT_BYTES_ON_A_CARD if device.startswith("cuda") else _LOGIT_BYTES
