"""Several processes behind one port, their connections spread evenly.

The parent forks workers, which share the memory of the loaded model, then accepts connections and hands each to the
next worker in turn over a Unix socket. To share one listening socket instead would leave the choice to whoever wakes
first, and a core idles while another's connections wait.

A worker that dies is replaced when its turn comes, and its next connection goes to the new one. When the parent ends,
however that happens, its workers finish what they have and end too.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import uvicorn

DRAIN_S = 30.0
"""How long requests that are under way may take to end."""
_log = logging.getLogger(__name__)


def run(app: Any, listener: socket.socket, count: int, options: dict[str, Any]) -> None:
    """Answer `listener`'s connections with `count` processes until SIGTERM or SIGINT."""
    if count == 1:
        uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])
        return
    listener.listen(options.get("backlog", 2048))
    workers: list[_Worker] = []
    for _ in range(count):
        workers.append(_fork(app, listener, options, workers))

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stop

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    turn = 0
    try:
        while True:
            turn = (turn + 1) % count
            try:
                connection, _ = listener.accept()
                with connection:
                    try:
                        workers[turn].hand(connection)
                    except ConnectionError:  # it has died
                        workers[turn].end()
                        workers[turn] = _fork(app, listener, options, workers)
                        workers[turn].hand(connection)
            except OSError as error:  # this connection's: its client has gone again, or too many are under way
                _log.warning("a connection was not taken: %s", error)
                time.sleep(0.01)
    except _Stop:
        listener.close()  # who connects from now on is refused at once, not left waiting
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for worker in workers:
            worker.channel.close()
        deadline = time.monotonic() + DRAIN_S + 5
        for worker in workers:
            worker.wait(deadline)


class _Stop(BaseException):
    """SIGTERM or SIGINT, as an exception that nothing catches by accident."""


@dataclass
class _Worker:
    pid: int
    channel: socket.socket

    def hand(self, connection: socket.socket) -> None:
        socket.send_fds(self.channel, [b"c"], [connection.fileno()])

    def end(self) -> None:
        self.channel.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def wait(self, deadline: float) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    self.end()
                    return
                time.sleep(0.01)


def _fork(app: Any, listener: socket.socket, options: dict[str, Any], others: list[_Worker]) -> _Worker:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return _Worker(pid, ours)
    code = 1
    try:  # the child never returns into its parent's program
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a terminal's Ctrl-C reaches the group; the parent says when to end
        listener.close()
        for channel in (ours, *(other.channel for other in others)):
            channel.close()  # a copy kept here would hide the parent's end from its reader
        _Server(uvicorn.Config(app, **options), theirs).run(sockets=[])
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


class _Server(uvicorn.Server):
    """A uvicorn server whose connections come through a channel."""

    def __init__(self, config: uvicorn.Config, channel: socket.socket) -> None:
        super().__init__(config)
        self._channel = channel
        self._tasks: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        loop.add_reader(self._channel.fileno(), self._take, loop)

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            message, handles, _, _ = socket.recv_fds(self._channel, 1, 1)
        except BlockingIOError:
            return
        if message and not handles:  # this process may open no more files: the kernel has closed the connection
            return
        if not message:  # the parent has ended, or told us to
            loop.remove_reader(self._channel.fileno())
            self.should_exit = True
            return
        connection = socket.socket(fileno=handles[0])
        connection.setblocking(False)
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._tasks.discard)

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
