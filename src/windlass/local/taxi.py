"""The pipeline that `windlass demo` runs when it is given none: the taxi example, as examples/taxi/app.py has it."""

from datetime import timedelta
from typing import Annotated

from windlass import Count, Range, Record, Sum, Windows, env


class Trip(Record):
    """What the windows need of a trip."""

    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]


trips = Windows(
    Trip,
    key="vendorId",
    every=timedelta(seconds=30),
    totals={"passenger": Sum("passengerCount"), "trips": Count()},
    table=env("dynamoDBTableName"),
    coerce=True,
)
