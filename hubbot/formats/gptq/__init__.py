"""GPTQ checkpoints: solver, packing, files, and the check in their own reader."""

from hubbot.formats.gptq.family import GptqFormat, costs

__all__ = ["GptqFormat", "costs"]
