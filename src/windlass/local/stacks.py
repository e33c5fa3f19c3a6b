"""Where moto's CloudFormation would do otherwise, for stacks that are made and removed here.

moto's own                                              here
------------------------------------------------------  ---------------------------------------------------
knows DeletionPolicy Retain only                        RetainExceptOnCreate keeps what a finished stack holds
a stack made by a change set has no outputs             it has

Source: "DeletionPolicy attribute", AWS CloudFormation User Guide.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.cloudformation.models import ChangeSet, Stack

from windlass.local.streams import replaced

_RETAIN = "RetainExceptOnCreate"
_NEVER_CAME_UP = ("CREATE_PENDING", "CREATE_IN_PROGRESS", "CREATE_FAILED", "REVIEW_IN_PROGRESS")


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

    with replaced(Stack, "delete", delete_keeping), replaced(ChangeSet, "apply", apply_with_outputs):
        yield
