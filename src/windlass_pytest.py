"""The pytest plugin of Windlass. It imports nothing before a test asks for it: pytest starts as fast as without it."""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from windlass.sim.runs import Summary
    from windlass.testing import Rehearsal

_REHEARSALS = pytest.StashKey[list["Rehearsal"]]()
_CALLS_SHOWN = 40


@pytest.fixture
def kinesis_lambda(request: pytest.FixtureRequest) -> "Callable[..., Rehearsal]":
    """Rehearse a handler on a stream and an event source mapping in memory.

    `world = kinesis_lambda(handler, window_s=30)` takes what windlass.testing.Rehearsal takes. When the test fails, the
    last calls are shown with its report.
    """
    from windlass.testing import Rehearsal

    made: list[Rehearsal] = request.node.stash.setdefault(_REHEARSALS, [])

    def rehearse(handler: Any, **settings: Any) -> "Rehearsal":
        made.append(Rehearsal(handler, **settings))
        return made[-1]

    return rehearse


@pytest.fixture
def simulate() -> "Callable[..., Summary]":
    """Prove a pipeline in simulated worlds of faults: `simulate(trips, runs=50)`.

    It takes what windlass.sim.proof.assert_exact takes, and fails the test if any run is not exact.
    """
    from windlass.sim.proof import assert_exact

    return assert_exact


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the calls of a failed test's rehearsals."""
    report = yield
    if report.when == "call" and report.failed:
        for world in item.stash.get(_REHEARSALS, []):
            report.sections.append(("calls of the handler", world.timeline(_CALLS_SHOWN)))
    return report
