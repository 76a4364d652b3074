from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_KIND_UNSPECIFIED: _ClassVar[ActionKind]
    ACTION_KIND_ABSOLUTE: _ClassVar[ActionKind]
    ACTION_KIND_DELTA_PREVIOUS: _ClassVar[ActionKind]
    ACTION_KIND_DELTA_STATE: _ClassVar[ActionKind]

class FrameEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_ENCODING_UNSPECIFIED: _ClassVar[FrameEncoding]
    FRAME_ENCODING_RAW: _ClassVar[FrameEncoding]
    FRAME_ENCODING_JPEG: _ClassVar[FrameEncoding]
    FRAME_ENCODING_PNG: _ClassVar[FrameEncoding]

class NoticeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOTICE_KIND_UNSPECIFIED: _ClassVar[NoticeKind]
    NOTICE_KIND_OVERLOAD: _ClassVar[NoticeKind]
    NOTICE_KIND_DRAIN: _ClassVar[NoticeKind]
    NOTICE_KIND_SUPERSEDED: _ClassVar[NoticeKind]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_BAD_NAMES: _ClassVar[ErrorCode]
    ERROR_CODE_BAD_SHAPE: _ClassVar[ErrorCode]
    ERROR_CODE_NON_FINITE: _ClassVar[ErrorCode]
    ERROR_CODE_BAD_FRAME: _ClassVar[ErrorCode]
    ERROR_CODE_TOO_LARGE: _ClassVar[ErrorCode]
    ERROR_CODE_STEP_ORDER: _ClassVar[ErrorCode]
    ERROR_CODE_NOT_OPEN: _ClassVar[ErrorCode]
    ERROR_CODE_ALREADY_OPEN: _ClassVar[ErrorCode]
    ERROR_CODE_UNKNOWN_PROMPT: _ClassVar[ErrorCode]
    ERROR_CODE_UNKNOWN_STRATEGY: _ClassVar[ErrorCode]
    ERROR_CODE_BAD_VALUE: _ClassVar[ErrorCode]
    ERROR_CODE_OVERLOADED: _ClassVar[ErrorCode]
    ERROR_CODE_UNAVAILABLE: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]
ACTION_KIND_UNSPECIFIED: ActionKind
ACTION_KIND_ABSOLUTE: ActionKind
ACTION_KIND_DELTA_PREVIOUS: ActionKind
ACTION_KIND_DELTA_STATE: ActionKind
FRAME_ENCODING_UNSPECIFIED: FrameEncoding
FRAME_ENCODING_RAW: FrameEncoding
FRAME_ENCODING_JPEG: FrameEncoding
FRAME_ENCODING_PNG: FrameEncoding
NOTICE_KIND_UNSPECIFIED: NoticeKind
NOTICE_KIND_OVERLOAD: NoticeKind
NOTICE_KIND_DRAIN: NoticeKind
NOTICE_KIND_SUPERSEDED: NoticeKind
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_BAD_NAMES: ErrorCode
ERROR_CODE_BAD_SHAPE: ErrorCode
ERROR_CODE_NON_FINITE: ErrorCode
ERROR_CODE_BAD_FRAME: ErrorCode
ERROR_CODE_TOO_LARGE: ErrorCode
ERROR_CODE_STEP_ORDER: ErrorCode
ERROR_CODE_NOT_OPEN: ErrorCode
ERROR_CODE_ALREADY_OPEN: ErrorCode
ERROR_CODE_UNKNOWN_PROMPT: ErrorCode
ERROR_CODE_UNKNOWN_STRATEGY: ErrorCode
ERROR_CODE_BAD_VALUE: ErrorCode
ERROR_CODE_OVERLOADED: ErrorCode
ERROR_CODE_UNAVAILABLE: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode

class Dimension(_message.Message):
    __slots__ = ("name", "unit", "lower", "upper", "kind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    lower: float
    upper: float
    kind: ActionKind
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., lower: _Optional[float] = ..., upper: _Optional[float] = ..., kind: _Optional[_Union[ActionKind, str]] = ...) -> None: ...

class Camera(_message.Message):
    __slots__ = ("name", "height", "width", "encoding", "lags")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    LAGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    width: int
    encoding: FrameEncoding
    lags: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., encoding: _Optional[_Union[FrameEncoding, str]] = ..., lags: _Optional[_Iterable[int]] = ...) -> None: ...

class RobotSpec(_message.Message):
    __slots__ = ("name", "state", "action", "cameras", "period_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: _containers.RepeatedCompositeFieldContainer[Dimension]
    action: _containers.RepeatedCompositeFieldContainer[Dimension]
    cameras: _containers.RepeatedCompositeFieldContainer[Camera]
    period_ns: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Iterable[_Union[Dimension, _Mapping]]] = ..., action: _Optional[_Iterable[_Union[Dimension, _Mapping]]] = ..., cameras: _Optional[_Iterable[_Union[Camera, _Mapping]]] = ..., period_ns: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("protocol", "model", "model_hash", "prompts", "horizon", "robot", "strategies", "expert_steps", "min_delay", "max_delay")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    STRATEGIES_FIELD_NUMBER: _ClassVar[int]
    EXPERT_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_DELAY_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    model: str
    model_hash: str
    prompts: _containers.RepeatedScalarFieldContainer[str]
    horizon: int
    robot: RobotSpec
    strategies: _containers.RepeatedScalarFieldContainer[str]
    expert_steps: int
    min_delay: int
    max_delay: int
    def __init__(self, protocol: _Optional[int] = ..., model: _Optional[str] = ..., model_hash: _Optional[str] = ..., prompts: _Optional[_Iterable[str]] = ..., horizon: _Optional[int] = ..., robot: _Optional[_Union[RobotSpec, _Mapping]] = ..., strategies: _Optional[_Iterable[str]] = ..., expert_steps: _Optional[int] = ..., min_delay: _Optional[int] = ..., max_delay: _Optional[int] = ...) -> None: ...

class ClientMessage(_message.Message):
    __slots__ = ("open", "observation", "reset", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: Open
    observation: Observation
    reset: Reset
    close: Close
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol", "robot_id", "robot", "prompt", "episode", "strategy", "shared_frames")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ROBOT_ID_FIELD_NUMBER: _ClassVar[int]
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    SHARED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    robot_id: str
    robot: RobotSpec
    prompt: str
    episode: str
    strategy: str
    shared_frames: str
    def __init__(self, protocol: _Optional[int] = ..., robot_id: _Optional[str] = ..., robot: _Optional[_Union[RobotSpec, _Mapping]] = ..., prompt: _Optional[str] = ..., episode: _Optional[str] = ..., strategy: _Optional[str] = ..., shared_frames: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("camera", "lag", "encoding", "height", "width", "data")
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    camera: str
    lag: int
    encoding: FrameEncoding
    height: int
    width: int
    data: bytes
    def __init__(self, camera: _Optional[str] = ..., lag: _Optional[int] = ..., encoding: _Optional[_Union[FrameEncoding, str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("id", "step", "capture_ns", "state", "forecast", "committed", "delay", "deadline_ns", "frames", "prompt", "planned", "set_point", "shared_slot")
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_NS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_NS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    SET_POINT_FIELD_NUMBER: _ClassVar[int]
    SHARED_SLOT_FIELD_NUMBER: _ClassVar[int]
    id: int
    step: int
    capture_ns: int
    state: _containers.RepeatedScalarFieldContainer[float]
    forecast: _containers.RepeatedScalarFieldContainer[float]
    committed: _containers.RepeatedScalarFieldContainer[float]
    delay: int
    deadline_ns: int
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    prompt: str
    planned: _containers.RepeatedScalarFieldContainer[float]
    set_point: _containers.RepeatedScalarFieldContainer[float]
    shared_slot: int
    def __init__(self, id: _Optional[int] = ..., step: _Optional[int] = ..., capture_ns: _Optional[int] = ..., state: _Optional[_Iterable[float]] = ..., forecast: _Optional[_Iterable[float]] = ..., committed: _Optional[_Iterable[float]] = ..., delay: _Optional[int] = ..., deadline_ns: _Optional[int] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., prompt: _Optional[str] = ..., planned: _Optional[_Iterable[float]] = ..., set_point: _Optional[_Iterable[float]] = ..., shared_slot: _Optional[int] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("episode", "prompt")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    episode: str
    prompt: str
    def __init__(self, episode: _Optional[str] = ..., prompt: _Optional[str] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("opened", "slice", "notice", "error")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    slice: ActionSlice
    notice: Notice
    error: Error
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., slice: _Optional[_Union[ActionSlice, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("protocol", "strategy", "prompt", "state_names", "action_names", "camera_names", "model", "model_hash", "horizon", "period_ns", "expert_steps", "min_delay", "max_delay", "shared_frames")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_NAMES_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    CAMERA_NAMES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    PERIOD_NS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_DELAY_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_FIELD_NUMBER: _ClassVar[int]
    SHARED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    strategy: str
    prompt: str
    state_names: _containers.RepeatedScalarFieldContainer[str]
    action_names: _containers.RepeatedScalarFieldContainer[str]
    camera_names: _containers.RepeatedScalarFieldContainer[str]
    model: str
    model_hash: str
    horizon: int
    period_ns: int
    expert_steps: int
    min_delay: int
    max_delay: int
    shared_frames: bool
    def __init__(self, protocol: _Optional[int] = ..., strategy: _Optional[str] = ..., prompt: _Optional[str] = ..., state_names: _Optional[_Iterable[str]] = ..., action_names: _Optional[_Iterable[str]] = ..., camera_names: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., model_hash: _Optional[str] = ..., horizon: _Optional[int] = ..., period_ns: _Optional[int] = ..., expert_steps: _Optional[int] = ..., min_delay: _Optional[int] = ..., max_delay: _Optional[int] = ..., shared_frames: _Optional[bool] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ns", "decode_ns", "encode_ns", "expert_ns", "total_ns", "expert_steps")
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    DECODE_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_NS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_STEPS_FIELD_NUMBER: _ClassVar[int]
    queue_ns: int
    decode_ns: int
    encode_ns: int
    expert_ns: int
    total_ns: int
    expert_steps: int
    def __init__(self, queue_ns: _Optional[int] = ..., decode_ns: _Optional[int] = ..., encode_ns: _Optional[int] = ..., expert_ns: _Optional[int] = ..., total_ns: _Optional[int] = ..., expert_steps: _Optional[int] = ...) -> None: ...

class CacheFigures(_message.Message):
    __slots__ = ("rows", "rows_computed", "max_age", "dense_reason", "base_observation_id")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    DENSE_REASON_FIELD_NUMBER: _ClassVar[int]
    BASE_OBSERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    rows: int
    rows_computed: int
    max_age: int
    dense_reason: str
    base_observation_id: int
    def __init__(self, rows: _Optional[int] = ..., rows_computed: _Optional[int] = ..., max_age: _Optional[int] = ..., dense_reason: _Optional[str] = ..., base_observation_id: _Optional[int] = ...) -> None: ...

class ActionSlice(_message.Message):
    __slots__ = ("observation_id", "start_step", "steps", "actions", "final", "timing", "cache")
    OBSERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    START_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    observation_id: int
    start_step: int
    steps: _containers.RepeatedScalarFieldContainer[int]
    actions: _containers.RepeatedScalarFieldContainer[float]
    final: bool
    timing: Timing
    cache: CacheFigures
    def __init__(self, observation_id: _Optional[int] = ..., start_step: _Optional[int] = ..., steps: _Optional[_Iterable[int]] = ..., actions: _Optional[_Iterable[float]] = ..., final: _Optional[bool] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., cache: _Optional[_Union[CacheFigures, _Mapping]] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("kind", "message", "observation_id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    kind: NoticeKind
    message: str
    observation_id: int
    def __init__(self, kind: _Optional[_Union[NoticeKind, str]] = ..., message: _Optional[str] = ..., observation_id: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "field", "given", "allowed", "fatal", "observation_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    FATAL_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_ID_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    field: str
    given: str
    allowed: str
    fatal: bool
    observation_id: int
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., field: _Optional[str] = ..., given: _Optional[str] = ..., allowed: _Optional[str] = ..., fatal: _Optional[bool] = ..., observation_id: _Optional[int] = ...) -> None: ...
