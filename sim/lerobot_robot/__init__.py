"""The simulated arm as a LeRobot robot, in LeRobot's manner of a plugin.

LeRobot's own tools find it where they take a package to look in:

    lerobot-record --robot.discover_packages_path=sim.lerobot_robot --robot.type=onset_so101_sim ...

``sim.device`` is to this robot what the desk, the arm and its USB cable are to a real one:
physics and cameras run on in a process of their own, whoever connects, and ``port`` is the name
of its shared memory.
"""

from sim.lerobot_robot.config_onset_so101_sim import OnsetSimCameraConfig, OnsetSo101SimConfig
from sim.lerobot_robot.onset_so101_sim import OnsetSimCamera, OnsetSo101Sim

__all__ = ["OnsetSimCamera", "OnsetSimCameraConfig", "OnsetSo101Sim", "OnsetSo101SimConfig"]
