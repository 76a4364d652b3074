import socket
import threading
import time
from contextlib import contextmanager

import pytest

from benchmarks._proxy import Proxy


@contextmanager
def echo():
    """A server that sends back what it is sent; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets = [listener]

    def serve(connection):
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for each in open_sockets:
            each.close()


@pytest.fixture
def proxy():
    with echo() as target, Proxy(target) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    host, port = proxy.address.split(":")
    return socket.create_connection((host, int(port)), timeout=1.0)


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def echoes(connection: socket.socket, data: bytes = b"hello") -> bool:
    connection.sendall(data)
    return receive(connection, len(data)) == data


def is_silent(connection: socket.socket, data: bytes = b"hello") -> bool:
    connection.sendall(data)
    connection.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(1.0)
    return True


def test_bytes_pass_both_ways_and_so_does_the_end(proxy):
    with connect(proxy) as one, connect(proxy) as two:
        data = bytes(range(256)) * 4096
        one.settimeout(2.0)
        sender = threading.Thread(target=one.sendall, args=(data,))
        sender.start()
        assert receive(one, len(data)) == data
        sender.join()
        assert echoes(two)
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
        assert proxy.connections == 2


def test_a_cut_resets_the_connections_and_the_new_ones_until_it_is_restored(proxy):
    with connect(proxy) as old:
        assert echoes(old)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    with pytest.raises(ConnectionResetError), connect(proxy) as refused:
        refused.recv(1)
    proxy.restore()
    with connect(proxy) as new:
        assert echoes(new)


def test_a_black_hole_says_nothing_and_what_was_in_it_stays_dead(proxy):
    with connect(proxy) as old:
        assert echoes(old)
        proxy.blackhole()
        assert is_silent(old)
        with connect(proxy) as within:
            assert is_silent(within)
            proxy.restore()
            assert is_silent(old)
            assert is_silent(within)
            with connect(proxy) as new:
                assert echoes(new)


def test_a_delay_holds_in_each_direction(proxy):
    with connect(proxy) as connection:
        assert echoes(connection)
        proxy.delay(40)
        began = time.monotonic()
        assert echoes(connection)
        assert 0.08 <= time.monotonic() - began < 0.5
        proxy.delay(0)
        began = time.monotonic()
        assert echoes(connection)
        assert time.monotonic() - began < 0.08


def test_jitter_changes_the_times_and_keeps_the_order(proxy):
    proxy.jitter(10, 10)
    with connect(proxy) as connection:
        times = []
        for number in range(20):
            began = time.monotonic()
            assert echoes(connection, bytes([number]))
            times.append(time.monotonic() - began)
        assert max(times) - min(times) > 0.01
        sent = bytes(range(200))
        for number in sent:
            connection.sendall(bytes([number]))
        assert receive(connection, len(sent)) == sent


def test_a_stall_lets_everything_pass_in_the_end(proxy):
    with connect(proxy) as connection:
        assert echoes(connection)
        proxy.stall(0.2)
        began = time.monotonic()
        connection.sendall(b"a")
        connection.sendall(b"b")
        assert receive(connection, 2) == b"ab"
        assert 0.2 <= time.monotonic() - began < 0.7


def test_without_a_server_a_connection_is_reset():
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        Proxy(target) as proxy,
        pytest.raises(ConnectionResetError),  # before connect() returns, or after
        connect(proxy) as connection,
    ):
        connection.recv(1)
    with pytest.raises(OSError, match="refused"):
        connect(proxy)


def test_a_port_that_is_taken_is_an_error(proxy):
    taken = int(proxy.address.split(":")[1])
    with pytest.raises(OSError, match="in use"):
        Proxy("127.0.0.1:1", taken).__enter__()
