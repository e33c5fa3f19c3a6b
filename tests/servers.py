"""The servers that the contract suites run on: every form of the table, and the Kinesis endpoints.

    form            what it is                                          how to get it
    memory          windlass.sim.table, the oracle                      always there
    moto            moto in this process                                always there
    dynalite        an independent server (Node), a real process        .ci/servers.sh
    dynamodb-local  AWS's own server (Java), a real process             .ci/servers.sh
    aws             a real account                                      AWS credentials and WINDLASS_REMOTE=1

    Kinesis         what it is                                          how to get it
    moto            moto's server, on a thread of this process          always there
    kinesalite      an independent server (Node), a real process        .ci/servers.sh
    kinesis-mock    an independent server (Node), a real process        .ci/servers.sh
    aws             a real account                                      AWS credentials and WINDLASS_REMOTE=1

A form that is not here is skipped with a word on how to get it; under CI=true the servers must be here.
Each server is started on first use, on 127.0.0.1 and a free port, once per test process, and ended by its pid.
"""

import itertools
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto import mock_aws

from windlass.sim.table import MemoryTable
from windlass.table import DynamoTable, Table, TableKeys, dynamo_client

ROOT = Path(__file__).parent.parent
SERVERS = ROOT / ".servers"
REMOTE = os.environ.get("WINDLASS_REMOTE") == "1"
FORMS = ("memory", "moto", "dynalite", "dynamodb-local", *(["aws"] if REMOTE else []))
_NO_ACCOUNT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_COMMANDS = {
    "dynalite": ("node", "dynalite.js"),
    "dynamodb-local": ("java", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp", "lib/*:.", "Loopback"),
    "kinesalite": ("node", "kinesalite.js"),
    "kinesis-mock": ("node", "kinesis-mock.js"),
}
KINESIS = ("moto", "kinesalite", "kinesis-mock", *(["aws"] if REMOTE else []))


class Server:
    """A process that prints its port and ends with its standard input."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            _COMMANDS[name],
            cwd=SERVERS / name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        port = next((line.strip() for line in self.process.stdout if line.strip().isdigit()), None)
        if port is None:
            self.end()
            msg = f"{name} did not start; run .ci/servers.sh again, or remove .servers/{name}"
            raise RuntimeError(msg)
        self.endpoint = f"http://127.0.0.1:{port}"

    def end(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Losing:
    """A client whose calls take effect and whose answers are lost, as often as `lost` says."""

    def __init__(self, client: Any, error: Callable[[], Exception], lost: int) -> None:
        self._client = client
        self._error = error
        self.lost = lost

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self._client, operation)
        if operation not in ("update_item", "put_item", "batch_write_item"):
            return method

        def call(**request: Any) -> Any:
            try:
                return method(**request)
            finally:
                if self.lost:
                    self.lost -= 1
                    raise self._error()

        return call


class Form:
    """One form: tables by key schema, and the same tables seen through a line that loses answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tables: dict[TableKeys, Table] = {}

    def running(self) -> AbstractContextManager[None]:
        """Around each test."""
        return nullcontext()

    def table(self, keys: TableKeys) -> Table:
        """A table with these keys; the same one for the same keys, so tests keep to keys of their own."""
        if keys not in self.tables:
            self.tables[keys] = self.make(keys)
        return self.tables[keys]

    def declared(self, actual: TableKeys, keys: TableKeys) -> Table:
        """The table with the actual keys, used by a pipeline that believes in others."""
        raise NotImplementedError

    def missing(self, keys: TableKeys) -> Table:
        """A table that is not there."""
        raise NotImplementedError

    def losing(self, keys: TableKeys, error: Callable[[], Exception], lost: int) -> Table:
        """table(keys), whose next `lost` writes take effect and answer with an error."""
        raise NotImplementedError

    def make(self, keys: TableKeys) -> Table:
        raise NotImplementedError

    def end(self) -> None:
        """After the last test."""


class Memory(Form):
    def make(self, keys: TableKeys) -> Table:
        return MemoryTable(keys)

    def declared(self, actual: TableKeys, keys: TableKeys) -> Table:
        return self.table(actual)

    def losing(self, keys: TableKeys, error: Callable[[], Exception], lost: int) -> Table:
        real = self.table(keys)
        assert isinstance(real, MemoryTable)
        countdown = iter(range(lost))

        def after(operation: str, argument: object) -> None:
            if next(countdown, None) is not None:
                raise error()

        seen = MemoryTable(keys, after=after)
        seen.stored = real.stored
        return seen


class Dynamo(Form):
    """Whatever speaks DynamoDB's API."""

    def __init__(self, name: str, endpoint: str | None) -> None:
        super().__init__(name)
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in ({} if name == "aws" else _NO_ACCOUNT).items():
                patch.setenv(variable, value)
            self.client = dynamo_client(endpoint)

    def make(self, keys: TableKeys) -> DynamoTable:
        name = f"windlass-test-{uuid.uuid4().hex[:12]}"
        self.client.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[
                {"AttributeName": part.name, "KeyType": role}
                for part, role in zip(keys.attributes, ("HASH", "RANGE"), strict=False)
            ],
            AttributeDefinitions=[{"AttributeName": part.name, "AttributeType": part.type} for part in keys.attributes],
        )
        while self.client.describe_table(TableName=name)["Table"]["TableStatus"] != "ACTIVE":
            time.sleep(0.01 if self.name != "aws" else 1)
        return DynamoTable(name, keys, client=self.client)

    def declared(self, actual: TableKeys, keys: TableKeys) -> Table:
        return DynamoTable(self._name(actual), keys, client=self.client)

    def missing(self, keys: TableKeys) -> Table:
        return DynamoTable("windlass-test-missing", keys, client=self.client)

    def losing(self, keys: TableKeys, error: Callable[[], Exception], lost: int) -> Table:
        return DynamoTable(self._name(keys), keys, client=Losing(self.client, error, lost))

    def _name(self, keys: TableKeys) -> str:
        table = self.table(keys)
        assert isinstance(table, DynamoTable)
        return table.name

    def end(self) -> None:
        if self.name == "aws":
            for keys in self.tables:
                self.client.delete_table(TableName=self._name(keys))
        self.client.close()


class Moto(Dynamo):
    """In this process, and only while a test of it runs: other tests meet no mock."""

    def __init__(self) -> None:
        super().__init__("moto", None)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.tables.clear()
        with mock_aws():
            yield


class Independent(Dynamo):
    """A server process."""

    def __init__(self, name: str) -> None:
        self.server = Server(name)
        super().__init__(name, self.server.endpoint)

    def end(self) -> None:
        super().end()
        self.server.end()


_forms: dict[str, Form] = {}


def form(name: str) -> Form:
    """The form of that name, started on first use; skips the test where there is none."""
    if name not in _forms:
        _forms[name] = _start(name)
    return _forms[name]


def _start(name: str) -> Form:
    if name == "memory":
        return Memory(name)
    if name == "moto":
        return Moto()
    if name == "aws":
        return Dynamo(name, None)
    _need(name)
    return Independent(name)


def _need(name: str) -> None:
    """Skips where the server is not installed; under CI=true that is a failure."""
    if not (SERVERS / name / ".made-from").exists():
        word = f"no {name}: run .ci/servers.sh (Maven and a JDK for DynamoDB Local, npm for the others)"
        if os.environ.get("CI") == "true":
            pytest.fail(word)
        pytest.skip(word)


class Kinesis:
    """A Kinesis endpoint and a boto3 client of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._server: Any = None
        self.endpoint: str | None = None
        if name == "moto":
            from moto.server import ThreadedMotoServer

            self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            self._server.start()
            self.endpoint = "http://127.0.0.1:{1}".format(*self._server.get_host_and_port())
        elif name != "aws":
            _need(name)
            self._server = Server(name)
            self.endpoint = self._server.endpoint
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in ({} if name == "aws" else _NO_ACCOUNT).items():
                patch.setenv(variable, value)
            self.client = boto3.client("kinesis", endpoint_url=self.endpoint, config=_MANY_SHARDS)

    def end(self) -> None:
        self.client.close()
        if isinstance(self._server, Server):
            self._server.end()
        elif self._server is not None:
            self._server.stop()


_MANY_SHARDS = Config(max_pool_connections=32)
_kinesis: dict[str, Kinesis] = {}


def kinesis(name: str) -> Kinesis:
    """The Kinesis endpoint of that name, started on first use; skips the test where there is none."""
    if name not in _kinesis:
        _kinesis[name] = Kinesis(name)
    return _kinesis[name]


def end_all() -> None:
    """End what was started here."""
    while _forms:
        _forms.popitem()[1].end()
    while _kinesis:
        _kinesis.popitem()[1].end()


_keys = itertools.count(1)


def own_key() -> int:
    """A key that no other test of this process uses."""
    return next(_keys)
