"""The faults of the matrix in wall-clock time, each as a script in three parts.

A script prepares what takes long, yields, lets the fault happen, yields, lifts it, and returns the
instant from which on robots could be served again [ns], the robot's clock.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from benchmarks._faults_stack import Rig

Script = Generator[None, None, int]
SLOW_S = (0.16, 0.04)  # stopped and running, turn by turn: a fifth of a processor


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: Its name.
        about: What happens, in a few words.
        script: Does it.
        lasts_s: From its beginning to its lifting [s]; longer than a chunk where the arm shall
            come to a stop.
        holds: Whether the arm has to come to HOLDING.
    """

    name: str
    about: str
    script: Callable[[Rig], Script]
    lasts_s: float = 1.8
    holds: bool = True


def _server_killed(rig: Rig) -> Script:
    yield
    rig.world.server.kill()
    yield
    return rig.world.take_over(rig.world.new_server())


def _server_restarted(rig: Rig) -> Script:
    old, new = rig.world.server, rig.world.new_server()
    rig.world.standby = old
    yield
    now_ns = rig.world.take_over(new)
    old.signal(signal.SIGTERM)
    yield
    rig.world.standby = None
    old.kill()
    return now_ns


def _server_frozen(rig: Rig) -> Script:
    yield
    rig.world.server.signal(signal.SIGSTOP)
    yield
    now_ns = time.monotonic_ns()
    rig.world.server.signal(signal.SIGCONT)
    return now_ns


def _server_slow(rig: Rig) -> Script:
    server, ended = rig.world.server, threading.Event()

    def slow_down() -> None:
        stopped_s, running_s = SLOW_S
        while not ended.is_set():
            server.signal(signal.SIGSTOP)
            ended.wait(stopped_s)
            server.signal(signal.SIGCONT)
            ended.wait(running_s)

    thread = threading.Thread(target=slow_down, daemon=True)
    yield
    thread.start()
    yield
    ended.set()
    thread.join()
    return time.monotonic_ns()


def _link_cut(rig: Rig) -> Script:
    yield
    rig.world.proxy.cut()
    yield
    return _restore(rig)


def _link_blackholed(rig: Rig) -> Script:
    yield
    rig.world.proxy.blackhole()
    yield
    return _restore(rig)


def _restore(rig: Rig) -> int:
    now_ns = time.monotonic_ns()
    rig.world.proxy.restore()
    return now_ns


def _link_delayed(ms: float) -> Callable[[Rig], Script]:
    def script(rig: Rig) -> Script:
        yield
        rig.world.proxy.delay(ms)
        yield
        now_ns = time.monotonic_ns()
        rig.world.proxy.delay(0)
        return now_ns

    return script


def _link_jittered(rig: Rig) -> Script:
    yield
    rig.world.proxy.jitter(40, 40)
    yield
    now_ns = time.monotonic_ns()
    rig.world.proxy.jitter(0, 0)
    return now_ns


def _messages(kind: str) -> Callable[[Rig], Script]:
    def script(rig: Rig) -> Script:
        yield
        rig.client.tell(f"link {kind}")
        yield
        now_ns = time.monotonic_ns()
        rig.client.tell("link good")
        return now_ns

    return script


def _camera_stalled(rig: Rig) -> Script:
    yield
    rig.world.device.stall(True)
    yield
    now_ns = time.monotonic_ns()
    rig.world.device.stall(False)
    return now_ns


def _client_killed(rig: Rig) -> Script:
    another = rig.new_client()
    try:
        another.ready()
        yield
        rig.client.kill()
        yield
        now_ns = time.monotonic_ns()
        another.tell("take")
    except BaseException:
        another.kill()
        raise
    rig.client = another
    return now_ns


def _recorder_killed(rig: Rig) -> Script:
    yield
    rig.kill_recorder()
    yield
    rig.record()
    return time.monotonic_ns()


FAULTS = (
    Fault("server_killed", "SIGKILL; another is started from nothing", _server_killed, 0.0),
    Fault("server_restarted", "SIGTERM while another takes over", _server_restarted, 1.0, False),
    Fault("server_frozen", "SIGSTOP for 1.8 s", _server_frozen),
    Fault("server_slow", "a fifth of its processor for 2 s", _server_slow, 2.0, False),
    Fault("link_cut", "RST, and no new connection for 1.8 s", _link_cut),
    Fault("link_blackholed", "bytes vanish for 1.8 s", _link_blackholed),
    Fault("link_delayed", "200 ms more a round trip for 2 s", _link_delayed(100), 2.0, False),
    Fault("link_delayed_far", "400 ms more a round trip for 3 s", _link_delayed(200), 3.0, False),
    Fault("link_jittered", "N(40, 40) ms more for 2 s", _link_jittered, 2.0, False),
    Fault("messages_lost", "5 % each way for 3 s", _messages("lost"), 3.0, False),
    Fault("messages_reordered", "20 % each way for 2 s", _messages("reordered"), 2.0, False),
    Fault("messages_duplicated", "20 % each way for 2 s", _messages("duplicated"), 2.0, False),
    Fault("actions_nan", "NaN or infinite for 1 s", _messages("nan"), 1.0),
    Fault("actions_out_of_range", "up to 1e38 for 1 s", _messages("range"), 1.0, False),
    Fault("camera_stalled", "no new frames for 2 s", _camera_stalled, 2.0),
    Fault("client_killed", "SIGKILL; 1.8 s later another attaches", _client_killed),
    Fault("recorder_killed", "SIGKILL; another goes on", _recorder_killed, 0.3, False),
)
