"""Triton kernels for the loops that are too fine-grained for torch on a GPU; each has a plain-torch twin that defines it."""
