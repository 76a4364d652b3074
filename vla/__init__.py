"""Onset's policy side: flow VLAs, their schedules, sampling, serving and training."""
