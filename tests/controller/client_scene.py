"""A link to a server with a proxy in between, whose network fails."""

from contextlib import contextmanager
from random import Random

from benchmarks._proxy import Proxy
from controller.client import GrpcLink
from controller.client_types import LinkConfig
from controller.link_state import LinkState
from controller.types import Observation
from tests.controller.grpc_fakes import FakeServer, Servicer, answer_at_once
from tests.controller.helpers import DESCRIPTION, MS, ROBOT, observation
from tests.controller.test_client import received, until

LONG = 5_000 * MS


class Scene:
    """A link to a server, with a proxy in between and a list of the states it went through."""

    def __init__(self, reply=answer_at_once, **config):
        self.servicer = Servicer(DESCRIPTION, reply)
        self.statuses, self.events = [], []
        self.config = LinkConfig(**config)

    @contextmanager
    def running(self):
        with FakeServer(self.servicer) as server, Proxy(f"127.0.0.1:{server.port}") as self.proxy:
            self.loop = server._loop
            self.link = GrpcLink(
                self.proxy.address,
                ROBOT,
                robot_id="arm-1",
                prompt="hit the red mole",
                config=self.config,
                on_event=self.events.append,
                on_state=self.statuses.append,
                random=Random(1),
            )
            with self.link:
                yield self.link

    @property
    def states(self) -> list[LinkState]:
        return [status.state for status in self.statuses]

    def sent(self) -> list[Observation]:
        return received(self.servicer, Observation)

    def submit(self, id: int, **changes):
        self.link.submit(observation(id=id, **({"step": id, "deadline_ns": LONG} | changes)))

    def exchange(self, id: int):
        self.submit(id)
        return until(lambda: any(p.observation_id == id for p in self.link.poll(0)))


def balance(stats) -> None:
    """Nothing is lost silently: holds once a link is closed."""
    out = stats.replaced + stats.expired + stats.withdrawn + stats.unsendable + stats.observations
    assert stats.submitted + stats.resent == out
    ends = stats.answered + stats.superseded + stats.refused + stats.lost
    assert stats.observations == ends
