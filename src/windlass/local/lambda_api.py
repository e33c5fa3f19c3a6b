"""The Lambda API's calls that make something run; moto answers the others and keeps the records.

    call                                   answered by
    -------------------------------------  --------------------------------------------------------------
    Invoke                                 `Hosts`
    Create/Get/List/Update/Delete          `Mappings`
      EventSourceMapping
    CreateFunction, UpdateFunctionCode,    moto, once nothing in the request would keep it from running here
      UpdateFunctionConfiguration
    all others                             moto

Sources: Lambda API Reference, the calls' own pages; texts of refusals as recorded on AWS where they are known.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias
from urllib.parse import parse_qs, unquote

import msgspec

from windlass.local.function import (
    RESERVED_VARIABLES,
    BadCode,
    Outcome,
    Throttled,
    TooLarge,
    can_run,
    remove_tree,
    unpack,
)
from windlass.local.hosts import Hosts, Result, Unrunnable
from windlass.local.mapping_settings import InvalidRequest
from windlass.local.mappings import Mappings

VARIABLES_BYTES_MAX = 4096
RUNTIMES_HERE = "python3.x and provided.*"

Answer: TypeAlias = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class _Variables(msgspec.Struct):
    Variables: dict[str, str] | None = None


class _FunctionShape(msgspec.Struct):
    """What is looked at of a request about a function, by its types; so that nothing of another type is."""

    FunctionName: str | None = None
    Runtime: str | None = None
    PackageType: str | None = None
    Timeout: int | None = None
    MemorySize: int | None = None
    Environment: _Variables | None = None
    LoggingConfig: dict[str, str | None] | None = None
    Code: dict[str, Any] | None = None
    ZipFile: str | None = None


class _MappingShape(msgspec.Struct):
    """The same for a request about a mapping; its numbers are looked at by `MappingSettings`."""

    FunctionName: str | None = None
    EventSourceArn: str | None = None
    StartingPosition: str | None = None
    StartingPositionTimestamp: float | None = None
    Enabled: bool | None = None
    BisectBatchOnFunctionError: bool | None = None
    FunctionResponseTypes: list[str] | None = None
    DestinationConfig: dict[str, dict[str, str] | None] | None = None
    FilterCriteria: dict[str, list[dict[str, str]] | None] | None = None
    MetricsConfig: dict[str, list[str] | None] | None = None


class Request(msgspec.Struct, frozen=True):
    """A call as it came: `path` without the API's date, decoded; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    region: str

    def json(self, shape: type[msgspec.Struct]) -> dict[str, Any]:
        """The body as an object whose members have the shape's types. Raises InvalidRequest."""
        try:
            decoded = json.loads(self.body or b"{}")
        except ValueError:
            decoded = None
        if not isinstance(decoded, dict):
            msg = "Could not parse request body into json"
            raise InvalidRequest("InvalidRequestContentException", msg)  # noqa: EM101
        try:
            msgspec.convert(decoded, shape)
        except msgspec.ValidationError as error:
            raise InvalidRequest("SerializationException", str(error)) from None  # noqa: EM101
        return decoded


def request_of(environ: Mapping[str, Any], region: str, body: bytes) -> Request | None:
    """A WSGI request to the Lambda API; None for another's."""
    path = unquote(str(environ["RAW_URI"]).partition("?")[0])
    dated = re.fullmatch(r"/20\d\d-\d\d-\d\d(/.*?)/?", path)
    if dated is None:
        return None
    query = {name: values[-1] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    return Request(environ["REQUEST_METHOD"], dated[1], query, headers, body, region)


class LambdaApi:
    """Answers what is to run; None for what moto answers."""

    def __init__(self, account: str, hosts: Hosts, mappings: Mappings) -> None:
        self._account = account
        self._hosts = hosts
        self._mappings = mappings
        self._routes: tuple[tuple[str, str, Callable[..., Answer | None]], ...] = (
            ("POST", r"/functions/(.+)/invocations", self._invoke),
            ("POST", r"/event-source-mappings", self._create_mapping),
            ("GET", r"/event-source-mappings", self._list_mappings),
            ("GET", r"/event-source-mappings/([^/]+)", self._get_mapping),
            ("PUT", r"/event-source-mappings/([^/]+)", self._update_mapping),
            ("DELETE", r"/event-source-mappings/([^/]+)", self._delete_mapping),
            ("POST", r"/functions", self._check_function),
            ("PUT", r"/functions/(.+)/code", self._check_code),
            ("PUT", r"/functions/(.+)/configuration", self._check_configuration),
        )

    def answer(self, request: Request) -> Answer | None:
        """The answer to a call, a refusal included."""
        for method, pattern, route in self._routes:
            found = re.fullmatch(pattern, request.path)
            if found and method == request.method:
                try:
                    return route(request, *found.groups())
                except InvalidRequest as refused:
                    return refusal(refused)
        return None

    # --- Invoke ------------------------------------------------------------------------------------------------

    def _invoke(self, request: Request, name: str) -> Answer:
        qualifier = request.query.get("Qualifier")
        record = self._hosts.record(request.region, name, qualifier)
        if record is None:
            raise _no_function(self._account, request.region, name, qualifier)
        match request.headers.get("x-amz-invocation-type", "RequestResponse"):
            case "DryRun":
                return 204, {}, b""
            case "Event":
                _check_event(request.body)
                self._hosts.call_later(record, request.body)
                return 202, {}, b""
        context = request.headers.get("x-amz-client-context")
        result = self._hosts.call(record, request.body, client_context=_client_context(context))
        return _invoked(result, str(record.version), tail=request.headers.get("x-amz-log-type") == "Tail")

    # --- mappings ----------------------------------------------------------------------------------------------

    def _create_mapping(self, request: Request) -> Answer:
        return _json(202, self._mappings.create(request.region, request.json(_MappingShape)))

    def _list_mappings(self, request: Request) -> Answer:
        found = self._mappings.listed(
            source=request.query.get("EventSourceArn", ""), function=request.query.get("FunctionName", "")
        )
        return _json(200, {"EventSourceMappings": found})

    def _get_mapping(self, request: Request, uuid: str) -> Answer:  # noqa: ARG002
        return _json(200, self._mappings.get(uuid))

    def _update_mapping(self, request: Request, uuid: str) -> Answer:
        return _json(202, self._mappings.update(uuid, request.json(_MappingShape)))

    def _delete_mapping(self, request: Request, uuid: str) -> Answer:  # noqa: ARG002
        return _json(202, self._mappings.delete(uuid))

    # --- functions: what would not run is refused here, the rest is moto's -----------------------------------------

    def _check_function(self, request: Request) -> None:
        function = request.json(_FunctionShape)
        if function.get("PackageType", "Zip") != "Zip":
            _refuse("Functions from container images cannot run here; give a zip")
        _check_settings(function)
        _check_zip((function.get("Code") or {}).get("ZipFile"))

    def _check_configuration(self, request: Request, name: str) -> None:  # noqa: ARG002
        _check_settings(request.json(_FunctionShape))

    def _check_code(self, request: Request, name: str) -> None:  # noqa: ARG002
        _check_zip(request.json(_FunctionShape).get("ZipFile"))


def refusal(refused: InvalidRequest) -> Answer:
    """As the Lambda API words it."""
    body = json.dumps({"Type": "User", "Message": refused.message, "message": refused.message}).encode()
    return refused.status, {"Content-Type": "application/json", "x-amzn-ErrorType": refused.type}, body


def _json(status: int, body: Any) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


def _refuse(message: str) -> NoReturn:
    raise InvalidRequest("InvalidParameterValueException", message)  # noqa: EM101


def _no_function(account: str, region: str, name: str, qualifier: str | None) -> InvalidRequest:
    arn = f"arn:aws:lambda:{region}:{account}:function:{name.rpartition('function:')[2]}"
    found = f"{arn}:{qualifier}" if qualifier else arn
    return InvalidRequest("ResourceNotFoundException", f"Function not found: {found}", 404)


def _check_event(body: bytes) -> None:
    try:
        json.loads(body or b"{}")
    except ValueError as error:
        msg = f"Could not parse request body into json: {error}"
        raise InvalidRequest("InvalidRequestContentException", msg) from None  # noqa: EM101


def _client_context(encoded: str | None) -> str | None:
    if not encoded:
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        msg = "Client context must be a valid Base64-encoded JSON object."
        raise InvalidRequest("InvalidRequestContentException", msg) from None  # noqa: EM101


def _invoked(result: Result, version: str, *, tail: bool) -> Answer:
    match result:
        case Throttled():
            body = {"Reason": result.reason, "Type": "User", "message": result.message}
            status, headers, text = _json(429, body)
            return status, {**headers, "x-amzn-ErrorType": "TooManyRequestsException"}, text
        case TooLarge():
            raise InvalidRequest("RequestTooLargeException", result.message, 413)  # noqa: EM101
        case Unrunnable():
            raise InvalidRequest("InvalidRuntimeException", result.message, 502)  # noqa: EM101
        case Outcome():
            headers = {
                "Content-Type": "application/json",
                "x-amzn-RequestId": result.request_id,
                "X-Amz-Executed-Version": version,
            }
            if result.function_error:
                headers["X-Amz-Function-Error"] = result.function_error
            if tail:
                headers["X-Amz-Log-Result"] = base64.b64encode(result.tail).decode()
            return 200, headers, result.payload


# --- what would keep a function from running ---------------------------------------------------------------------


def _check_settings(function: Mapping[str, Any]) -> None:
    runtime = function.get("Runtime")
    if runtime is not None and not can_run(str(runtime)):
        _refuse(f"Runtime {runtime} cannot run here; {RUNTIMES_HERE} can")
    _check_range(function, "Timeout", 1, 900)
    _check_range(function, "MemorySize", 128, 10240)
    _check_variables((function.get("Environment") or {}).get("Variables") or {})


def _check_range(function: Mapping[str, Any], name: str, low: int, high: int) -> None:
    value = function.get(name)
    if value is None:
        return
    member = name[0].lower() + name[1:]
    for wrong, rule in (
        (value < low, f"greater than or equal to {low}"),
        (value > high, f"less than or equal to {high}"),
    ):
        if wrong:
            msg = (
                f"1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: "
                f"Member must have value {rule}"
            )
            raise InvalidRequest("ValidationException", msg)  # noqa: EM101


def _check_variables(variables: Mapping[str, str]) -> None:
    reserved = sorted(RESERVED_VARIABLES & variables.keys())
    if reserved:
        _refuse(
            "Lambda was unable to configure your environment variables because the environment variables you have "
            "provided contains reserved keys that are currently not supported for modification. Reserved keys used in "
            f"this request: {', '.join(reserved)}"
        )
    written = json.dumps(dict(variables), separators=(",", ":"))
    if len(written.encode()) > VARIABLES_BYTES_MAX:
        _refuse(
            "Lambda was unable to configure your environment variables because the environment variables you have "
            f"provided exceeded the 4KB limit. String measured: {written[:200]}"
        )


def _check_zip(encoded: str | None) -> None:
    if encoded is None:
        return
    try:
        code = unpack(base64.b64decode(encoded))
    except binascii.Error as error:
        code = BadCode("Could not unzip uploaded file. Please check your file, then try to upload again.", str(error))
    if isinstance(code, BadCode):
        _refuse(code.message)
    remove_tree(code.folder)
