"""The suite's own guard: nothing leaves the machine."""

import socket

import pytest


@pytest.mark.parametrize("host", ["93.184.215.14", "10.0.0.1", "example.org"])
def test_a_connection_off_this_machine_is_refused_before_it_is_tried(host: str) -> None:
    with socket.socket() as out, pytest.raises(ConnectionRefusedError, match="stay on this machine"):
        out.connect((host, 80))


def test_a_connection_on_this_machine_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
