"""The server as a process, through its command line: killed, drained, interrupted."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from controller.client import describe
from controller.client_session import LinkConfig
from controller.messages import Notice, NoticeKind
from scripts.serve import Args, main
from tests.vla.helpers import PROMPTS, chunk_of, link_to, observation, until
from vla.checkpoint import load_checkpoint
from vla.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"serving tiny \(([0-9a-f]{12})\) at (127\.0\.0\.1:(\d+))\n")


class Process:
    """scripts/serve.py; ready when the constructor returns."""

    def __init__(self, policy: Path, port: int = 0) -> None:
        path = os.pathsep.join((str(ROOT), str(ROOT / "proto")))
        command = [sys.executable, str(ROOT / "scripts" / "serve.py")]
        self.process = subprocess.Popen(
            [*command, "--policy", str(policy), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        line = self.process.stdout.readline()
        found = LINE.fullmatch(line)
        if found is None:
            self.process.kill()
            pytest.fail(f"{line!r}\n{self.process.stderr.read()}")
        self.digest, self.address, self.port = found[1], found[2], int(found[3])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def end_with(self, number: signal.Signals) -> tuple[int, str]:
        """Sends a signal; returns the exit status and the log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


def test_a_killed_server_comes_back_on_its_port_and_the_robot_resumes(tiny_path):
    engine = Engine(load_checkpoint(tiny_path))
    config = LinkConfig(reply_deadline_s=2.0, open_timeout_s=20.0, min_backoff_s=0.05)
    with Process(tiny_path) as first:
        assert describe(first.address).model_hash.startswith(first.digest)
        link = link_to(first.address, config=config)
        with link:
            link.submit(observation(0))
            np.testing.assert_allclose(
                chunk_of(link).actions, engine.chunk(observation(0), PROMPTS[0]), atol=1e-6
            )
            first.process.kill()
            first.process.wait()
            until(lambda: link.events)
            with Process(tiny_path, first.port) as second:
                until(lambda: link.stats.reopens == 1)
                # The episode goes on where it was: the server knows nothing, the robot all.
                asked = observation(31)
                link.submit(asked)
                piece = chunk_of(link)
                assert (piece.observation_id, piece.start_step) == (31, asked.step)
                np.testing.assert_allclose(
                    piece.actions, engine.chunk(asked, PROMPTS[0]), atol=1e-6
                )
                status, log = second.end_with(signal.SIGTERM)
    assert status == 0, log
    assert "draining 1 sessions" in log
    assert "sessions 1, observations 1" in log
    assert "Traceback" not in log
    assert NoticeKind.DRAIN in [e.kind for e in link.events if isinstance(e, Notice)]


def test_an_interrupt_ends_an_idle_server_in_good_order(tiny_path):
    with Process(tiny_path) as server:
        status, log = server.end_with(signal.SIGINT)
    assert status == 0, log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"policy": "no-such-policy"}, "policy: given no-such-policy.safetensors"),
        ({"steps": 0}, "steps: given 0; allowed: 1.."),
        ({"executed": 0}, "executed: given 0; allowed: 1.."),
        ({"executed": 9}, "executed: given 9; allowed: 1..8"),
        # The tiny policy has no MeanFlow head.
        ({"schedule": "one_step"}, "schedule: given one_step; allowed: what tiny offers: ['con"),
        ({"schedule": "has_meanflow"}, "tiny offers: ['constant', 'has']"),
        ({"port": 70000}, "port: given 70000; allowed: 0..65535"),
        ({"threads": 0}, "threads: given 0"),
    ],
)
def test_bad_arguments_are_refused_in_words(tiny_path, capsys, arguments, words):
    settings = {"policy": str(tiny_path), "port": 0} | arguments
    assert main(Args(**settings)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
