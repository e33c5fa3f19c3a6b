"""Where a user record stands in its shard.

A Kinesis record is named by its shard and its sequence number; a KPL aggregate carries several user records
under one sequence number, told apart by their place in it. A position is the text of both, padded so that
text order is stream order. It stays text because a sequence number has up to 56 digits, and a DynamoDB
number holds 38. Sequence numbers of different shards may be equal: a position means nothing without its shard.
"""

SEQUENCE_DIGITS = 56
SUB_DIGITS = 6
SUB_MAX = 10**SUB_DIGITS - 1


def position(sequence: str, sub: int = 0) -> str:
    """The position of user record `sub` (0-based) of the Kinesis record `sequence` (decimal digits)."""
    if not (sequence.isascii() and sequence.isdigit() and len(sequence) <= SEQUENCE_DIGITS):
        msg = f"a sequence number is 1 to {SEQUENCE_DIGITS} decimal digits; found {sequence!r}"
        raise ValueError(msg)
    assert 0 <= sub <= SUB_MAX, sub
    return f"{sequence.zfill(SEQUENCE_DIGITS)}.{str(sub).zfill(SUB_DIGITS)}"


def split(position: str) -> tuple[str, int]:
    """The (sequence number, sub) of a position, as Kinesis writes them."""
    sequence, _, sub = position.partition(".")
    return sequence.lstrip("0") or "0", int(sub)
