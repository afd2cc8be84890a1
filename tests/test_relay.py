"""The byte counter of the deployment: everything arrives, in both directions, and is counted exactly."""

import socket
import threading
from functools import partial

import pytest

from cosquant_lite.relay import relay


@pytest.fixture
def echo():
    """A server that sends everything back twice; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    received = b"".join(iter(partial(connection.recv, 1000), b""))
                    connection.sendall(2 * received)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_counts_what_passes(echo):
    with relay(echo) as counted:
        for n in (10, 300_000):
            with socket.create_connection(("127.0.0.1", counted.port)) as client:
                client.sendall(b"x" * n)
                client.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(partial(client.recv, 1000), b""))
            assert answer == b"x" * 2 * n
    assert (counted.up, counted.down) == (300_010, 600_020)


def test_with_nobody_behind_it_a_connection_is_closed_in_the_end():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with (
        relay(closed, patience=0.3) as counted,
        socket.create_connection(("127.0.0.1", counted.port), timeout=10) as client,
    ):
        assert client.recv(1) == b""
    assert (counted.up, counted.down) == (0, 0)


def test_waits_for_a_target_that_starts_again():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with relay(port) as counted, socket.create_connection(("127.0.0.1", counted.port), timeout=10) as client:
        client.sendall(b"hello")
        with socket.create_server(("127.0.0.1", port)) as server:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(10) == b"hello"
