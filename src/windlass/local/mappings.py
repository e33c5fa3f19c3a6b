"""Event source mappings come to life: from the API's request to a poller at work, and back to the API's echo.

A `Mappings` holds them all. A command (create, update, delete) is checked, answered with the state that AWS answers
with, and then carried out on a thread of its own:

    command   answer                             then
    --------  ---------------------------------  --------------------------------------
    create    Creating                           Enabled, or Disabled
    update    Updating, Enabling or Disabling    Enabled, or Disabled
    delete    Deleting                           gone, its checkpoints too

A second command before the first is carried out is refused (ResourceInUseException). An update begins the shards at
their checkpoints with the new settings. With a folder, mappings and their checkpoints survive a restart.

Sources: Lambda API Reference, "CreateEventSourceMapping", "UpdateEventSourceMapping",
"EventSourceMappingConfiguration".
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from moto.kinesis.models import kinesis_backends

from windlass.local.destination import AwsDestination, Destination
from windlass.local.function import Outcome as Called
from windlass.local.function import Throttled as Refused
from windlass.local.hosts import Hosts, Unrunnable
from windlass.local.mapping import (
    Answered,
    Checkpoint,
    Delivered,
    Failed,
    Failure,
    Invoke,
    Throttled,
    Undelivered,
)
from windlass.local.mapping_settings import (
    NOTHING_PROCESSED,
    STATE_REASON,
    TRIM_HORIZON,
    Assumptions,
    InvalidRequest,
    MappingSettings,
    Position,
    State,
    after,
)
from windlass.local.monitor import Metric, Monitor
from windlass.local.poller import Checkpoints, FileCheckpoints, MemoryCheckpoints, Poller, ShardStatus
from windlass.local.streams import LocalStream, Stream

_logger = logging.getLogger(__name__)

NOT_FOUND = "The resource you requested does not exist."
_COUNTED = {
    "PolledEventCount": "polled",
    "FilteredOutEventCount": "filtered_out",
    "InvokedEventCount": "invoked",
    "FailedInvokeEventCount": "failed_invoke",
    "DroppedEventCount": "dropped",
    "OnFailureDestinationDeliveredEventCount": "on_failure_delivered",
}


class MappingState(msgspec.Struct, frozen=True, kw_only=True):
    """A mapping, for display."""

    uuid: str
    function_arn: str
    event_source_arn: str
    state: str
    last_result: str
    settings: MappingSettings
    shards: list[ShardStatus]


class Sent(msgspec.Struct, frozen=True):
    """A failure record that went to an on-failure destination, or did not (`refused` says why)."""

    uuid: str
    destination: str
    at_ms: int
    failure: Failure
    refused: str = ""


class _Mapping:
    """One mapping: what it was told, where it is, who polls for it. Guarded by the registry's lock."""

    def __init__(self, settings: MappingSettings, checkpoints: Checkpoints, modified_ms: int) -> None:
        self.settings = settings
        self.checkpoints = checkpoints
        self.modified_ms = modified_ms
        self.state = State.CREATING
        self.poller: Poller | None = None
        self.last_result = NOTHING_PROCESSED
        self.counted: dict[str, int] = {}

    def echo(self) -> dict[str, Any]:
        poller = self.poller  # once: it goes while a command is carried out
        if poller is not None:
            self.last_result = poller.last_result
        return {
            **self.settings.echo(),
            "State": str(self.state),
            "StateTransitionReason": STATE_REASON,
            "LastModified": self.modified_ms / 1000,
            "LastProcessingResult": self.last_result,
        }


class _Stored(msgspec.Struct, frozen=True):
    """A mapping in the data folder."""

    settings: MappingSettings
    modified_ms: int


class Seams(msgspec.Struct, frozen=True):
    """What mappings reach outside through. `client` gives a boto3 client by service and region."""

    hosts: Hosts
    monitor: Monitor
    client: Callable[[str, str], Any]
    now_ms: Callable[[], int]
    new_id: Callable[[], str]


class Mappings:
    """All event source mappings of one account. `folder`: where they and their checkpoints are kept, if anywhere."""

    def __init__(
        self,
        account: str,
        seams: Seams,
        *,
        folder: Path | None = None,
        assumed: Assumptions | None = None,
        poll_ms: int | None = None,
        seed: int = 0,
    ) -> None:
        self._account = account
        self._seams = seams
        self._folder = folder
        self._assumed = assumed or Assumptions()
        self._poll_ms = poll_ms
        self._seed = seed
        self._lock = threading.RLock()
        self._held: dict[str, _Mapping] = {}
        self._workers: set[threading.Thread] = set()
        self._sent: list[Sent] = []

    # --- the API's commands ------------------------------------------------------------------------------------

    def create(self, region: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """CreateEventSourceMapping. Raises InvalidRequest."""
        name = str(request.get("FunctionName") or "")
        record = self._seams.hosts.record(region, name)
        settings = MappingSettings.from_request(
            request,
            uuid=self._seams.new_id(),
            function_arn=_function_arn(record, name),
            role_arn=record.role if record else "",
            now_ms=self._seams.now_ms(),
            assumed=self._assumed,
        )
        if record is None:
            raise InvalidRequest("InvalidParameterValueException", "Function does not exist")  # noqa: EM101
        self._stream(settings)
        settings = self._paced(settings)
        with self._lock:
            self._refuse_second(settings, record.function_name)
            mapping = _Mapping(settings, self._checkpoints(settings.uuid), self._seams.now_ms())
            self._begin_at(mapping)
            self._held[settings.uuid] = mapping
            self._store(mapping)
            answer = mapping.echo()
        self._carry_out(mapping)
        return answer

    def update(self, uuid: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """UpdateEventSourceMapping. Raises InvalidRequest."""
        with self._lock:
            mapping = self._get(uuid)
            settings = mapping.settings.updated(request)
            if request.get("FunctionName"):
                settings = self._with_function(settings, str(request["FunctionName"]))
            mapping.state = after(mapping.state, _command(mapping.settings, settings))
            mapping.settings = settings
            mapping.modified_ms = self._seams.now_ms()
            self._store(mapping)
            answer = mapping.echo()
        self._carry_out(mapping)
        return answer

    def delete(self, uuid: str) -> dict[str, Any]:
        """DeleteEventSourceMapping. Raises InvalidRequest."""
        with self._lock:
            mapping = self._get(uuid)
            mapping.state = after(mapping.state, "delete")
            answer = mapping.echo()
        self._carry_out(mapping)
        return answer

    def get(self, uuid: str) -> dict[str, Any]:
        """GetEventSourceMapping. Raises InvalidRequest."""
        with self._lock:
            return self._get(uuid).echo()

    def listed(self, *, source: str = "", function: str = "") -> list[dict[str, Any]]:
        """ListEventSourceMappings, by the stream's ARN, by the function's name or ARN, or all."""
        with self._lock:
            return [
                mapping.echo()
                for mapping in self._held.values()
                if source in ("", mapping.settings.event_source_arn)
                and (not function or _names(function, mapping.settings.function_arn))
            ]

    # --- for whoever looks on ----------------------------------------------------------------------------------

    def state(self) -> list[MappingState]:
        """Every mapping with its shards."""
        with self._lock:
            held = [(mapping, mapping.poller) for mapping in self._held.values()]
        return [
            MappingState(
                uuid=mapping.settings.uuid,
                function_arn=mapping.settings.function_arn,
                event_source_arn=mapping.settings.event_source_arn,
                state=str(mapping.state),
                last_result=mapping.echo()["LastProcessingResult"],
                settings=mapping.settings,
                shards=poller.status() if poller else [],
            )
            for mapping, poller in held
        ]

    def sent(self) -> list[Sent]:
        """What went to on-failure destinations, oldest first."""
        return list(self._sent)

    def settle(self, uuid: str = "", *, timeout_s: float = 60.0) -> bool:
        """Wait until the mappings (or one) have processed all that is in their streams and no window is open."""
        self.at_rest()
        with self._lock:
            pollers = [held.poller for held in self._held.values() if held.poller and uuid in ("", held.settings.uuid)]
        return all(poller.settle(timeout_s=timeout_s) for poller in pollers)

    def metrics(self) -> Iterable[Metric]:
        """The EventCount metrics since they were last asked for, of the mappings that are to have them."""
        found: list[Metric] = []
        for mapping in self.state():
            if "EventCount" in mapping.settings.metrics:
                found += self._counted(mapping)
        return found

    # --- life --------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Begin again what a former run has left in the folder. Raises ValueError for a damaged folder."""
        if self._folder is None:
            return
        for path in sorted(self._folder.glob("*.json")):
            if path.name.endswith(".checkpoints.json"):
                continue
            stored = _read(path)
            mapping = _Mapping(stored.settings, self._checkpoints(stored.settings.uuid), stored.modified_ms)
            self._held[stored.settings.uuid] = mapping
            self._carry_out(mapping)

    def close(self) -> None:
        """Stop every mapping where it is."""
        self.at_rest()
        with self._lock:
            pollers = [mapping.poller for mapping in self._held.values() if mapping.poller]
        for poller in pollers:
            _stop(poller)

    def at_rest(self) -> None:
        """Wait until every command given so far is carried out."""
        for worker in tuple(self._workers):
            worker.join()

    def _carry_out(self, mapping: _Mapping) -> None:
        worker = threading.Thread(target=self._work, args=(mapping,), name=f"mapping {mapping.settings.uuid}")
        self._workers.add(worker)
        worker.start()

    def _work(self, mapping: _Mapping) -> None:
        try:
            poller = mapping.poller
            if poller is not None:
                _stop(poller)
                mapping.last_result, mapping.poller = poller.last_result, None
                mapping.counted = {}
            if mapping.state is State.DELETING:
                self._forget(mapping)
                return
            if mapping.settings.enabled:
                mapping.poller = self._poller(mapping)
                mapping.poller.start()
            with self._lock:
                mapping.state = after(mapping.state, "ready", enabled=mapping.settings.enabled)
        except InvalidRequest as refused:
            _logger.warning("the mapping %s cannot begin: %s", mapping.settings.uuid, refused.message)
            self._give_up(mapping, refused.message)
        except Exception as error:
            _logger.exception("the mapping %s could not begin", mapping.settings.uuid)
            self._give_up(mapping, str(error))
        finally:
            self._workers.discard(threading.current_thread())

    def _give_up(self, mapping: _Mapping, reason: str) -> None:
        with self._lock:
            mapping.poller, mapping.state = None, State.DISABLED
            mapping.last_result = f"PROBLEM: {reason}"

    def _poller(self, mapping: _Mapping) -> Poller:
        settings = mapping.settings
        return Poller(
            settings,
            LocalStream(lambda: self._stream(settings)),
            lambda call: self._invoke(settings, call),
            deliver=self._destination(settings),
            checkpoints=mapping.checkpoints,
            now_ms=self._seams.now_ms,
            seed=self._seed,
        )

    def _invoke(self, settings: MappingSettings, call: Invoke) -> Answered | Failed | Throttled:
        hosts = self._seams.hosts
        record = hosts.record(settings.function_arn.split(":")[3], settings.function_arn)
        if record is None:
            return Throttled(f"there is no function {settings.function_arn}")
        if call.iterator_age_ms is not None:
            self._seams.monitor.iterator_age(hosts.settings_of(record), call.iterator_age_ms)
        result = hosts.call(record, call.payload, arn=settings.function_arn)
        match result:
            case Called(error=None):
                return Answered(result.payload, request_id=result.request_id)
            case Called():
                assert result.error is not None
                return Failed(result.error.type, result.error.message, request_id=result.request_id)
            case Refused() | Unrunnable():
                return Throttled(result.message)
        return Failed("RequestEntityTooLarge", result.message)

    def _destination(self, settings: MappingSettings) -> Destination | None:
        if not settings.on_failure_arn:
            return None
        region = settings.region
        send = AwsDestination(
            settings,
            lambda service: self._seams.client(service, region),
            now_ms=self._seams.now_ms,
            new_id=self._seams.new_id,
        )

        def deliver(failure: Failure) -> Delivered | Undelivered:
            result = send(failure)
            refused = result.reason if isinstance(result, Undelivered) else ""
            self._sent.append(Sent(settings.uuid, settings.on_failure_arn, self._seams.now_ms(), failure, refused))
            del self._sent[:-200]
            if refused:
                _logger.warning("a failure record was not delivered: %s", refused)
            return result

        return deliver

    # --- what they stand on ------------------------------------------------------------------------------------

    def _stream(self, settings: MappingSettings) -> Stream:
        name = settings.stream_arn.partition("/")[2]
        found = kinesis_backends[self._account][settings.region].streams.get(name)
        consumer = settings.consumer_arn
        if (
            found is None
            or found.arn != settings.stream_arn
            or (consumer and found.get_consumer_by_arn(_unnumbered(consumer)) is None)
        ):
            msg = f"Stream not found: {settings.event_source_arn}"
            raise InvalidRequest("InvalidParameterValueException", msg)  # noqa: EM101
        stream: Stream = found
        return stream

    def _begin_at(self, mapping: _Mapping) -> None:
        """LATEST is where the stream ends when the mapping is created, however often it is stopped until it reads."""
        if mapping.settings.start.kind != "LATEST":
            return
        stream = LocalStream(lambda: self._stream(mapping.settings))
        for shard_id, sequence in stream.latest().items():
            position = Position("AFTER_SEQUENCE_NUMBER", sequence) if sequence else TRIM_HORIZON
            mapping.checkpoints.save(Checkpoint(shard_id, position))

    def _paced(self, settings: MappingSettings) -> MappingSettings:
        if self._poll_ms is None:
            return settings
        return msgspec.structs.replace(
            settings, poll_ms=self._poll_ms, poll_ms_min=min(self._poll_ms, settings.poll_ms_min)
        )

    def _with_function(self, settings: MappingSettings, name: str) -> MappingSettings:
        record = self._seams.hosts.record(settings.function_arn.split(":")[3], name)
        if record is None:
            raise InvalidRequest("InvalidParameterValueException", "Function does not exist")  # noqa: EM101
        return msgspec.structs.replace(settings, function_arn=_function_arn(record, name), role_arn=record.role)

    def _refuse_second(self, settings: MappingSettings, name: str) -> None:
        for held in self._held.values():
            same = (held.settings.event_source_arn, held.settings.function_arn)
            if same == (settings.event_source_arn, settings.function_arn):
                msg = (
                    f'The event source arn (" {settings.event_source_arn} ") and function (" {name} ") provided '
                    f"mapping already exists. Please update or delete the existing mapping with UUID "
                    f"{held.settings.uuid}"
                )
                raise InvalidRequest("ResourceConflictException", msg, 409)  # noqa: EM101

    def _get(self, uuid: str) -> _Mapping:
        if uuid not in self._held:
            raise InvalidRequest("ResourceNotFoundException", NOT_FOUND, 404)  # noqa: EM101
        return self._held[uuid]

    def _counted(self, mapping: MappingState) -> list[Metric]:
        held = self._held.get(mapping.uuid)
        if held is None:
            return []
        found = []
        for name, counter in _COUNTED.items():
            total = sum(getattr(shard.counters, counter) for shard in mapping.shards)
            more = total - held.counted.get(name, 0)
            held.counted[name] = total
            if more > 0:
                dimensions = (("EventSourceMappingUUID", mapping.uuid),)
                region = mapping.settings.region
                found.append(Metric(region, "AWS/Lambda", name, more, "Count", dimensions, self._seams.now_ms()))
        return found

    # --- the folder --------------------------------------------------------------------------------------------

    def _checkpoints(self, uuid: str) -> Checkpoints:
        return MemoryCheckpoints() if self._folder is None else FileCheckpoints(self._checkpoint_file(uuid))

    def _checkpoint_file(self, uuid: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{uuid}.checkpoints.json"

    def _store(self, mapping: _Mapping) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{mapping.settings.uuid}.json"
        beside = path.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(_Stored(mapping.settings, mapping.modified_ms)))
        beside.replace(path)

    def _forget(self, mapping: _Mapping) -> None:
        uuid = mapping.settings.uuid
        with self._lock:
            self._held.pop(uuid, None)
        if self._folder is not None:
            (self._folder / f"{uuid}.json").unlink(missing_ok=True)
            self._checkpoint_file(uuid).unlink(missing_ok=True)


def _read(path: Path) -> _Stored:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Stored)
    except msgspec.DecodeError as error:
        msg = f"{path} holds no mapping: {error}. Restore the file, or delete it: that mapping is then gone."
        raise ValueError(msg) from None


def _stop(poller: Poller) -> None:
    try:
        poller.stop()
    except Exception:
        _logger.exception("a shard's loop had ended before it was stopped")


def _command(had: MappingSettings, has: MappingSettings) -> Literal["enable", "disable", "update"]:
    if had.enabled == has.enabled:
        return "update"
    return "enable" if has.enabled else "disable"


def _function_arn(record: Any, name: str) -> str:
    """The ARN that a mapping echoes: with the qualifier that its request named, if any."""
    if record is None:
        return name
    arn: str = record.function_arn if str(record.version) == "$LATEST" else record.function_arn.rpartition(":")[0]
    qualifier = name.split(":function:")[-1].partition(":")[2]
    return f"{arn}:{qualifier}" if qualifier else arn


def _unnumbered(consumer_arn: str) -> str:
    """A consumer's ARN as moto writes it: without the time of its creation."""
    head, _, name = consumer_arn.rpartition("/")
    return f"{head}/{name.partition(':')[0]}"


def _names(function: str, arn: str) -> bool:
    return function in (arn, arn.split(":function:")[1], arn.split(":function:")[1].partition(":")[0])
