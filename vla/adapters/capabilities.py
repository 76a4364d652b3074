"""What a wrapped policy can do, said before anything is run."""

from __future__ import annotations

from dataclasses import dataclass

from controller.errors import ErrorCode, OnsetError
from controller.strategy import STRATEGIES
from vla.cache.config import CacheMode
from vla.schedule import AVERAGE, SCHEDULES

# The oracle measures effects by derivatives through the built-in model.
CACHE_MODES = tuple(str(mode) for mode in CacheMode if mode is not CacheMode.ORACLE)


@dataclass(frozen=True)
class Tuning:
    """What a checkpoint was fine-tuned for besides LeRobot's own training.

    Attributes:
        max_delay: Longest committed prefix that it has learnt to continue [steps]; 0 for none.
        max_start: Latest beginning from a forecast state that it has learnt [steps]; 0 for none.
    """

    max_delay: int = 0
    max_start: int = 0


@dataclass(frozen=True)
class Capabilities:
    """What an adapter supports.

    Attributes:
        per_index_time: Whether each action index may have its own flow time.
        prefix: Whether clean actions may stand at the chunk's beginning.
        guidance: Rules by which a chunk can be drawn towards the old one.
        cache: What of an encoding can be kept: "tower" is the image tower of unchanged cameras,
            "rows" are keys and values of those image tokens that have not changed enough.
        one_step_head: Whether it knows average velocities over a jump (MeanFlow).
    """

    per_index_time: bool
    prefix: bool
    guidance: tuple[str, ...]
    cache: tuple[str, ...]
    one_step_head: bool

    @property
    def schedules(self) -> tuple[str, ...]:
        """The schedules that it can run."""
        return tuple(
            name
            for name in SCHEDULES
            if (self.per_index_time or "has" not in name)
            and (self.one_step_head or name not in AVERAGE)
        )

    def strategies(self, tuning: Tuning) -> tuple[str, ...]:
        """The strategies that it can serve, with what the checkpoint was tuned for."""
        return tuple(
            name
            for name, strategy in STRATEGIES.items()
            if (not strategy.guided or strategy.guided in self.guidance)
            and (not strategy.committed or (self.prefix and tuning.max_delay))
            and (not strategy.late or tuning.max_start)
        )

    def check_schedule(self, policy: str, schedule: str) -> None:
        """Checks that a schedule can be run.

        Raises:
            OnsetError: BAD_VALUE, with everything that the policy supports.
        """
        if schedule not in self.schedules:
            raise OnsetError(
                ErrorCode.BAD_VALUE, "schedule", f"{schedule}, with {policy}", self.describe()
            )

    def check_cache(self, policy: str, mode: str) -> None:
        """Checks that a mode of the token cache can be run.

        Raises:
            OnsetError: BAD_VALUE, with everything that the policy supports.
        """
        if mode not in CACHE_MODES or (mode != "off" and "rows" not in self.cache):
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "cache",
                f"{mode}, with {policy}",
                f"{list(CACHE_MODES) if 'rows' in self.cache else ['off']}; {self.describe()}",
            )

    def describe(self) -> str:
        """One line for people."""
        return (
            f"schedules {list(self.schedules)}"
            f"; a flow time per action index: {_yes(self.per_index_time)}"
            f"; committed prefix: {_yes(self.prefix)}"
            f"; guidance {list(self.guidance)}"
            f"; cache {list(self.cache)}"
            f"; one-step head: {_yes(self.one_step_head)}"
        )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
