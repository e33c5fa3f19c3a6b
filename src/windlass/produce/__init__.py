"""The producer: seeded trips or files of yours, in the dialects of the lab, into any Kinesis endpoint."""

from windlass.produce.aggregate import KinesisRecord, Shard
from windlass.produce.files import UnreadableFile
from windlass.produce.put import Limits, Packing, Produced, Refused, Stored, Stream, StreamError, produce
from windlass.produce.records import UserRecord
from windlass.produce.source import records
from windlass.produce.stream import KinesisStream, open_stream
from windlass.produce.trips import Trip, trips
from windlass.produce.unclean import KINDS

__all__ = [
    "KINDS",
    "KinesisRecord",
    "KinesisStream",
    "Limits",
    "Packing",
    "Produced",
    "Refused",
    "Shard",
    "Stored",
    "Stream",
    "StreamError",
    "Trip",
    "UnreadableFile",
    "UserRecord",
    "open_stream",
    "produce",
    "records",
    "trips",
]
