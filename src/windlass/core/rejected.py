"""A record that is not clean is a value, never an exception. The reasons are a closed list."""

from enum import StrEnum

import msgspec


class Reason(StrEnum):
    """Why a record is not in the totals. Each line is what `windlass quarantine` tells about it."""

    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    TOO_LARGE = "too_large"
    CORRUPT_AGGREGATE = "corrupt_aggregate"
    WRONG_SHARD = "wrong_shard"
    LATE = "late"

    @property
    def meaning(self) -> str:
        """The reason in words."""
        return _MEANING[self]


_MEANING = {
    Reason.NOT_UTF8: "the bytes are not UTF-8 text",
    Reason.NOT_JSON: "the text is not JSON",
    Reason.NOT_AN_OBJECT: "the JSON is not an object",
    Reason.MISSING_FIELD: "a field that the record must have is not there",
    Reason.WRONG_TYPE: "a field holds a value of another type",
    Reason.OUT_OF_RANGE: "a field's value is outside its range, or beyond what sums exactly",
    Reason.TOO_LARGE: "the item made of the record would be larger than DynamoDB takes",
    Reason.CORRUPT_AGGREGATE: "a KPL aggregate whose digest, message or table indexes are broken; kept whole",
    Reason.WRONG_SHARD: "a record of a KPL aggregate whose key belongs to another shard; the KPL sends it again",
    Reason.LATE: "the record arrived outside the window it was delivered in",
}


class Rejected(msgspec.Struct, frozen=True):
    """A record that went to quarantine: which, why, and its bytes as they came."""

    reason: Reason
    detail: str
    shard: str
    position: str
    arrival_ms: int
    data: bytes
