"""A port that passes every byte on to another port and counts them: what really goes over the wire, TLS and all."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Lock, Thread

CHUNK = 2**16


@dataclass(eq=False)
class Counted:
    """A relay's own port, and the bytes that have passed it: up, towards the target, and down, from it."""

    port: int
    up: int = 0
    down: int = 0


def connect(port: int, patience: float) -> socket.socket:
    """A connection to a port of this machine, tried again and again. OSError if nobody is there in so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextmanager
def relay(target: int, patience: float = 60) -> Iterator[Counted]:
    """Pass connections on to the port `target` of this machine, until the end of the block.

    patience: seconds that a connection waits for a target that is not there, or not yet again; then it is closed.
    """
    lock = Lock()

    class Handler(BaseRequestHandler):
        def handle(self):
            with suppress(OSError), connect(target, patience) as there:
                answers = Thread(target=pump, args=(there, self.request, "down"), daemon=True)
                answers.start()
                pump(self.request, there, "up")
                answers.join()

    def count(what: str, n: int) -> None:
        with lock:
            setattr(counted, what, getattr(counted, what) + n)

    def pump(source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):  # an end that was killed
            while chunk := source.recv(CHUNK):
                count(way, len(chunk))
                sink.sendall(chunk)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        counted = Counted(server.server_address[1])
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield counted
        finally:
            server.shutdown()
