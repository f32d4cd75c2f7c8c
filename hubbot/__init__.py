"""hubbot: quantized releases of language models, made, measured and published in one sweep."""

__version__ = "0.1.0"
