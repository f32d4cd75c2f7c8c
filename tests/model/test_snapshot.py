"""Folders without weights where they are looked for are told by what lies there, and what to do."""

from __future__ import annotations

import re

import pytest

from hubbot.model.snapshot import no_weights


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["consolidated.safetensors", "params.json"], "consolidated.safetensors'. The layout .* of the author's own program"),
        (["merged-final.safetensors"], "merged-final.safetensors'.* call it model.safetensors in a copy"),
        (["tf_model.h5", "flax_model.msgpack"], "tf_model.h5'.* are not read, so ask the author for safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], r"an adapter of PEFT \(LoRA and its like\)"),
    ],
)  # fmt: skip
def test_the_file_that_is_there_is_named_with_what_to_do_about_it(files, said):
    assert re.search(said, no_weights(files))
