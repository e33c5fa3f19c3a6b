"""Where moto would do otherwise: the few places in it that are ours while a local endpoint runs.

moto's own                                              here
------------------------------------------------------  ---------------------------------------------------
runs a function in a Docker container                   a host runs it, in the background (SNS, Logs, ...)
keeps mappings, and calls a function per put record     `Mappings` keeps them, whoever makes them: the API has
                                                        its own route, so this is for CloudFormation stacks
a stack's update of inline code breaks it               it becomes a zip, as at its creation
knows no LoggingConfig                                  keeps it, and the name of its log group
reads AWS' 1,400 policies with an account's first       reads them when a policy is asked for
request, for each partition: a second or more
a closed shard's records move to its children           `windlass.local.streams`
sums round to 28 digits, and fail on 1E-18              they are exact to 38, as DynamoDB's
"""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Context, Decimal
from typing import Any

from moto.awslambda.models import EventSourceMapping, LambdaBackend, LambdaFunction
from moto.core.config import default_user_config
from moto.core.exceptions import JsonRESTError
from moto.dynamodb.exceptions import IncorrectDataType
from moto.dynamodb.models.dynamo_type import DynamoType
from moto.iam.models import IAMBackend

from windlass.local.hosts import Hosts
from windlass.local.mapping_settings import InvalidRequest
from windlass.local.mappings import Mappings
from windlass.local.streams import our_shards, replaced

_WHOLE = (
    "BatchSize",
    "MaximumBatchingWindowInSeconds",
    "MaximumRecordAgeInSeconds",
    "MaximumRetryAttempts",
    "ParallelizationFactor",
    "TumblingWindowInSeconds",
)
_FLAGS = ("BisectBatchOnFunctionError", "Enabled")


class _Resource(EventSourceMapping):  # type: ignore[misc]
    """What a stack holds of a mapping."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return attr == "Id"

    def get_cfn_attribute(self, attribute_name: str) -> str:  # noqa: ARG002
        return self.uuid


@contextmanager
def our_own(hosts: Hosts, mappings: Mappings) -> Iterator[None]:
    """moto does these things our way in this context."""

    def invoke(function: Any, body: str, _request_headers: Any, _response_headers: Any) -> bytes:
        hosts.call_later(function, body.encode() if isinstance(body, str) else body)
        return b"{}"

    def create(backend: Any, spec: Mapping[str, Any]) -> _Resource:
        return _Resource(_asked(lambda: mappings.create(backend.region_name, _typed(spec)))["UUID"])

    def update(_backend: Any, uuid: str, spec: Mapping[str, Any]) -> _Resource:
        mappings.at_rest()
        return _Resource(_asked(lambda: mappings.update(uuid, _typed(spec)))["UUID"])

    def delete(_backend: Any, uuid: str) -> _Resource:
        mappings.at_rest()
        return _Resource(_asked(lambda: mappings.delete(uuid))["UUID"])

    def listed(_backend: Any, event_source_arn: str = "", function_name: str = "") -> list[_Resource]:
        found = mappings.listed(source=event_source_arn or "", function=function_name or "")
        return [_Resource(each["UUID"]) for each in found]

    with (
        our_shards(),
        _with_managed_policies(),
        replaced(LambdaFunction, "invoke", invoke),
        replaced(LambdaFunction, "update_from_cloudformation_json", classmethod(_update_function)),
        _with_logging_config(),
        replaced(LambdaBackend, "create_event_source_mapping", create),
        replaced(LambdaBackend, "update_event_source_mapping", update),
        replaced(LambdaBackend, "delete_event_source_mapping", delete),
        replaced(LambdaBackend, "list_event_source_mappings", listed),
        replaced(DynamoType, "__add__", _exact_sum),
    ):
        yield


@contextmanager
def _with_managed_policies() -> Iterator[None]:
    begin, read, by_arn = IAMBackend.__init__, IAMBackend._init_aws_policies, IAMBackend._init_managed_policies

    def begin_without(self: Any, *rest: Any, **named: Any) -> None:
        begin(self, *rest, **named)
        del self.aws_managed_policies, self.managed_policies

    def read_when_asked(self: Any, name: str) -> Any:
        """Called for what a backend has not: these two, once."""
        makers = {"aws_managed_policies": read, "managed_policies": by_arn}
        if name not in makers:
            raise AttributeError(name)
        made = makers[name](self)
        setattr(self, name, made)
        return made

    had = default_user_config.get("iam")
    default_user_config["iam"] = {"load_aws_managed_policies": True}
    IAMBackend.__getattr__ = read_when_asked
    try:
        with (
            replaced(IAMBackend, "__init__", begin_without),
            replaced(IAMBackend, "_init_aws_policies", lambda _: []),
        ):
            yield
    finally:
        del IAMBackend.__getattr__
        default_user_config["iam"] = had or {"load_aws_managed_policies": False}


@contextmanager
def _with_logging_config() -> Iterator[None]:
    begin, update, describe = (
        LambdaFunction.__init__,
        LambdaFunction.update_configuration,
        LambdaFunction.get_configuration,
    )
    make_of_stack = LambdaFunction.create_from_cloudformation_json

    def keep(function: Any, spec: Mapping[str, Any]) -> None:
        if "LoggingConfig" in spec:
            function.logging_config = spec["LoggingConfig"] or {}
            named = function.logging_config.get("LogGroup")
            function.logs_group_name = named or f"/aws/lambda/{function.function_name}"

    def begin_keeping(self: Any, account_id: str, spec: Mapping[str, Any], *rest: Any, **named: Any) -> None:
        begin(self, account_id, spec, *rest, **named)
        keep(self, spec)

    def update_keeping(self: Any, config_updates: Mapping[str, Any]) -> Any:
        keep(self, config_updates)
        return update(self, config_updates)

    def describe_kept(self: Any, *rest: Any, **named: Any) -> dict[str, Any]:
        kept = getattr(self, "logging_config", {})
        logging = {"LogFormat": "Text", **kept, "LogGroup": self.logs_group_name}
        return {**describe(self, *rest, **named), "LoggingConfig": logging}

    def make_of_stack_keeping(
        _cls: Any, /, resource_name: str, cloudformation_json: Any, *rest: Any, **named: Any
    ) -> Any:
        function = make_of_stack(resource_name, cloudformation_json, *rest, **named)
        keep(function, cloudformation_json["Properties"])
        return function

    with (
        replaced(LambdaFunction, "__init__", begin_keeping),
        replaced(LambdaFunction, "update_configuration", update_keeping),
        replaced(LambdaFunction, "get_configuration", describe_kept),
        replaced(LambdaFunction, "create_from_cloudformation_json", classmethod(make_of_stack_keeping)),
    ):
        yield


_NUMBERS = Context(prec=38, Emin=-130, Emax=125)


def _exact_sum(one: DynamoType, other: DynamoType) -> DynamoType:
    if not (one.is_number() and other.is_number()):
        raise IncorrectDataType
    return DynamoType({"N": format(_NUMBERS.add(Decimal(one.value), Decimal(other.value)), "f")})


def _asked(ask: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ask()
    except InvalidRequest as refused:
        raise JsonRESTError(refused.type, refused.message) from None
    return answer


def _typed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A template's numbers and flags may be text."""
    typed = dict(spec)
    for name in _WHOLE:
        if isinstance(typed.get(name), str):
            typed[name] = int(typed[name])
    for name in _FLAGS:
        if isinstance(typed.get(name), str):
            typed[name] = json.loads(typed[name].lower())
    return typed


def _update_function(cls: Any, /, original_resource: Any, cloudformation_json: Any, **_: Any) -> Any:
    properties = cloudformation_json["Properties"]
    original_resource.update_configuration(properties)
    code = dict(properties["Code"])
    if "ZipFile" in code:
        code["ZipFile"] = base64.b64encode(cls._create_zipfile_from_plaintext_code(code["ZipFile"]))
    original_resource.update_function_code(code)
    return original_resource
