"""A stand-in between a client and a server, which does with the answers what a test likes."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from urllib.parse import urlsplit

Judge = Callable[[bytes], bool]
"""Given what was asked since the last answer: does the answer pass? If it raises `OSError`, the connection is cut."""


@contextmanager
def through_a_proxy(url: str, passes: Judge) -> Iterator[str]:
    """Yield the URL that leads to the server by way of the proxy."""
    there = urlsplit(url)

    class Proxy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.asked = b""
            with suppress(OSError), socket.create_connection((there.hostname, there.port)) as server:
                threading.Thread(target=self.answer, args=(server,), daemon=True).start()
                while data := self.request.recv(65536):
                    self.asked += data
                    server.sendall(data)

        def answer(self, server: socket.socket) -> None:
            with suppress(OSError):
                while data := server.recv(65536):
                    asked, self.asked = self.asked, b""
                    if passes(asked):
                        self.request.sendall(data)
            with suppress(OSError):
                self.request.shutdown(socket.SHUT_RDWR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield there._replace(netloc=f"127.0.0.1:{proxy.server_address[1]}").geturl()
        proxy.shutdown()


def cutting_off(url: str, cuts: list[None]) -> AbstractContextManager[str]:
    """Stand before a MongoDB: for each of the cuts, which it takes off, the answer to a write does not arrive."""

    def passes(asked: bytes) -> bool:
        if b"\x02update\0" in asked and cuts:
            cuts.pop()
            raise ConnectionAbortedError
        return True

    return through_a_proxy(url, passes)
