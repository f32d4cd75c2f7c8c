"""Every architecture that transformers shares with llama.cpp's converter, as a tiny random model through the whole sweep.

    python -m tests.conformance [CLASS …] [--processes 2]

writes docs/architectures.json and, from it, docs/architectures.md; classes that are named are run anew, the others' rows stay.
It ends with 1 where something that passed before does not.
"""
