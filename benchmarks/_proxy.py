"""A TCP proxy that does to a link what networks do to it, at the word of a script.

::

    client ==TCP== Proxy ==TCP== server        forwarding: each chunk of bytes is passed on after
                     ^                         delay + jitter, never before the one before it
              cut, blackhole, restore,
              delay, jitter, stall

    cut         both sides are reset (RST), new connections as well, until ``restore``
    blackhole   bytes vanish and so do FIN and RST; new connections are accepted and never answered.
                A connection that was in the hole stays dead after ``restore``, as one that a
                firewall has forgotten does: its ends must find out for themselves
    stall       nothing passes for a while, then everything does at once: a burst of late bytes

TCP hides loss, order and duplicates; those are for messages, see ``_faulty_link``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024  # bytes
_WAITING = 64  # chunks that wait to be passed on, per direction; past it the sender is held up
_START_S = 5.0


class _Pair:
    """One client's connection and the one made for it to the server."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._gone = asyncio.Event()  # it was reset from here
        self._writers = [client]
        self.dead = False  # it was in a black hole

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Forwards until both directions have ended; a dead one until it is reset from here."""
        host, port = self._proxy.target
        try:
            far_reader, far = await asyncio.open_connection(host, port)
        except OSError:
            self.reset()
            return
        self._writers.append(far)
        await asyncio.gather(
            self._forward(reader, far), self._forward(far_reader, self._writers[0])
        )

    async def swallow(self, reader: asyncio.StreamReader) -> None:
        """Reads and says nothing."""
        self.dead = True
        with contextlib.suppress(OSError):
            while await reader.read(_CHUNK):
                pass

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)
        passing = asyncio.create_task(self._pass_on(waiting, writer))
        due_s, data = 0.0, b" "
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
                if not self.dead:
                    self.reset()
            due_s = max(due_s, _now_s() + self._proxy.draw_delay_s())
            if not (data and self.dead):
                await waiting.put((due_s, data))
        await passing
        if self.dead:
            await self._gone.wait()  # the other side must not learn of the end

    async def _pass_on(
        self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        data = b" "
        while data:
            due_s, data = await waiting.get()
            while not self._gone.is_set():
                wait_s = max(due_s, self._proxy.stalled_until_s) - _now_s()
                if wait_s <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), wait_s)
            if self.dead or self._gone.is_set():
                continue
            with contextlib.suppress(OSError):
                if data:
                    writer.write(data)
                    await writer.drain()
                elif writer.can_write_eof():
                    writer.write_eof()

    def reset(self) -> None:
        """Ends both connections with RST."""
        self._gone.set()
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class Proxy:
    """The proxy, on a thread of its own; a context manager. Its methods are for any thread.

    Each method returns when what it says is in force.

    Attributes:
        target: Host and port of the server.
        connections: Connections accepted [count].
        stalled_until_s: When the present stall ends [s], the proxy's clock.
    """

    def __init__(self, target: str, port: int = 0, seed: int = 0) -> None:
        """Args:
        target: ``host:port`` of the server; it need not be there yet.
        port: Port to listen at; 0 takes a free one.
        seed: Of the jitter.
        """
        host, _, number = target.rpartition(":")
        self.target = (host, int(number))
        self.connections = 0
        self.stalled_until_s = 0.0
        self._port = port
        self._random = Random(seed)
        self._delay_s = self._jitter_mean_s = self._jitter_sigma_s = 0.0
        self._refusing = self._swallowing = False
        # The tasks are kept here: the event loop itself would let them be collected.
        self._pairs: dict[_Pair, asyncio.Task] = {}
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="onset-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._port = self._ready.result(_START_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self._call(self._ended.set)
            self._thread.join()

    @property
    def address(self) -> str:
        """Where clients connect: ``host:port``."""
        return f"127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Resets every connection, and each new one as it comes, until ``restore``."""
        self._call(self._cut)

    def blackhole(self) -> None:
        """Lets every byte vanish until ``restore``; the connections it met stay dead."""
        self._call(self._blackhole)

    def restore(self) -> None:
        """Forwards new connections again, without stall; delay and jitter stay."""
        self._call(self._restore)

    def delay(self, ms: float) -> None:
        """Holds bytes back so long, in each direction [ms]."""
        self._call(lambda: setattr(self, "_delay_s", ms / 1e3))

    def jitter(self, mean: float, sigma: float) -> None:
        """Adds a normal random time per chunk of bytes, at least 0 [ms]. The order is kept."""

        def change() -> None:
            self._jitter_mean_s, self._jitter_sigma_s = mean / 1e3, sigma / 1e3

        self._call(change)

    def stall(self, seconds: float) -> None:
        """Lets nothing pass for so long from now on, then everything [s]."""

        def change() -> None:
            self.stalled_until_s = _now_s() + seconds

        self._call(change)

    def draw_delay_s(self) -> float:
        """How long the next chunk of bytes is held back [s]."""
        jitter_s = self._jitter_mean_s
        if self._jitter_sigma_s > 0:
            jitter_s = self._random.gauss(self._jitter_mean_s, self._jitter_sigma_s)
        return self._delay_s + max(0.0, jitter_s)

    def _call(self, function: Callable[[], None]) -> None:
        """Runs a function on the proxy's thread and waits for it."""
        done: Future[None] = Future()

        def run() -> None:
            function()
            done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result(_START_S)

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        try:
            server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        except OSError as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(server.sockets[0].getsockname()[1])
        await self._ended.wait()
        server.close()
        for pair in self._pairs:
            pair.reset()
        await asyncio.gather(*self._pairs.values())

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair, task = _Pair(self, writer), asyncio.current_task()
        if self._refusing or task is None:
            pair.reset()
            return
        self._pairs[pair] = task
        try:
            await (pair.swallow(reader) if self._swallowing else pair.run(reader))
        finally:
            del self._pairs[pair]
            pair.close()

    def _cut(self) -> None:
        self._refusing = True
        for pair in self._pairs:
            pair.reset()

    def _blackhole(self) -> None:
        self._swallowing = True
        for pair in self._pairs:
            pair.dead = True

    def _restore(self) -> None:
        self._refusing = self._swallowing = False
        self.stalled_until_s = 0.0


def _now_s() -> float:
    return asyncio.get_running_loop().time()
