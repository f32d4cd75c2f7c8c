from pathlib import Path

import pytest

from tests.models import make_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A tiny random Llama in bf16, untied, as a Hub folder."""
    return make_model("llama", tmp_path_factory.mktemp("gguf") / "tiny-llama")
