"""What every test runs under."""

from hypothesis import HealthCheck, settings

# No deadline and no complaint about slow drawing: a busy machine must not fail a law.
settings.register_profile("windlass", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("windlass")
