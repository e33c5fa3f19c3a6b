"""moto's DynamoDB made to write as DynamoDB does: condition and effect in one step.

moto checks a condition, then writes, without a lock in between; its server handles requests on threads. Two merges into
one item can then both find their condition true, and one of them is lost. One lock around its writes mends that.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

_WRITES = ("put_item", "update_item", "delete_item", "transact_write_items")


@contextmanager
def whole_writes() -> Iterator[None]:
    """In this context, moto's DynamoDB does one write at a time."""
    from moto.dynamodb.models import DynamoDBBackend

    lock = threading.RLock()
    before = {name: getattr(DynamoDBBackend, name) for name in _WRITES}

    def locked(write: Any) -> Any:
        @wraps(write)
        def one_at_a_time(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return write(*args, **kwargs)

        return one_at_a_time

    for name, write in before.items():
        setattr(DynamoDBBackend, name, locked(write))
    try:
        yield
    finally:
        for name, write in before.items():
            setattr(DynamoDBBackend, name, write)
