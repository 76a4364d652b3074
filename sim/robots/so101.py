"""An SO-101-like arm out of primitive geoms, with its kinematics in closed form.

Link lengths and joint limits are those that the SO-ARM100 project publishes for the SO-101; the
small lateral offsets between the joints are left out, so that the arm moves in a vertical plane
that ``shoulder_pan`` turns. Joint names are LeRobot's.

Zero pose: upper arm up, forearm and gripper forward. Positive pitch joints bend forward and down.

        elbow o--------o wrist_flex ==== tip         z
              |                                      ^
              |  upper arm                           |
      lift    o                                      +--> x
        pan  [ ]  base
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controller.types import CameraSpec, Dimension, FrameEncoding, RobotSpec

Array = NDArray[np.float64]

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
LOWER = np.array([-1.91986, -1.74533, -1.69, -1.65806, -2.74385, -0.174533])
UPPER = np.array([1.91986, 1.74533, 1.69, 1.65806, 2.84121, 1.74533])

PAN_X = 0.0388  # base to pan axis [m]
SHOULDER = (0.0304, 0.1166)  # pan axis to lift axis (forward, up) [m]
UPPER_ARM = (0.028, 0.11257)  # lift axis to elbow at zero [m]
FOREARM = (0.1349, 0.0052)  # elbow to wrist at zero [m]
HAND = 0.159  # wrist to the grasp point between the jaws [m]

KP = 200.0  # servo stiffness [N m/rad]
KV = 10.0  # servo damping [N m s/rad]
SERVO_LAG = KV / KP  # steady lag of the joint behind its command [s]
GRIPPER_KP = 8.0  # [N m/rad]
GRIPPER_KV = 0.48  # [N m s/rad]
GRIPPER_LAG = GRIPPER_KV / GRIPPER_KP  # of a gripper that nothing blocks [s]
MAX_VELOCITY = 5.0  # [rad/s]

GRIPPER_RANGE = float(UPPER[5] - LOWER[5])
HOME = np.array([0.0, -0.35, 0.55, 1.05, 0.0, LOWER[5]])


def spec(
    cameras: tuple[str, ...] = ("front", "wrist"),
    lags: tuple[int, ...] = (0,),
    size: int = 96,
    period_ns: int = 40_000_000,
    encoding: FrameEncoding = FrameEncoding.RAW,
) -> RobotSpec:
    """Returns the arm's spec: state is position and velocity of each joint, action the position.

    Arms are in rad and rad/s; the gripper is normalised, 0 closed and 1 open.
    """
    action, velocity = [], []
    for name, lower, upper in zip(JOINTS, LOWER, UPPER, strict=True):
        gripper = name == "gripper"
        lo, hi = (0.0, 1.0) if gripper else (float(lower), float(upper))
        action.append(Dimension(f"{name}.pos", "1" if gripper else "rad", lo, hi))
        limit = MAX_VELOCITY / GRIPPER_RANGE if gripper else MAX_VELOCITY
        velocity.append(Dimension(f"{name}.vel", "1/s" if gripper else "rad/s", -limit, limit))
    # The wrist camera looks along the gripper and needs no history: the arm moves it.
    specs = tuple(
        CameraSpec(name, size, size, encoding, lags if name == "front" else (0,))
        for name in cameras
    )
    return RobotSpec("so101-sim", (*action, *velocity), tuple(action), specs, period_ns)


def to_normalised(joints: Array) -> Array:
    """Joint angles [rad] to action units (gripper 0..1). Shape (..., 6)."""
    out = np.array(joints, dtype=np.float64)
    out[..., 5] = (out[..., 5] - LOWER[5]) / GRIPPER_RANGE
    return out


def to_joints(normalised: Array) -> Array:
    """Action units to joint angles [rad]. Shape (..., 6)."""
    out = np.array(normalised, dtype=np.float64)
    out[..., 5] = out[..., 5] * GRIPPER_RANGE + LOWER[5]
    return out


def forward(joints: Array) -> Array:
    """Grasp point and pitch for joint angles.

    Args:
        joints: Shape (..., >=4), [rad].

    Returns:
        x, y, z [m] and pitch below the horizon [rad]. Shape (..., 4).
    """
    pan, lift, elbow, wrist = (joints[..., i] for i in range(4))
    r, z = np.full_like(lift, SHOULDER[0]), np.full_like(lift, SHOULDER[1])
    angle = np.zeros_like(lift)
    for turn, (ox, oz) in ((lift, UPPER_ARM), (elbow, FOREARM), (wrist, (HAND, 0.0))):
        angle = angle + turn
        cos, sin = np.cos(angle), np.sin(angle)
        r = r + ox * cos + oz * sin
        z = z - ox * sin + oz * cos
    return np.stack([PAN_X + r * np.cos(pan), r * np.sin(pan), z, angle], axis=-1)


def inverse(pose: Array) -> Array:
    """Pan, lift, elbow and wrist angles that put the grasp point at a pose, elbow up.

    Args:
        pose: x, y, z [m] and pitch [rad]. Shape (..., 4). Out-of-reach points are brought to the
            nearest reachable radius.

    Returns:
        Shape (..., 4), [rad], clipped to the joint limits.
    """
    x, y, z, pitch = (pose[..., i] for i in range(4))
    pan = np.arctan2(y, x - PAN_X)
    r = np.hypot(x - PAN_X, y) - SHOULDER[0] - HAND * np.cos(pitch)
    h = z - SHOULDER[1] + HAND * np.sin(pitch)
    a, b = np.hypot(*UPPER_ARM), np.hypot(*FOREARM)
    reach = np.clip(np.hypot(r, h), abs(a - b) + 1e-3, a + b - 1e-4)
    elevation = np.arctan2(h, r)
    at_shoulder = np.arccos(np.clip((a * a + reach**2 - b * b) / (2 * a * reach), -1, 1))
    at_elbow = np.arccos(np.clip((a * a + b * b - reach**2) / (2 * a * b), -1, 1))
    upper = elevation + at_shoulder  # elevation of the line lift axis to elbow
    fore = upper - (np.pi - at_elbow)  # elevation of the line elbow to wrist
    lift = np.arctan2(UPPER_ARM[1], UPPER_ARM[0]) - upper
    elbow = np.arctan2(FOREARM[1], FOREARM[0]) - fore - lift
    wrist = pitch - lift - elbow
    return np.clip(np.stack([pan, lift, elbow, wrist], axis=-1), LOWER[:4], UPPER[:4])


def mjcf() -> str:
    """The arm's body and actuators as MJCF: ``(body, actuators)`` joined by the caller."""
    return _BODY


def actuators() -> str:
    """Position servos, one per joint, in joint order."""
    rows = []
    for name, lower, upper in zip(JOINTS, LOWER, UPPER, strict=True):
        kp, kv, force = (GRIPPER_KP, GRIPPER_KV, 1.2) if name == "gripper" else (KP, KV, 3.35)
        rows.append(
            f'<position name="{name}" joint="{name}" kp="{kp}" kv="{kv}" '
            f'ctrlrange="{lower} {upper}" forcerange="-{force} {force}"/>'
        )
    return "\n".join(rows)


def _joint(name: str, axis: str) -> str:
    i = JOINTS.index(name)
    armature = 0.005 if name == "gripper" else 0.028
    return (
        f'<joint name="{name}" axis="{axis}" range="{LOWER[i]} {UPPER[i]}" armature="{armature}"/>'
    )


_PLASTIC = 'rgba="0.93 0.72 0.22 1"'
_SERVO = 'rgba="0.13 0.13 0.15 1"'
_SKIN = 'contype="0" conaffinity="0"'
_PAD = 'contype="2" conaffinity="1" friction="1.6 0.05 0.001" condim="4" solref="0.006 1"'

_BODY = f"""
<body name="base" pos="0 0 0">
  <geom type="box" size="0.045 0.04 0.03" pos="0.02 0 0.03" mass="0.3" {_PLASTIC} {_SKIN}/>
  <body name="shoulder" pos="{PAN_X} 0 0.0624" gravcomp="1">
    {_joint("shoulder_pan", "0 0 1")}
    <geom type="cylinder" size="0.024 0.03" pos="0 0 0.02" mass="0.1" {_SERVO} {_SKIN}/>
    <body name="upper_arm" pos="{SHOULDER[0]} 0 {SHOULDER[1] - 0.0624}" gravcomp="1">
      {_joint("shoulder_lift", "0 1 0")}
      <geom type="cylinder" size="0.018 0.025" euler="1.5708 0 0" mass="0.03" {_SERVO} {_SKIN}/>
      <geom type="capsule" size="0.013" fromto="0 0 0 {UPPER_ARM[0]} 0 {UPPER_ARM[1]}" mass="0.08"
        {_PLASTIC} {_SKIN}/>
      <body name="forearm" pos="{UPPER_ARM[0]} 0 {UPPER_ARM[1]}" gravcomp="1">
        {_joint("elbow_flex", "0 1 0")}
        <geom type="cylinder" size="0.017 0.022" euler="1.5708 0 0" mass="0.03" {_SERVO} {_SKIN}/>
        <geom type="capsule" size="0.012" fromto="0 0 0 {FOREARM[0]} 0 {FOREARM[1]}" mass="0.07"
          {_PLASTIC} {_SKIN}/>
        <body name="wrist" pos="{FOREARM[0]} 0 {FOREARM[1]}" gravcomp="1">
          {_joint("wrist_flex", "0 1 0")}
          <geom type="cylinder" size="0.015 0.02" euler="1.5708 0 0" mass="0.03" {_SERVO} {_SKIN}/>
          <body name="hand" pos="0.0611 0 0" gravcomp="1">
            {_joint("wrist_roll", "1 0 0")}
            <geom type="box" size="0.012 0.022 0.014" pos="-0.004 0 0" mass="0.04"
              {_SERVO} {_SKIN}/>
            <geom name="fixed_jaw" type="box" size="0.05 0.003 0.009" pos="0.056 -0.015 0"
              mass="0.015" {_PLASTIC} {_PAD}/>
            <site name="tip" pos="{HAND - 0.0611:.4f} 0 0" size="0.004" rgba="0 0 0 0"/>
            <camera name="wrist" pos="-0.005 0 0.055" xyaxes="0 -1 0 0.42 0 0.91" fovy="75"/>
            <body name="jaw" pos="0.012 0.015 0" euler="0 0 -0.115" gravcomp="1">
              {_joint("gripper", "0 0 1")}
              <geom name="moving_jaw" type="box" size="0.046 0.003 0.009" pos="0.048 0 0"
                mass="0.015" rgba="0.85 0.62 0.15 1" {_PAD}/>
            </body>
          </body>
        </body>
      </body>
    </body>
  </body>
</body>
"""
