"""Episodes as a LeRobotDataset v3, which LeRobot itself loads and trains on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from numpy.typing import NDArray

from controller.errors import ErrorCode, OnsetError
from controller.types import RobotSpec


def write_dataset(
    root: Path,
    repo_id: str,
    spec: RobotSpec,
    horizon: int,
    episodes: Iterable[tuple[dict[str, NDArray], str]],
    *,
    videos: bool = True,
) -> int:
    """Writes episodes as they come.

    Features: ``observation.state`` (S,), ``observation.images.<camera>`` (h, w, 3), ``action``
    (A,) what was executed, and ``expert_chunk`` (horizon, A) what the expert planned from there:
    with noise injected, the label is the plan, not what was executed.

    Args:
        root: A folder that does not exist yet.
        repo_id: Name of the dataset, ``owner/name``.
        spec: The robot's names, cameras and period.
        horizon: Length of the expert's chunk.
        episodes: Arrays of ``collect_episode`` with their instruction.
        videos: H.264 when true, lossless images otherwise.

    Returns:
        Frames written.

    Raises:
        OnsetError: ``root`` exists, or the rate is no whole number of frames per second.
    """
    if root.exists():
        raise OnsetError(ErrorCode.BAD_VALUE, "root", root, "a folder that does not exist yet")
    fps = round(1e9 / spec.period_ns)
    if fps * spec.period_ns != 1_000_000_000:
        raise OnsetError(
            ErrorCode.BAD_VALUE, "robot.period_ns", spec.period_ns, "a whole number of frames/s"
        )
    dataset = LeRobotDataset.create(
        repo_id, fps, _features(spec, horizon, videos), root=root, robot_type=spec.name,
        use_videos=videos, rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=18),
        streaming_encoding=videos,
    )  # fmt: skip
    frames = 0
    for rows, prompt in episodes:
        for i in range(len(rows["state"])):
            frame = {
                "observation.state": rows["state"][i],
                "action": rows["action"][i],
                "expert_chunk": rows["chunk"][i],
                "task": prompt,
            }
            for camera in spec.cameras:
                frame[f"observation.images.{camera.name}"] = rows[f"frames_{camera.name}"][i]
            dataset.add_frame(frame)
            frames += 1
        dataset.save_episode()
    dataset.finalize()
    return frames


def _features(spec: RobotSpec, horizon: int, videos: bool) -> dict[str, dict]:
    size = len(spec.action)
    features: dict[str, dict] = {
        "observation.state": _vector(spec.state_names),
        "action": _vector(spec.action_names),
        "expert_chunk": {"dtype": "float32", "shape": (horizon, size), "names": None},
    }
    for camera in spec.cameras:
        features[f"observation.images.{camera.name}"] = {
            "dtype": "video" if videos else "image",
            "shape": (camera.height, camera.width, 3),
            "names": ["height", "width", "channels"],
        }
    return features


def _vector(names: tuple[str, ...]) -> dict:
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}
