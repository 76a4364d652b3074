"""What the server counts on where several chunks are under way.

observation k            |-- d --|a a a a a ..
observation k + 2            |-- d --|b b b ..
the robot counts on          o o o o o          as it has not got a yet
memory                       o o o a a          d = 5
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from controller.strategy import STRATEGIES
from controller.types import ActionSlice, Float, Observation
from tests.controller.helpers import WIDE
from tests.controller.loop_fakes import FAST, Rig
from tests.vla.helpers import LocalServer, link_to, observation, tiny_normaliser, until
from vla.chunking import ChunkMemory, make_condition
from vla.engine import Engine

STEP = WIDE.period_ns
SCALES = tiny_normaliser()
OLD = np.random.default_rng(0).uniform(0, 1, (12, 2)).astype(np.float32)
NEW = np.random.default_rng(1).uniform(0, 1, (12, 2)).astype(np.float32)
HOLD = np.array([0.25, 0.75], np.float32)
NONE = np.zeros((0, 2), np.float32)
K, D = 6, 5  # the observation's step, and its delay


class Recorder:
    """A forecaster that notes what it is asked and answers with the number of the question."""

    def __init__(self) -> None:
        self.asked: list[tuple[Float, Float, Float]] = []

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        self.asked.append((state.copy(), np.array(set_point), actions.copy()))
        return np.full(3, len(self.asked), np.float32)


def seen(**changes) -> Observation:
    given = {
        "step": K,
        "delay": D,
        "committed": OLD[:D],
        "planned": NONE,
        "forecast": np.full(3, 9.0, np.float32),
        "set_point": HOLD,
    }
    return observation(3, **(given | changes))


def noted(first: int, actions: Float = NEW, recorder: Recorder | None = None) -> ChunkMemory:
    """A memory of one chunk, from this step on."""
    memory = ChunkMemory(recorder)
    memory.note(2, first + np.arange(len(actions)), actions)
    return memory


# Alone


@pytest.mark.parametrize("begins", [0, 1, 3, 4])
@pytest.mark.parametrize("start", [4, 5])
def test_a_chunk_under_way_takes_over_where_it_begins_and_the_state_is_forecast_along_it(
    begins, start
):
    recorder, asked = Recorder(), seen()
    amended = noted(K + begins, recorder=recorder).amend(asked, start)
    rows = np.concatenate([OLD[:begins], NEW[: D - begins]])
    np.testing.assert_array_equal(amended.committed, rows)
    assert amended.forecast is not None
    np.testing.assert_array_equal(amended.forecast, [1, 1, 1])
    ((state, set_point, actions),) = recorder.asked
    np.testing.assert_array_equal(state, asked.state)
    np.testing.assert_array_equal(set_point, HOLD)
    np.testing.assert_array_equal(actions, rows[:start])
    left = {"committed": asked.committed, "forecast": asked.forecast}
    assert replace(amended, **left) == asked  # nothing else is touched


def test_of_a_chunk_that_began_before_the_rest_counts():
    amended = noted(K - 2).amend(seen(), D)
    np.testing.assert_array_equal(amended.committed, NEW[2 : 2 + D])


@pytest.mark.parametrize("known", [0, 1, 2])
def test_before_a_chunk_under_way_the_robot_holds_where_its_old_one_ends(known):
    recorder = Recorder()
    amended = noted(K + 3, recorder=recorder).amend(seen(committed=OLD[:known]), D)
    held = OLD[known - 1] if known else HOLD
    rows = [*OLD[:known], *[held] * (3 - known), *NEW[:2]]
    np.testing.assert_array_equal(amended.committed, rows)
    np.testing.assert_array_equal(recorder.asked[0][2], rows)


def test_behind_the_end_of_a_chunk_under_way_its_last_action_is_held():
    amended = noted(K + 1, NEW[:2]).amend(seen(committed=OLD[:1]), D)
    np.testing.assert_array_equal(amended.committed, [OLD[0], NEW[0], *[NEW[1]] * 3])


def test_what_is_planned_behind_is_the_chunk_under_ways_too():
    amended = noted(K + 3, NEW[:4]).amend(seen(planned=OLD[D : D + 4]), 0)
    np.testing.assert_array_equal(amended.committed, [*OLD[:3], *NEW[:2]])
    np.testing.assert_array_equal(amended.planned, [*NEW[2:4], *OLD[D + 2 : D + 4]])


def test_a_newer_chunk_takes_over_where_it_begins_and_slices_add_up():
    memory = noted(K + 1)
    newer = NEW + 10
    memory.note(3, K + 3 + np.arange(2), newer[:2])
    memory.note(3, K + 5 + np.arange(10), newer[2:])
    amended = memory.amend(seen(planned=OLD[D : D + 2]), D)
    np.testing.assert_array_equal(amended.committed, [OLD[0], *NEW[:2], *newer[:2]])
    np.testing.assert_array_equal(amended.planned, newer[2:4])


@pytest.mark.parametrize("case", ["nothing new", "over", "empty", "no set-point", "no delay"])
def test_without_anything_newer_the_observation_is_left_as_it_is(case):
    recorder, asked = Recorder(), seen()
    memory = noted(K - 2, np.concatenate([NEW[:2], OLD]), recorder)  # what the robot has got
    if case == "over":
        memory = noted(K - 3, NEW[:3], recorder)
    elif case == "empty":
        memory = ChunkMemory(recorder)
    elif case == "no set-point":
        memory, asked = noted(K + 3, recorder=recorder), seen(set_point=None)
    elif case == "no delay":
        memory, asked = noted(K + 3, recorder=recorder), seen(delay=0, committed=NONE)
    assert memory.amend(asked, asked.delay) is asked
    assert not recorder.asked


@pytest.mark.parametrize("start", [0, D])
def test_without_a_forecaster_or_where_the_chunk_begins_at_once_the_forecast_is_the_robots(start):
    recorder, asked = Recorder(), seen()
    memory = noted(K + 3, recorder=None if start else recorder)
    amended = memory.amend(asked, start)
    assert amended.forecast is asked.forecast
    assert not recorder.asked
    np.testing.assert_array_equal(amended.committed, [*OLD[:3], *NEW[:2]])


def test_what_has_passed_is_forgotten():
    memory = noted(K)
    memory.amend(seen(step=K + 3), D)
    amended = memory.amend(seen(), D)  # steps never go back but in a new episode
    np.testing.assert_array_equal(amended.committed, [*OLD[:3], *NEW[3:5]])


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.delayed])
def test_each_strategy_is_conditioned_on_what_the_memory_knows(name):
    way, recorder = STRATEGIES[name], Recorder()
    start = way.start(D)
    asked = seen(planned=OLD[D : D + 2])
    rows, planned = np.concatenate([OLD[:3], NEW[:2]]), NEW[2:4]
    forecast = np.full(3, 1.0, np.float32) if start else asked.forecast
    told = replace(asked, committed=rows, planned=planned, forecast=forecast)
    memory = noted(K + 3, recorder=recorder)
    made = make_condition(way, memory.amend(asked, start), SCALES, D)
    expected = make_condition(way, told, SCALES, D)
    assert made.start == expected.start
    np.testing.assert_array_equal(made.state, expected.state)
    assert made.prefix_length == expected.prefix_length
    if made.prefix is not None and expected.prefix is not None:
        np.testing.assert_array_equal(made.prefix, expected.prefix)
    if made.guide is not None and expected.guide is not None:
        np.testing.assert_array_equal(made.guide.target, expected.guide.target)
    assert (made.guide is None) == (not way.guided)


# In closed loop


class Exact:
    """A forecaster for a robot that is at once where it is told to be."""

    def forecast(self, state: Float, set_point: Float, actions: Float) -> Float:
        out = state.copy()
        if len(actions):
            out[:2] = actions[-1]
        return out


class Server:
    """A policy whose chunks depend on the state in which they begin; they turn each time.

    Attributes:
        begun: State in which the chunk of an observation begins, by the observation's id.
    """

    def __init__(self, name: str, memory: ChunkMemory | None) -> None:
        self.way, self.memory = STRATEGIES[name], memory
        self.begun: dict[int, tuple[int, Float]] = {}

    def chunk(self, observation: Observation) -> ActionSlice:
        if self.memory is not None:
            observation = self.memory.amend(observation, self.way.start(observation.delay))
        made = make_condition(self.way, observation, SCALES, 12)
        first = observation.step + made.start
        self.begun[observation.id] = (first, made.state)
        turn = np.array(
            [(-1) ** observation.id * (1 + observation.id), observation.id % 3], np.float32
        )
        given = made.prefix_length
        index = np.arange(given, 20)
        actions = made.state[:2] + (index[:, None] + 1) * 0.1 * turn
        steps, actions = first + index, actions.astype(np.float32)
        if self.memory is not None:
            self.memory.note(observation.id, steps, actions)
        return ActionSlice(observation.id, first, steps, actions, final=True)


def states_of(name: str, execute_steps: int, delay: int, latency: int, memory, **changes):
    """Chunks' states in which they begin, as the server thought and as they came to be."""
    config = replace(FAST, strategy=name, execute_steps=execute_steps, delay_steps=delay, **changes)
    rig = Rig(config, latency_ns=latency * STEP, forecaster=Exact())
    server = Server(name, memory)
    rig.link.chunk = server.chunk
    rig.run(60)
    pairs = [(s, rig.states[at]) for at, s in server.begun.values() if at < len(rig.states)]
    assert len(pairs) > 10
    thought, came = (np.array(states) for states in zip(*pairs, strict=True))
    return thought, came


@pytest.mark.parametrize("name", ["forecast", "onset", "oracle"])
@pytest.mark.parametrize(
    ("execute_steps", "delay", "latency"),
    [(2, 5, 5), (2, 5, 4), (2, 5, 0), (1, 6, 6), (4, 8, 8), (4, 4, 4), (4, 12, 12), (5, 3, 3)],
)
def test_each_chunk_begins_in_the_state_that_the_server_thought(
    name, execute_steps, delay, latency
):
    thought, came = states_of(name, execute_steps, delay, latency, ChunkMemory(Exact()))
    np.testing.assert_allclose(thought, came, atol=1e-5)


@pytest.mark.parametrize("name", ["forecast", "onset"])
def test_without_a_memory_it_does_not(name):
    thought, came = states_of(name, 2, 5, 5, None)
    assert (np.abs(thought - came)[2:].max(axis=1) > 1e-2).mean() > 0.5
    # Where one reply alone is under way it does, too.
    thought, came = states_of(name, 5, 5, 5, None)
    np.testing.assert_allclose(thought, came, atol=1e-5)


def begun_under(name: str, execute_steps: int, delay: int, latencies: list[int], pieces: int):
    """How far each chunk begins from the state that the server thought, where latency varies.

    Slices of two actions and the rest come one after the other, where there are two pieces.
    """
    config = replace(FAST, strategy=name, execute_steps=execute_steps, delay_steps=delay)
    rig = Rig(config, forecaster=Exact())
    server = Server(name, ChunkMemory(Exact()))

    def submit(observation: Observation) -> None:
        whole, edges = server.chunk(observation), [0, 2, 20] if pieces == 2 else [0, 20]
        for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
            part = replace(whole, steps=whole.steps[a:b], actions=whole.actions[a:b])
            after = latencies[observation.id % len(latencies)] + 2 * i
            rig.link.due.append(
                (rig.clock.now_ns() + after * STEP, replace(part, final=i == pieces - 1))
            )

    rig.link.submit = submit
    rig.run(120)
    found = [np.abs(s - rig.states[at]).max() for at, s in server.begun.values() if at < 120]
    return found, rig.loop.counters


@pytest.mark.parametrize("name", ["forecast", "onset"])
@pytest.mark.parametrize(("execute_steps", "delay"), [(4, 4), (4, 8), (3, 5)])
def test_a_reply_that_is_a_step_late_is_not_frozen_out_by_the_next_observation(
    name, execute_steps, delay
):
    """Else the robot would go on with a chunk of which the server thinks that it is over."""
    latencies = (delay + np.random.default_rng(0).integers(-2, 2, 50)).tolist()
    found, counters = begun_under(name, execute_steps, delay, latencies, pieces=1)
    assert counters.late > 0
    assert counters.committed == 0
    np.testing.assert_allclose(found[2:], 0, atol=1e-5)


@pytest.mark.parametrize("name", ["forecast", "onset"])
@pytest.mark.parametrize(("execute_steps", "delay"), [(4, 4), (4, 8), (3, 5)])
def test_the_rest_of_a_chunk_whose_first_slice_is_there_is_not_frozen_out(
    name, execute_steps, delay
):
    found, counters = begun_under(name, execute_steps, delay, [delay], pieces=2)
    assert counters.committed == 0
    np.testing.assert_allclose(found[2:], 0, atol=1e-5)


@pytest.mark.parametrize("memory", [None, ChunkMemory(Exact())])
def test_of_merged_actions_the_memory_knows_nothing_and_the_robots_word_stands(memory):
    """The server does not know q: what it has sent are not the robot's steps."""
    thought, came = states_of("forecast", 4, 4, 4, memory, speedup=2)
    np.testing.assert_allclose(thought, came, atol=1e-5)


# In the server


class Memories:
    """An engine that notes what the memory made of each observation before it runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seen: dict[int, Observation] = {}

    def stream(self, asked, prompt, strategy, memory=None) -> Iterator:
        if memory is not None:
            self.seen[asked.id] = memory.amend(asked, 0)
        yield from self.engine.stream(asked, prompt, strategy, memory)


@pytest.fixture
def memories(delayed):
    return Memories(Engine(delayed))


def slice_of(link) -> ActionSlice:
    return until(lambda: link.poll(0))[0]


def test_a_session_remembers_what_it_has_sent_until_the_next_episode(delayed, memories):
    given = {"delay": 4, "committed": OLD[:4], "set_point": HOLD}
    with (
        LocalServer(delayed, lambda: memories) as server,
        link_to(server, strategy="prefix") as link,
        link_to(server, strategy="prefix", robot_id="arm-2") as other,
    ):
        link.submit(observation(0, step=0, **given))
        first = slice_of(link)
        np.testing.assert_array_equal(first.steps, 4 + np.arange(4))
        link.submit(observation(1, step=2, **given))
        slice_of(link)
        rows = [*OLD[:2], *first.actions[:2]]
        np.testing.assert_allclose(memories.seen[1].committed, rows, atol=1e-6)
        # Another robot's session knows nothing of it, and neither does the next episode.
        other.submit(observation(2, step=2, **given))
        slice_of(other)
        np.testing.assert_array_equal(memories.seen[2].committed, OLD[:4])
        link.reset("episode-2", "hit the blue mole")
        link.submit(observation(3, step=2, **given))
        slice_of(link)
        np.testing.assert_array_equal(memories.seen[3].committed, OLD[:4])


def test_who_counts_on_no_delay_is_not_remembered(delayed, memories):
    """Else what was sent would pile up: nothing ever asks for it."""
    with LocalServer(delayed, lambda: memories) as server, link_to(server) as link:
        link.submit(observation(0))
        slice_of(link)
        assert not memories.seen
