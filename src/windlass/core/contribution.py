"""What one segment of one shard adds to one item of the table."""

from decimal import Decimal

import msgspec

from windlass.core.window import Window

Number = int | Decimal
KeyValue = str | int | Decimal


class Contribution(msgspec.Struct, frozen=True):
    """One row of one segment: the values to merge into the item of `key` and `window`.

    `first` and `through` are the positions of the first and the last record that the segment covers; together
    with `source` they are what the fence decides by. `add` holds sums and counts; `least` and `most` hold
    minima and maxima; `plain` holds attributes that are simply set (the parts of a key of several fields).
    """

    key: dict[str, KeyValue]
    window: Window
    source: str  # the shard, told apart from other streams' shards: `Call.source`
    first: str
    through: str
    add: dict[str, Number]
    least: dict[str, Number] = {}
    most: dict[str, Number] = {}
    plain: dict[str, KeyValue] = {}
