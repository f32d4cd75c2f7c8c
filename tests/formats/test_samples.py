"""What the original model says to the prompts, or a sentence on why it says nothing."""

from pathlib import Path

import pytest
import torch

from hubbot.errors import SourceRefused
from hubbot.formats.samples import continue_base


def test_a_model_that_transformers_cannot_load_is_told_in_a_sentence_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(
        SourceRefused, match=r"^transformers cannot load and run .* whole: \w+: .*evaluation\.samples to false\.$"
    ):
        continue_base(tmp_path, [[1]], [2], torch.device("cpu"))
