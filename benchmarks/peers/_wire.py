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
# Whether frames may go through shared memory, as by default, or travel in messages, as to another
# machine.
_OURS = {"ours": True, "ours, network": False}


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
        size = side or HEIGHT, side or WIDTH
        self._links = {
            name: stack.enter_context(
                link_to(self._servers[1].address, JOINTS, *size, shared_frames=shared)
            )
            for name, shared in _OURS.items()
        }

    def round(
        self, number: int, state: np.ndarray, frames: dict[str, Image]
    ) -> dict[str, tuple[float, float]]:
        """One round trip of each: by wire, its time and the processor's, of both ends [ms]."""
        self._rounds += 1
        asks = {"LeRobot": lambda: self._client.ask(theirs(state, frames, TASK))}
        for name, link in self._links.items():
            asks[name] = lambda link=link: whole_ms(link, number, state, frames, self.side)
        took = {}
        for name, ask in asks.items():
            before = spent_ms(*self._servers)
            ms = ask()
            took[name] = ms, spent_ms(*self._servers) - before
        return took

    def sizes(self) -> dict[str, float]:
        """Bytes of a round trip, by wire: both ways, up, and through shared memory."""
        client = self._client
        sizes = {
            "LeRobot": (client.bytes_up + client.bytes_down) / self._rounds,
            "LeRobot, up": client.bytes_up / self._rounds,
        }
        for name, link in self._links.items():
            stats = link.stats
            sizes[name] = (stats.bytes_up + stats.bytes_down) / self._rounds
            sizes[f"{name}, up"] = stats.bytes_up / self._rounds
            sizes[f"{name}, shared"] = stats.bytes_shared / self._rounds
        return sizes


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
    """Ours over LeRobot's: medians, and bytes; those in shared memory are on no wire."""
    figures = {}
    for label, size in zip(_SIZES, ("", "_scaled"), strict=True):
        for own, way in zip(_OURS, ("", "_network"), strict=True):
            ms, peer_ms = (np.median(times[f"wire {who}{label}"]) for who in (own, "LeRobot"))
            name = f"wire{way}{size}"
            figures[f"{name}_time_ratio"] = float(ms / peer_ms)
            figures[f"{name}_bytes_ratio"] = (
                sizes[f"bytes {own}{label}"] / sizes[f"bytes LeRobot{label}"]
            )
    return figures
