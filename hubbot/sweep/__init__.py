"""The one pass over a model: every decoder block is read once and serves every variant."""
