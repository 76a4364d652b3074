"""The weights of inference-time RTC, against the paper's formulas written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import ErrorCode, OnsetError
from vla.guidance import guidance_weight, rtc_weights

cases = st.integers(1, 60).flatmap(
    lambda h: st.integers(1, h).flatmap(
        lambda s: st.tuples(st.just(h), st.integers(0, h - s), st.just(s))
    )
)


@given(case=cases)
def test_the_weights_are_the_papers_formula(case):
    horizon, delay, executed = case
    expected = []
    for i in range(horizon):
        if i < delay:
            expected.append(1.0)
        elif i < horizon - executed:
            c = (horizon - executed - i) / (horizon - executed - delay + 1)
            expected.append(c * (math.exp(c) - 1) / (math.e - 1))
        else:
            expected.append(0.0)
    np.testing.assert_allclose(rtc_weights(*case), expected, atol=1e-6)


@given(case=cases)
def test_the_weights_are_one_for_executed_indices_never_rise_and_end_at_nought(case):
    horizon, delay, executed = case
    weights = rtc_weights(*case).numpy()
    assert weights.dtype == np.float32
    assert (weights[:delay] == 1).all()
    assert (np.diff(weights) <= 0).all()
    assert (weights[horizon - executed :] == 0).all()
    between = weights[delay : horizon - executed]
    assert ((between > 0) & (between < 1)).all()


@pytest.mark.parametrize(
    ("arguments", "field", "allowed"),
    [
        ((8, -1, 3), "rtc.delay", "0..5"),
        ((8, 6, 3), "rtc.delay", "0..5"),
        ((8, 0, 0), "rtc.executed", "1..8"),
        ((8, 0, 9), "rtc.executed", "1..8"),
        ((0, 0, 1), "rtc.executed", "1..0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(arguments, field, allowed):
    with pytest.raises(OnsetError, match=field) as caught:
        rtc_weights(*arguments)
    assert (caught.value.code, caught.value.allowed) == (ErrorCode.BAD_VALUE, allowed)


@given(t=st.floats(1e-6, 1 - 1e-6), beta=st.floats(0.1, 20))
def test_the_guidance_weight_is_the_papers_in_its_own_time(t, beta):
    paper = 1 - t
    r2 = (1 - paper) ** 2 / (paper**2 + (1 - paper) ** 2)
    expected = min(beta, (1 - paper) / (paper * r2))
    tau = torch.tensor([[t]], dtype=torch.float64)
    assert guidance_weight(tau, beta).item() == pytest.approx(expected)


def test_the_guidance_weight_is_beta_at_noise_and_never_more_and_nought_at_the_action():
    tau = torch.cat([torch.zeros(1), torch.logspace(-30, 0, 200)])[None]
    weight = guidance_weight(tau, 5.0)[0]
    assert weight[0] == 0
    assert weight[-1] == weight[1] == 5.0
    assert (weight[1:] <= 5.0).all()
    assert weight[1:].min() == pytest.approx(2.0, rel=0.05)  # at t = 1/2
