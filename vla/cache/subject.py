"""Whose rows are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from controller.errors import ErrorCode, OnsetError
from vla.cache.selector import Selector
from vla.checkpoint import Checkpoint


@dataclass(frozen=True)
class Subject:
    """The policy whose rows are chosen, and the robot that it sees.

    Attributes:
        policy: Its name.
        digest: SHA-256 of its weights, hexadecimal.
        cameras: Names, in the model's order.
        joints: Which dimensions of the state are joints [rad].
        grippers: Which are grippers.
    """

    policy: str
    digest: str
    cameras: tuple[str, ...]
    joints: tuple[int, ...]
    grippers: tuple[int, ...] = ()

    @staticmethod
    def of(checkpoint: Checkpoint) -> Subject:
        """A policy of our own, whose state says what is a gripper."""
        meta = checkpoint.meta
        units = [d.unit for d in meta.robot.state]
        joints, grippers = (
            tuple(i for i, unit in enumerate(units) if unit == kind) for kind in ("rad", "1")
        )
        return Subject(meta.name, checkpoint.digest, meta.model.cameras, joints, grippers)

    def check(self, selector: Selector | None, rows: int) -> Selector:
        """A selector, if there is one and it is for this policy.

        Args:
            selector: What is there.
            rows: N.

        Raises:
            OnsetError: BAD_VALUE, with what it is for.
        """
        name, digest = self.policy, self.digest
        if selector is None:
            raise OnsetError(ErrorCode.BAD_VALUE, "cache", "learned", f"with a selector for {name}")
        meta = selector.meta
        if (meta.model, meta.rows) != (digest, rows):
            raise OnsetError(
                ErrorCode.BAD_VALUE,
                "cache",
                f"a selector for {meta.policy} {meta.model[:12]} with {meta.rows} rows",
                f"one for {name} {digest[:12]} with {rows}",
            )
        return selector
