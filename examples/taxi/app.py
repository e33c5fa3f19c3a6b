"""New York taxi trips: passengers and trips per vendor in windows of 30 seconds.

The record, the key and the names are the ones of the stream's three producers, two of which write numbers as
strings; hence `coerce`.
"""

from datetime import timedelta
from typing import Annotated

from windlass import Count, Range, Record, Sum, Windows, env


class Trip(Record):
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

handler = trips.handler
