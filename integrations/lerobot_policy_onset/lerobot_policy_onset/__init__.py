"""A LeRobot policy whose actions come from an Onset server. Importing it registers the policy."""

from lerobot_policy_onset.configuration_onset import OnsetConfig

__all__ = ["OnsetConfig"]
