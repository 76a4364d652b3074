"""Both wires with a policy that costs nothing: two frames up, a chunk down."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.peers._asks import TASK, link_to, observed, scenes, whole_ms
from benchmarks.peers._frames import HEIGHT, WIDTH
from benchmarks.peers._processes import script, spent_ms
from benchmarks.peers._robots import features, theirs
from controller.types import Image

JOINTS = 14
SIDE = 256  # [px], of the images that lerobot/smolvla_base takes
WARM_UP = 10
_SIZES = {"": 0, ", scaled": SIDE}


class Pair:
    """LeRobot's null server and ours, for a policy that takes frames of one size."""

    def __init__(self, stack: ExitStack, out: Path, label: str, side: int) -> None:
        """Args:
        stack: Ends the servers.
        out: Where their logs go.
        label: Of this pair.
        side: Height and width that the policy takes [px]; the camera's own when 0.
        """
        from benchmarks.peers._lerobot_client import LeRobotClient

        self.side, self._rounds = side, 0
        option = ["--side", str(side)]
        shapes = ["--features", json.dumps(features(JOINTS))]
        self._servers = (
            stack.enter_context(
                script(out, "_null_lerobot_server.py", f"null_lerobot{label}", *shapes, *option)
            ),
            stack.enter_context(
                script(out, "_null_onset_server.py", f"null_onset{label}", *option)
            ),
        )
        self._client = LeRobotClient(self._servers[0].address)
        stack.callback(self._client.close)
        self._client.start()
        link = link_to(self._servers[1].address, JOINTS, side or HEIGHT, side or WIDTH)
        self._link = stack.enter_context(link)

    def round(
        self, number: int, state: np.ndarray, frames: dict[str, Image]
    ) -> dict[str, tuple[float, float]]:
        """One round trip of each: by wire, its time and the processor's, of both ends [ms]."""
        self._rounds += 1
        before = spent_ms(*self._servers)
        peer_ms = self._client.ask(theirs(state, frames, TASK))
        between = spent_ms(*self._servers)
        our_ms = whole_ms(self._link, number, state, frames, self.side)
        after = spent_ms(*self._servers)
        return {"LeRobot": (peer_ms, between - before), "ours": (our_ms, after - between)}

    def sizes(self) -> dict[str, float]:
        """Bytes of a round trip, both ways and up, by wire."""
        client, stats = self._client, self._link.stats
        return {
            "LeRobot": (client.bytes_up + client.bytes_down) / self._rounds,
            "LeRobot, up": client.bytes_up / self._rounds,
            "ours": (stats.bytes_up + stats.bytes_down) / self._rounds,
            "ours, up": stats.bytes_up / self._rounds,
        }


def wire(
    out: Path, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, float]]:
    """Of a policy that costs nothing: round trips [ms], bytes both ways, and processor time [ms].

    The last is of client and server together, a round: what a busy machine does not change.
    """
    seen, times, spent, sizes = scenes(), defaultdict(list), defaultdict(float), {}
    with ExitStack() as stack:
        pairs = {label: Pair(stack, out, label, side) for label, side in _SIZES.items()}
        for number in range(rounds + WARM_UP):
            state, frames = observed(number, seen, JOINTS)
            for label, pair in pairs.items():
                for name, (ms, processor_ms) in pair.round(number, state, frames).items():
                    if number >= WARM_UP:
                        times[f"wire {name}{label}"].append(ms)
                        spent[f"wire {name}{label}"] += processor_ms / rounds
        for label, pair in pairs.items():
            sizes |= {f"bytes {name}{label}": size for name, size in pair.sizes().items()}
    return dict(times), sizes, dict(spent)


def wire_figures(times: dict[str, list[float]], sizes: dict[str, float]) -> dict[str, float]:
    """Ours over LeRobot's: medians, and bytes."""
    figures = {}
    for label, name in zip(_SIZES, ("wire", "wire_scaled"), strict=True):
        own, peer = (np.median(times[f"wire {who}{label}"]) for who in ("ours", "LeRobot"))
        figures[f"{name}_time_ratio"] = float(own / peer)
        figures[f"{name}_bytes_ratio"] = (
            sizes[f"bytes ours{label}"] / sizes[f"bytes LeRobot{label}"]
        )
    return figures
