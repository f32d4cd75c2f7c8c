"""How much of the streams passes through the model at a time; what a plan counts with too."""

__all__ = ["BATCH_TOKENS", "LOGIT_BYTES"]

BATCH_TOKENS = 4096  # tokens that pass a block together
LOGIT_BYTES = 32 * 2**20  # of one batch of logits
