"""The pytest fixture `hub`: a fresh server for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub.server import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of its own for this test. The client's xet protocol is off: the server has no such storage."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with Hub() as server:
        yield server
        assert server.journal.leaks == [], "a token was sent to the large-file storage"
