"""What every test runs under."""

import os

import pytest
from hypothesis import HealthCheck, settings

RUN_HEAVY = bool(os.environ.get("CI") or os.environ.get("WINDLASS_ALL"))

# No deadline and no complaint about slow drawing: a busy machine must not fail a law.
settings.register_profile(
    "windlass",
    deadline=None,
    max_examples=100 if RUN_HEAVY else 50,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("windlass")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`heavy` tests take seconds each: CI runs them, and anyone with `make test ALL=1`."""
    if RUN_HEAVY:
        return
    skip = pytest.mark.skip(reason="heavy: runs in CI, and here with `make test ALL=1`")
    for item in items:
        if "heavy" in item.keywords:
            item.add_marker(skip)
