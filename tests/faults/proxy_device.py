"""A bad link: a TCP proxy on loopback that cuts, changes or repeats what goes up."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Link:
    """What the link does to the next connections: set its fields between requests."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.cut_up: int | None = None
        """Close after so many bytes towards the gateway, none lost before."""
        self.cut_down: int | None = None
        """Close after so many bytes back."""
        self.change_up: int | None = None
        """Flip a bit of this byte towards the gateway."""
        self.up = 0
        """Bytes that went up since this was set to 0."""

    def pass_on(self, client: socket.socket) -> None:
        """One connection, until either side ends it."""
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            back = threading.Thread(target=self._back, args=(server, client), daemon=True)
            back.start()
            while data := client.recv(1 << 16):
                room = len(data) if self.cut_up is None else max(0, self.cut_up - self.up)
                if self.change_up is not None and self.up <= self.change_up < self.up + len(data):
                    at = self.change_up - self.up
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                server.sendall(data[:room])
                self.up += min(room, len(data))
                if room < len(data):
                    break
            for end in (server, client):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            back.join(timeout=5)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        down = 0
        with suppress(OSError):
            while data := server.recv(1 << 16):
                room = len(data) if self.cut_down is None else max(0, self.cut_down - down)
                client.sendall(data[:room])
                down += room
                if room < len(data):
                    break
        for end in (server, client):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def link(target: int) -> Iterator[tuple[Link, int]]:
    """A link to a port, and the port where it begins."""
    made = Link(target)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=made.pass_on, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield made, server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
