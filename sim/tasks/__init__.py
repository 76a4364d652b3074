from sim.tasks import intercept, whack  # noqa: F401
