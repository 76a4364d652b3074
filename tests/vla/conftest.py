from dataclasses import replace

import pytest
import torch

from tests.vla.helpers import (
    PROMPTS,
    Gate,
    LocalServer,
    tiny_checkpoint,
    tiny_meta,
    tiny_normaliser,
    write_tiny,
)
from vla.checkpoint import Checkpoint
from vla.engine import Engine
from vla.models.small import SmallVLA
from vla.transforms import Tokeniser


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def mean_flow():
    """The tiny policy with a MeanFlow head that is not zero, trained for prefixes up to 4."""
    meta = tiny_meta(max_delay=4)
    meta = replace(meta, model=replace(meta.model, mean_flow=True))
    torch.manual_seed(0)
    model = SmallVLA(meta.model).eval()
    torch.nn.init.normal_(model.jump.weight, std=0.2)
    return Checkpoint(meta, model, tiny_normaliser(), Tokeniser.of(PROMPTS))


@pytest.fixture(scope="session")
def delayed(mean_flow):
    """The same, and able to begin up to 4 steps late; where it begins moves nothing yet."""
    meta = mean_flow.meta
    meta = replace(meta, model=replace(meta.model, max_start=4))
    model = SmallVLA(meta.model).eval()
    model.load_state_dict(model.state_dict() | mean_flow.model.state_dict())
    return replace(mean_flow, meta=meta, model=model)


@pytest.fixture(scope="module")
def server(tiny):
    with LocalServer(tiny) as running:
        yield running


@pytest.fixture
def gated(tiny):
    gate = Gate(Engine(tiny))
    with LocalServer(tiny, lambda: gate) as running:
        yield running, gate
        gate.permits.release(100)
