"""How much of the streams passes through the model at a time; what a plan counts with too."""

__all__ = ["BAND", "DRAWS", "GRADIENT_TOKENS", "SLOT", "batch_tokens", "gradient_batch_tokens", "logit_bytes"]

SLOT = 2**28  # bytes of a tensor that a process shows to the others at once, where several share a sweep
GRADIENT_TOKENS = 2**16  # of the calibration whose gradients are taken, where a variant asks for them
DRAWS = 4  # how often a shorter calibration passes at most, each time with labels of its own
BAND = 4096  # outputs whose gradients are multiplied with each other

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


def gradient_batch_tokens(device: str) -> int:
    """How many tokens pass a block together where it is computed forth and back, or one window if that has more."""
    return batch_tokens(device) // 4
