"""One of Meta-World's environments: seeded, stepped, and judged by its own measure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from controller.errors import ErrorCode, OnsetError
from sim.metaworld.hand import TICK_NS, TICKS, Array, to_action, to_set_point
from sim.task import Targets

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

MAX_TICKS = 500  # environment steps in an episode, Meta-World's own bound
TOP_REWARD = 10.0  # of an environment step, where the task is done
_PACKAGE = "metaworld==3.1.1"

# Observations of Meta-World: hand, gripper, first object; the goal comes last.
_HAND, _GRIPPER, _OBJECT, _GOAL = slice(0, 3), 3, slice(4, 7), slice(-3, None)


def available() -> tuple[str, ...]:
    """Names of Meta-World's tasks, sorted.

    Raises:
        OnsetError: UNAVAILABLE where the package is not installed.
    """
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        # It asks for one old release of MuJoCo, and runs with the one that we need.
        raise OnsetError(
            ErrorCode.UNAVAILABLE,
            "suite",
            f"metaworld: {error}",
            f"with Meta-World installed: pip install --no-deps {_PACKAGE} imageio",
        ) from error
    return tuple(sorted(ALL_V3_ENVIRONMENTS))


def check_tasks(tasks: Sequence[str]) -> None:
    """Checks names of tasks.

    Raises:
        OnsetError: BAD_VALUE for none at all, or one that is no task of Meta-World; the message
            lists them. UNAVAILABLE where the package is not installed.
    """
    known = available()
    unknown = [name for name in tasks if name not in known]
    if unknown or not tasks:
        raise OnsetError(ErrorCode.BAD_VALUE, "tasks", unknown or "none", list(known))


def _make(name: str) -> SawyerXYZEnv:
    """A task's environment, whose expert sees the goal, with places drawn anew at every reset."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    made = ALL_V3_ENVIRONMENTS[name]
    # What Meta-World writes for MuJoCo 3 has one number less than a weld of MuJoCo 4.
    env = type(made.__name__, (made,), {"reset_mocap_welds": _reset_welds})()
    # As its own ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE, but for places that are not drawn once.
    env._partially_observable, env._set_task_called = False, True
    del env.sawyer_observation_space  # it was made for a goal that is not seen
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    return env


def _reset_welds(env: SawyerXYZEnv) -> None:
    """Welds the hand to its point: no offset, the turn and the torque scale that are Meta-World's.

    The last number, new in MuJoCo 4, is 0 where the relative pose is given.
    """
    welds = env.model.eq_type == mujoco.mjtEq.mjEQ_WELD
    env.model.eq_data[welds] = 0
    env.model.eq_data[welds, 6], env.model.eq_data[welds, 10] = -1, 5


class World:
    """An environment with everything in it, privileged.

    Attributes:
        env: Meta-World's environment, whose goal its expert may see.
        ticks: Environment steps since the reset.
        success: Whether ``info["success"]`` was 1 after one of them.
        reward: The greatest reward of one of them, 0..10.
        seen: What Meta-World's experts see now. Shape (39,).
    """

    def __init__(self, name: str) -> None:
        """Args:
        name: A task of Meta-World, e.g. ``"reach-v3"``.

        Raises:
            OnsetError: See ``check_tasks``.
        """
        check_tasks([name])
        from metaworld.policies import ENV_POLICY_MAP

        self.env = _make(name)
        self._expert = ENV_POLICY_MAP[name]()
        self.model: mujoco.MjModel = self.env.model
        self.data: mujoco.MjData = self.env.data
        self._hand = self.model.body("hand").id
        self._backup = mujoco.MjData(self.model)

    def reset(self, seed: int) -> None:
        """Begins an episode."""
        self.env.seed(seed)
        self.seen, _ = self.env.reset()
        # Meta-World moves the goal's mark, and would show where it was until the first step.
        mujoco.mj_forward(self.model, self.data)
        self.ticks, self.success, self.reward = 0, False, 0.0
        self._opening_rate = 0.0

    @property
    def point(self) -> Array:
        """The point that the hand is welded to [m]. Shape (3,)."""
        return self.data.mocap_pos[0].copy()

    @property
    def position(self) -> Array:
        """Measured hand [m] and gripper [0..1]. Shape (4,)."""
        return np.append(self.seen[_HAND], self.seen[_GRIPPER])

    @property
    def velocity(self) -> Array:
        """Their rates [m/s, 1/s]. Shape (4,)."""
        rate = np.zeros(6)
        mujoco.mj_objectVelocity(
            self.model, self.data, mujoco.mjtObj.mjOBJ_XBODY, self._hand, rate, 0
        )
        return np.append(rate[3:], self._opening_rate)

    def targets(self) -> Targets:
        """The object and the goal. Positions of shape (2, 3); they count as standing still."""
        places = np.stack([self.seen[_OBJECT], self.seen[_GOAL]])
        return Targets(places, np.zeros_like(places), np.array([True, True]))

    def step(self, action: Array) -> None:
        """Makes one environment step. ``action`` is Meta-World's, shape (4,), in -1..1."""
        opening = self.seen[_GRIPPER]
        self.seen, reward, _, _, info = self.env.step(action)
        self._opening_rate = (self.seen[_GRIPPER] - opening) / (TICK_NS * 1e-9)
        self.ticks += 1
        self.success = self.success or info["success"] > 0
        self.reward = max(self.reward, float(reward))

    def go_to(self, set_point: Array) -> None:
        """Makes one environment step towards a set-point of the controller. Shape (4,)."""
        self.step(to_action(set_point, self.point))

    def expert_action(self) -> Array:
        """What Meta-World's scripted expert does now, in -1..1. Shape (4,)."""
        return self._ask_expert(self.seen)

    def _ask_expert(self, seen: Array) -> Array:
        with warnings.catch_warnings():
            # They warn that steps are clipped, which they all are.
            warnings.simplefilter("ignore", UserWarning)
            # A copy: some of them change what they are given.
            action = self._expert.get_action(seen.copy())
        return np.clip(np.asarray(action, dtype=np.float64), -1, 1)

    def plan(self, steps: int) -> Array:
        """What the expert would do from here, found out on a copy of the physics.

        Args:
            steps: Policy steps.

        Returns:
            Set-points at the end of each. Shape (steps, 4).
        """
        env, before = self.env, self.env._prev_obs
        mujoco.mj_copyData(self._backup, self.model, self.data)
        bounds, seen, path = env.sawyer_observation_space, self.seen, []
        for _ in range(steps):
            effort = 0.0
            for _ in range(TICKS):
                action = self._ask_expert(seen)
                effort = action[3]
                env.set_xyz_action(action[:3])
                env.do_simulation([effort, -effort], env.frame_skip)
                mujoco.mj_kinematics(self.model, self.data)
                seen = np.clip(env._get_obs(), bounds.low, bounds.high)
            path.append(to_set_point(self.point, effort))
        mujoco.mj_copyData(self.data, self.model, self._backup)
        env._prev_obs = before
        return np.array(path)
