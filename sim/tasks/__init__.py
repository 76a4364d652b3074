from sim.tasks import intercept, pick_place, whack  # noqa: F401
