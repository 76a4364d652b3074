"""Typed errors: each names the field, what was given, and what is allowed."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """What went wrong. The same names stand in ``policy.proto``."""

    BAD_NAMES = "bad_names"
    BAD_SHAPE = "bad_shape"
    NON_FINITE = "non_finite"
    BAD_FRAME = "bad_frame"
    TOO_LARGE = "too_large"
    STEP_ORDER = "step_order"
    NOT_OPEN = "not_open"
    ALREADY_OPEN = "already_open"
    UNKNOWN_PROMPT = "unknown_prompt"
    UNKNOWN_STRATEGY = "unknown_strategy"
    BAD_VALUE = "bad_value"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class OnsetError(Exception):
    """An error that a person can act on.

    Attributes:
        code: The kind of error.
        field: The field concerned, written as in the schema, e.g. ``"observation.state"``.
        given: What was given, as text.
        allowed: What would have been valid, as text.
        fatal: Whether the session ends with this error.
        observation_id: The observation refused; -1 for none.
    """

    def __init__(
        self,
        code: ErrorCode,
        field: str,
        given: object,
        allowed: object,
        *,
        fatal: bool = False,
        observation_id: int = -1,
    ) -> None:
        self.code = code
        self.field = field
        self.given = str(given)
        self.allowed = str(allowed)
        self.fatal = fatal
        self.observation_id = observation_id
        super().__init__(f"{code}: {field}: given {self.given}; allowed: {self.allowed}")

    def __reduce__(self) -> tuple:
        # The default calls the class with the message alone; a worker process that raises this
        # would leave its parent waiting for ever.
        return _rebuild, (
            self.code,
            self.field,
            self.given,
            self.allowed,
            self.fatal,
            self.observation_id,
        )


def _rebuild(
    code: ErrorCode, field: str, given: str, allowed: str, fatal: bool, observation_id: int
) -> OnsetError:
    return OnsetError(code, field, given, allowed, fatal=fatal, observation_id=observation_id)
