"""Stops an arm from any terminal on its computer, whatever its client is doing.

    scripts/estop.py                 every arm on this computer
    scripts/estop.py desk            the one of this name
    scripts/estop.py desk --clear    release it; the arm holds until fresh actions come

The arm is decelerated within its limits, and holds, with torque on, until it is released. When the
executor or the computer hangs this does nothing: use the switch of the motors' power.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from controller.errors import ErrorCode, OnsetError
from controller.exchange import STOP_LAYOUT, running_robots, stop_name
from controller.shared import Segment


@dataclass(frozen=True)
class Args:
    """Stops an arm from any terminal on its computer.

    Attributes:
        name: Of the arm; by default all of them.
        clear: Release the stop instead, and leave the fault.
        quit: End the executor instead: the arm stops and holds, or parks as it was started to.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    clear: bool = False
    quit: bool = False


def main(args: Args) -> list[str]:
    """Returns the arms that were told.

    Raises:
        OnsetError: UNAVAILABLE when there is no such arm.
    """
    robots = running_robots()
    chosen = [args.name] if args.name else robots
    if not chosen or not set(chosen) <= set(robots):
        raise OnsetError(
            ErrorCode.UNAVAILABLE, "name", args.name or "no arm runs", f"one of {robots}"
        )
    for name in chosen:
        with Segment.attach(stop_name(name), STOP_LAYOUT) as stops:
            if args.quit:
                stops.word("quit").value = 1
            elif args.clear:
                stops.word("estop").value = 0
                stops.word("clear").add()
            else:
                stops.word("estop").value = 1
    return chosen


if __name__ == "__main__":
    try:
        told = main(tyro.cli(Args, description=__doc__))
    except OnsetError as error:
        sys.exit(f"error: {error}")
    print("told:", ", ".join(told))
