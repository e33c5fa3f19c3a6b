"""Where moto's CloudFormation would do otherwise, for stacks that are made and removed here.

moto's own                                              here
------------------------------------------------------  ---------------------------------------------------
knows DeletionPolicy Retain only                        RetainExceptOnCreate keeps what a finished stack holds
a stack made by a change set has no outputs             it has
warns of each resource of a type it does not know       it says so once per type, and goes on without it

Source: "DeletionPolicy attribute", AWS CloudFormation User Guide.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.models import ChangeSet, Stack

from windlass.local.streams import replaced

_RETAIN = "RetainExceptOnCreate"
_NEVER_CAME_UP = ("CREATE_PENDING", "CREATE_IN_PROGRESS", "CREATE_FAILED", "REVIEW_IN_PROGRESS")


_logger = logging.getLogger(__name__)


class _Unknown:
    """Stands where moto has `warnings`, and its logger."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def warn(self, text: str, *_: Any, **__: Any) -> None:
        for kind in re.findall(r"AWS::\w+::\w+", text):
            if kind not in self._told:
                self._told.add(kind)
                _logger.warning("%s is left out of stacks here: the local endpoint has none", kind)

    warning = warn


@contextmanager
def our_stacks() -> Iterator[None]:
    """moto does these things our way in this context."""
    delete, apply = Stack.delete, ChangeSet.apply

    def delete_keeping(self: Any) -> None:
        if self.status not in _NEVER_CAME_UP and not self.status.startswith("ROLLBACK"):
            for resource in self.resource_map._resource_json_map.values():
                if resource.get("DeletionPolicy") == _RETAIN:
                    resource["DeletionPolicy"] = "Retain"
        delete(self)

    def apply_with_outputs(self: Any) -> None:
        apply(self)
        self.stack.template = self.template
        self.stack._parse_template()
        self.stack.output_map = self.stack._create_output_map()

    unknown = _Unknown()
    with (
        replaced(Stack, "delete", delete_keeping),
        replaced(ChangeSet, "apply", apply_with_outputs),
        replaced(parsing, "warnings", unknown),
        replaced(parsing, "logger", unknown),
    ):
        yield
