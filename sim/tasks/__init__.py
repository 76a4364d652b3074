from sim.tasks import conveyor, intercept, pick_place, whack  # noqa: F401
