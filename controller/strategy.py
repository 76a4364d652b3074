"""Strategies: what a chunk is conditioned on, and how it takes over from the one before.

An observation of step k is answered d steps later. What happens between::

                 k            k+d
    sync         | the robot waits | the new chunk, from its first action
    naive        | the old chunk   | the new chunk, from its action d
    blend        | the old chunk   | both, averaged, from action d
    rtc          | the old chunk   | the new one, guided to agree with the old one
    prefix       | committed: seen | the new one, continues what is committed
    forecast     | assumed         | the new one, from its first action: the policy sees where the
                 |                 | arm will be at k + d
    onset        | assumed         | as forecast, where it goes on with the old one; else as naive,
                 |                 | as if the change had come at once: it catches up
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.errors import ErrorCode, OnsetError


@dataclass(frozen=True)
class Strategy:
    """One way to act under delay.

    Attributes:
        name: Its name, also on the wire.
        about: One line for people, with the source.
        waits: Whether the robot stands still until the chunk is there.
        new_share: Weight of a newer action where an older one stands; 1 replaces it.
        guided: How the chunk is drawn towards the old one: "vjp" (RTC), "identity" (LeRobot's
            variant), or "" for not at all.
        committed: Whether the policy gets the actions of the delay as the chunk's beginning.
        late: Whether the chunk begins when its actions do, from a forecast state.
        catch_up: Whether a chunk that turns elsewhere than the old one begins with its observation
            all the same: the robot goes at once for where it would be without the delay, as fast as
            its limits allow. Where it is late.
        forecaster: Who forecasts where nobody is named: "servo", "last_command", or "" for nobody.
    """

    name: str
    about: str
    waits: bool = False
    new_share: float = 1.0
    guided: str = ""
    committed: bool = False
    late: bool = False
    catch_up: bool = False
    forecaster: str = ""

    @property
    def delayed(self) -> bool:
        """Whether it counts on a delay, and so commits the actions before it."""
        return self.committed or self.late or bool(self.guided)

    def start(self, delay: int) -> int:
        """Steps from the observation to the chunk's first action, when the delay is d."""
        return delay if self.late else 0


_ALL = (
    Strategy("sync", "stand still until the chunk is there", waits=True),
    Strategy("naive", "switch to the new chunk as soon as it is there"),
    Strategy("blend", "average the overlap, 0.3 old and 0.7 new (LeRobot)", new_share=0.7),
    Strategy(
        "rtc", "guide the new chunk towards the old one (RTC, arXiv 2506.07339)", guided="vjp"
    ),
    Strategy("rtc_identity", "the same without the Jacobian (as LeRobot does)", guided="identity"),
    Strategy("prefix", "continue the committed actions (training-time RTC)", committed=True),
    Strategy(
        "last_command",
        "begin late, where the last command points (VLASH's robot code, arXiv 2512.01031)",
        late=True,
        forecaster="last_command",
    ),
    Strategy(
        "forecast", "begin late, where a servo model expects the arm", late=True, forecaster="servo"
    ),
    Strategy("oracle", "begin late, where the arm will be (simulation only)", late=True),
    Strategy(
        "onset",
        "forecast; where the plan changes, as if the change had come at once",
        late=True,
        catch_up=True,
        forecaster="servo",
    ),
)
STRATEGIES = {strategy.name: strategy for strategy in _ALL}


def get_strategy(name: str, field: str = "strategy") -> Strategy:
    """Looks a strategy up.

    Raises:
        OnsetError: UNKNOWN_STRATEGY.
    """
    if name not in STRATEGIES:
        raise OnsetError(ErrorCode.UNKNOWN_STRATEGY, field, repr(name), list(STRATEGIES))
    return STRATEGIES[name]
