"""Onset's simulation: a MuJoCo arm, its tasks and scripted experts, and closed-loop rollouts.

Imports ``controller``, never ``vla``: a policy comes in as a function.
"""

import os
import sys

# MuJoCo picks its renderer when it is imported. Without a display, EGL is the one that works.
if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")
