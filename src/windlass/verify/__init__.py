"""The second reading: the totals made again from the stream itself, and compared with the table, item by item.

Nothing here is shared with what it checks: no fold, window, schema, aggregate or table code, not even the KPL's
protobuf classes. Where the product is fast, this is plain; it only has to be right, and for other reasons.

    carriers  KPL aggregates → user records
    records   user records → clean values, or the reason why not
    check     values → expected items; the table and the quarantine held against them
    sources   the stream and the table, read with boto3
"""

from windlass.verify.check import Difference, Verdict, verify
from windlass.verify.records import CannotVerify

__all__ = ["CannotVerify", "Difference", "Verdict", "verify"]
