"""Bringing a stack to CloudFormation: checked first, by change set, followed to its end, and taken back on Ctrl-C.

Rules of this file:
- What can be known beforehand is: credentials, region, the stack's state, names that are taken, a stream or table that
  should be there. Each is one line, before anything is made.
- What is made is taken back when it fails: the change set, the uploaded zip, a new stack whole. An updated stack is
  rolled back by CloudFormation. Only the bucket for code stays, as other stacks use it.
- From the change set's execution on, the zip goes only once the stack is seen to be without it: one that lives on needs
  it for its next rollback. What is said of a stack's state is what was found, never what was asked for.
- A change that would replace or remove a stream, table, bucket or event source mapping is refused unless it is told to.
- What a stack's state allows is the table `_NEXT`.

Sources: "CreateChangeSet", "Stack status codes", AWS CloudFormation API Reference and User Guide.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from windlass.deploy.package import Package
from windlass.deploy.problem import NO_CREDENTIALS, DeployProblem
from windlass.deploy.settings import AWS_STREAM_KEY, Settings
from windlass.table import DynamoTable, TableKeys, TableProblem

Clients = Callable[[str], Any]
"""boto3 clients by service name."""

TEMPLATE_BYTES_MAX = 51_200  # of TemplateBody: "AWS CloudFormation quotas"
POLL_S = 2.0
_FIRST_POLL_S = 0.1
_LOOKS_UNTIL_BEGUN = 6  # which is about two seconds
_HOLDS_DATA = ("AWS::Kinesis::Stream", "AWS::DynamoDB::Table", "AWS::S3::Bucket")
_MAPPING = "AWS::Lambda::EventSourceMapping"

_NEXT: Mapping[str, str] = {
    "": "CREATE",
    "REVIEW_IN_PROGRESS": "CREATE",
    **dict.fromkeys(("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE"), "UPDATE"),
    "UPDATE_ROLLBACK_FAILED": "repair it first: aws cloudformation continue-update-rollback --stack-name {stack}",
    "DELETE_FAILED": "remove it first: windlass destroy --stack {stack}",
    **dict.fromkeys(
        ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED"),
        "it never came up and cannot be updated; remove it first: windlass destroy --stack {stack}",
    ),
}
_NO_UPDATES = "No updates are to be performed"
_UNDER_WAY = "another operation on it is under way; wait for its end"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be brought."""

    stack: str
    body: str
    package: Package
    settings: Settings
    keys: TableKeys
    change_set: str
    """A name of its own, letters and digits."""
    code_bucket: str | None = None
    replace: bool = False
    """Take changes that replace or remove a stream, table, bucket or event source mapping."""


class Change(msgspec.Struct, frozen=True):
    """One line of a change set. `replacement` is True, False or Conditional, as CloudFormation says."""

    action: str
    resource: str
    type: str
    replacement: str


class Event(msgspec.Struct, frozen=True):
    """One resource's new state."""

    id: str
    resource: str
    type: str
    status: str
    reason: str
    name: str = ""

    @property
    def failed(self) -> bool:
        """Whether this is a cause of failure, and no consequence."""
        return self.status.endswith("_FAILED") and "cancelled" not in self.reason.lower()


class Watcher:
    """What is told of a deployment while it goes on; does nothing, to be overridden."""

    def step(self, text: str) -> None:
        """What begins now."""

    def changes(self, changes: list[Change]) -> None:
        """What will be done."""

    def event(self, event: Event) -> None:
        """What a resource came to."""


class _Ready(msgspec.Struct, frozen=True):
    """A change set to execute, and the events from before it."""

    change_set: str
    stack_id: str
    seen: set[str]


class Deployed(msgspec.Struct, frozen=True):
    """How it ended."""

    stack: str
    action: Literal["created", "updated", "unchanged"]
    resources: dict[str, str]


@contextlib.contextmanager
def clearly(doing: str) -> Iterator[None]:
    """Failures of AWS as one line that says what was being done."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        msg = f"{doing}: {NO_CREDENTIALS}"
        raise DeployProblem(msg) from None
    except ClientError as error:
        told = error.response.get("Error", {})
        msg = f"{doing}: {told.get('Code')}: {' '.join(str(told.get('Message')).split())}"
        raise DeployProblem(msg) from None
    except BotoCoreError as error:
        msg = f"{doing}: {' '.join(str(error).split())}"
        raise DeployProblem(msg) from None


def check_stack_name(name: str) -> None:
    """Raises DeployProblem for what CloudFormation does not take ("CreateStack", AWS CloudFormation API Reference)."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,127}", name):
        msg = f"--stack {name!r}: a stack's name is a letter and up to 127 more letters, digits and hyphens"
        raise DeployProblem(msg)


class Stack:
    """One stack by its name, and the clients it is reached by. `sleep` takes seconds."""

    def __init__(self, name: str, clients: Clients, sleep: Callable[[float], None]) -> None:
        self.name = name
        self._clients = clients
        self._sleep = sleep
        self._cloud = clients("cloudformation")

    @property
    def region(self) -> str:
        """Where it is, or would be."""
        return str(self._cloud.meta.region_name)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────

    def describe(self, stack_id: str | None = None) -> Mapping[str, Any]:
        """As CloudFormation describes it; empty where there is none."""
        try:
            with_id = stack_id or self.name
            described: Mapping[str, Any] = self._cloud.describe_stacks(StackName=with_id)["Stacks"][0]
        except ClientError as error:
            if "does not exist" in str(error):
                return {}
            raise
        return {} if described["StackStatus"] == "DELETE_COMPLETE" else described

    def own(self) -> dict[str, str]:
        """Physical names by logical name, of what the stack itself has made."""
        pages = self._cloud.get_paginator("list_stack_resources").paginate(StackName=self.name)
        return {
            each["LogicalResourceId"]: each["PhysicalResourceId"]
            for page in pages
            for each in page["StackResourceSummaries"]
            if each.get("PhysicalResourceId") and each.get("LogicalResourceId")
            # One that failed to be created may name what was there before the stack.
            if each.get("ResourceStatus") not in ("CREATE_FAILED", "DELETE_COMPLETE")
        }

    def resources(self) -> dict[str, str]:
        """The same, with what only the outputs know: the stream and table that were there before, the quarantine."""
        found = self.own()
        outputs = {each["OutputKey"]: each["OutputValue"] for each in self.describe().get("Outputs") or []}
        for logical, output in (("Stream", "StreamName"), ("Table", "TableName"), ("Quarantine", "Quarantine")):
            if logical not in found and output in outputs:
                found[logical] = outputs[output]
        return found

    def require(self, *, own: bool = False) -> dict[str, str]:
        """The resources of a stack that is there, or its own only. Raises DeployProblem."""
        with clearly(f"looking at stack {self.name}"):
            if not self.describe():
                msg = f"there is no stack {self.name} in {self.region}: windlass deploy makes it"
                raise DeployProblem(msg)
            return self.own() if own else self.resources()

    # ── deploying ───────────────────────────────────────────────────────────────────────────────────────────

    def deploy(self, request: Request, watcher: Watcher) -> Deployed:
        """Create or update it, and wait. Raises DeployProblem where that fails, with everything taken back."""
        with clearly(f"deploying stack {self.name}"):
            watcher.step("checking")
            account = self._clients("sts").get_caller_identity()["Account"]
            stack, action = self._action()
            present = self.own() if action == "UPDATE" else {}
            if not request.replace:
                refuse_renames(self._clients, request.settings, request.keys, present)
            check_names(self._clients, request.settings, request.keys, present, self.region)
            if stack:  # left by a change set that was never executed
                self._cloud.delete_stack(StackName=self.name)
            watcher.step("uploading the code")
            code = _Code(self._clients("s3"), request, account, self.region)
            code.upload()
            try:
                ready = self._ready(request, action, code, watcher)
            except BaseException:
                code.take_back()
                raise
            if ready is None:
                return Deployed(self.name, "unchanged", self.resources())
            self._execute(ready, action, code, watcher)
            return Deployed(self.name, "created" if action == "CREATE" else "updated", self.resources())

    def _action(self) -> tuple[str, str]:
        """The status that stands in a creation's way, and CREATE or UPDATE."""
        status = str(self.describe().get("StackStatus", ""))
        following = _NEXT.get(status, _UNDER_WAY)
        if following not in ("CREATE", "UPDATE"):
            msg = f"stack {self.name} is in state {status}: {following.format(stack=self.name)}"
            raise DeployProblem(msg)
        return (status if following == "CREATE" else ""), following

    def _ready(self, request: Request, action: str, code: "_Code", watcher: Watcher) -> "_Ready | None":
        """A change set that can be executed; None where there is nothing to change."""
        if len(request.body.encode()) > TEMPLATE_BYTES_MAX:
            msg = f"the template is {len(request.body.encode())} bytes; CloudFormation takes {TEMPLATE_BYTES_MAX}"
            raise DeployProblem(msg)
        watcher.step("preparing the changes")
        made = self._change_set(request, action, code)
        if made is None:
            return None
        change_set, stack_id = made["Id"], made["StackId"]
        try:
            changes = self._changes(change_set)
            if changes is not None:
                refuse_loss(changes, replace=request.replace)
                watcher.changes(changes)
            seen = {event.id for event in self._events(stack_id)}
        except BaseException:
            self._drop(change_set, action)
            raise
        if changes is None or (not changes and action == "UPDATE"):
            self._drop(change_set, action)
            return None
        return _Ready(change_set, stack_id, seen)

    def _change_set(self, request: Request, action: str, code: "_Code") -> Mapping[str, Any] | None:
        """A new change set; None where the endpoint says at once that there is nothing to change."""
        try:
            made: Mapping[str, Any] = self._cloud.create_change_set(
                StackName=self.name,
                ChangeSetName=f"windlass-{request.change_set}",
                ChangeSetType=action,
                TemplateBody=request.body,
                Parameters=[
                    {"ParameterKey": "CodeBucket", "ParameterValue": code.bucket},
                    {"ParameterKey": "CodeKey", "ParameterValue": code.key},
                ],
                Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
                Tags=[{"Key": key, "Value": value} for key, value in request.settings.tags.items()],
            )
        except ClientError as error:
            if _NO_UPDATES in str(error):
                return None
            raise
        return made

    def _changes(self, change_set: str) -> list[Change] | None:
        """What the change set would do, when it is ready; None: nothing."""
        for _ in self._polls():
            described = self._cloud.describe_change_set(ChangeSetName=change_set)
            if described["Status"] == "FAILED":
                reason = described.get("StatusReason", "")
                if "didn't contain changes" in reason or _NO_UPDATES in reason:
                    return None
                msg = f"CloudFormation refuses the changes to stack {self.name}: {' '.join(reason.split())}"
                raise DeployProblem(msg)
            if described["Status"] == "CREATE_COMPLETE":
                return list(self._all_changes(change_set, described))
        raise AssertionError

    def _all_changes(self, change_set: str, page: Mapping[str, Any]) -> Iterator[Change]:
        while True:
            for each in page["Changes"]:
                change = each["ResourceChange"]
                yield Change(
                    change["Action"],
                    change["LogicalResourceId"],
                    change["ResourceType"],
                    change.get("Replacement") or "",
                )
            if not page.get("NextToken"):
                return
            page = self._cloud.describe_change_set(ChangeSetName=change_set, NextToken=page["NextToken"])

    def _drop(self, change_set: str, action: str) -> None:
        """Forget a change set, and the empty stack that a first one makes."""
        self._cloud.delete_change_set(ChangeSetName=change_set)
        if action == "CREATE":
            self._cloud.delete_stack(StackName=self.name)

    def _execute(self, ready: "_Ready", action: str, code: "_Code", watcher: Watcher) -> None:
        """Carry the change set out. Raises DeployProblem where the stack does not come to what was wanted."""
        watcher.step("creating the stack" if action == "CREATE" else "updating the stack")
        goes_on = f"the stack goes on; see windlass status --stack {self.name}"
        try:
            with clearly(f"following stack {self.name}"):
                status, problem = self._follow(ready, action, watcher)
        except DeployProblem as lost:
            msg = f"{lost}; {goes_on}"
            raise DeployProblem(msg) from None
        except KeyboardInterrupt:  # a second one: nobody waits for the end
            msg = f"interrupted: {goes_on}"
            raise DeployProblem(msg) from None
        if status in ("", "UPDATE_ROLLBACK_COMPLETE"):
            code.take_back()
        if problem:
            raise DeployProblem(problem)

    def _follow(self, ready: "_Ready", action: str, watcher: Watcher) -> tuple[str, str]:
        """The status that it came to (empty: gone), and what is wrong with that; empty: nothing."""
        known = len(ready.seen)
        try:
            try:
                self._cloud.execute_change_set(ChangeSetName=ready.change_set)
            except ClientError as refused:
                self._drop(ready.change_set, action)  # fails where it is executed all the same
                told = " ".join(str(refused).split())
                return "", f"CloudFormation does not begin the changes to stack {self.name}: {told}"
            status, causes = self._wait(ready.stack_id, ready.seen, watcher)
            if status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
                return status, ""
            why = "; ".join(f"{event.resource}: {event.reason}" for event in causes[:3]) or f"it ended as {status}"
            if action == "CREATE":
                watcher.step("removing what was made")
                self._cloud.delete_stack(StackName=ready.stack_id)
                status, _ = self._wait(ready.stack_id, ready.seen, watcher)
        except KeyboardInterrupt:
            watcher.step("interrupted: taking it back")
            status = self._interrupt(ready, action, watcher)
            begun = len(ready.seen) > known
            found = self._found_as(status, action, begun=begun)
            return status, f"interrupted: stack {self.name} {found}{self._kept(ready, action)}"
        found = self._found_as(status, action)
        failed = f"stack {self.name} could not be {action.lower()}d, and {found}: {why}{self._kept(ready, action)}"
        return status, failed

    def _interrupt(self, ready: "_Ready", action: str, watcher: Watcher) -> str:
        """Take back what is under way, and the status that this came to."""
        if action == "CREATE":
            self._cloud.delete_stack(StackName=ready.stack_id)
        else:
            with contextlib.suppress(ClientError):  # it has ended in the meantime
                self._cloud.cancel_update_stack(StackName=ready.stack_id)
        return self._wait(ready.stack_id, ready.seen, watcher)[0]

    def _found_as(self, status: str, action: str, *, begun: bool = True) -> str:
        """In words how a stack is after something was taken back, and what there is to do."""
        following = _NEXT.get(status, _UNDER_WAY)
        then = "" if following in ("CREATE", "UPDATE") else f" ({following.format(stack=self.name)})"
        if action == "CREATE":
            return f"could not be removed: {status}{then}" if status else "is removed again"
        if status == "UPDATE_ROLLBACK_COMPLETE" or (following == "UPDATE" and not begun):
            return "is as it was before"
        if status == "UPDATE_COMPLETE":
            return "finished before it could be cancelled"
        return f"is {status or 'gone'}{then}"

    def _kept(self, ready: "_Ready", action: str) -> str:
        """In words what a removed new stack has left: `RetainExceptOnCreate` may keep what was whole before Ctrl-C."""
        events = self._events(ready.stack_id) if action == "CREATE" else []
        kept = [event for event in events if event.status == "DELETE_SKIPPED"]
        named = ", ".join(f"{event.resource.lower()} {event.name}" for event in kept)
        return f"; CloudFormation left {named}: remove that before the next try, or it is in the way" if kept else ""

    def _wait(self, stack_id: str, seen: set[str], watcher: Watcher) -> tuple[str, list[Event]]:
        """Until it rests: its status (empty: gone) and what failed on the way, first things first."""
        causes: list[Event] = []
        known = len(seen)
        for look, _ in enumerate(self._polls()):
            status = str(self.describe(stack_id).get("StackStatus", ""))
            for event in self._events(stack_id):
                if event.id not in seen:
                    seen.add(event.id)
                    watcher.event(event)
                    causes += [event] if event.failed else []
            # Right after it is asked, CloudFormation may still tell the status of before: an event shows the change.
            begun = len(seen) > known or look >= _LOOKS_UNTIL_BEGUN or not status
            if begun and not status.endswith("_IN_PROGRESS"):
                return status, causes
        raise AssertionError

    def _events(self, stack_id: str) -> list[Event]:
        """All events, oldest first; none of a stack that is gone without a trace."""
        try:
            pages = self._cloud.get_paginator("describe_stack_events").paginate(StackName=stack_id)
            told = [event for page in pages for event in page["StackEvents"]]
        except ClientError:
            return []
        return [
            Event(
                event["EventId"],
                event["LogicalResourceId"],
                event["ResourceType"],
                event["ResourceStatus"],
                event.get("ResourceStatusReason") or "",
                event.get("PhysicalResourceId") or "",
            )
            for event in reversed(told)
        ]

    def _polls(self) -> Iterator[None]:
        """Endless, with pauses that grow to POLL_S: what is local is fast."""
        pause = _FIRST_POLL_S
        while True:
            yield
            self._sleep(pause)
            pause = min(POLL_S, pause * 1.5)

    # ── removing ────────────────────────────────────────────────────────────────────────────────────────────

    def delete(self, watcher: Watcher) -> None:
        """Delete it and wait. Tables and buckets that it keeps are not touched. Raises DeployProblem."""
        with clearly(f"deleting stack {self.name}"):
            stack_id = self.describe().get("StackId")
            if not stack_id:
                return
            seen = {event.id for event in self._events(stack_id)}
            self._cloud.delete_stack(StackName=self.name)
            status, causes = self._wait(stack_id, seen, watcher)
            if status:
                why = "; ".join(f"{event.resource}: {event.reason}" for event in causes) or status
                msg = f"stack {self.name} could not be deleted whole: {why}"
                raise DeployProblem(msg)


def refuse_loss(changes: list[Change], *, replace: bool) -> None:
    """Raises DeployProblem where a change would begin anew with what holds data, or with the reading of a stream."""
    if replace:
        return
    _refuse_replaced([f"{each.resource} ({each.type})" for each in changes if each.type in _HOLDS_DATA and _lost(each)])
    # Conditional is what a mapping shows whenever its stream changes at all, so that alone is no loss.
    if any(each.type == _MAPPING and _lost(each) and each.replacement != "Conditional" for each in changes):
        msg = (
            "this would replace or remove the event source mapping: what is unread and the open windows are lost. "
            "Let it drain first, keep its stream and starting position, or say --replace"
        )
        raise DeployProblem(msg)


def _lost(change: Change) -> bool:
    return change.replacement in ("True", "Conditional") or change.action == "Remove"


def _refuse_replaced(lost: list[str]) -> None:
    if lost:
        msg = (
            f"this would replace or remove {', '.join(lost)}: the new one begins empty. Keep its name, "
            "keys and place, deploy a stack of another name, or say --replace"
        )
        raise DeployProblem(msg)


def refuse_renames(clients: Clients, settings: Settings, keys: TableKeys, present: Mapping[str, str]) -> None:
    """The same from what there is: not every endpoint says in its change set what it would replace.

    Raises DeployProblem for another name, or other keys, of a stream, table or bucket that the stack holds.
    """
    chosen = {"Stream": settings.stream, "Table": settings.table, "Bucket": settings.bucket}
    for logical, name in chosen.items():
        if name and logical in present and present[logical] != name:
            _refuse_replaced([f"{logical.lower()} {present[logical]} by {name}"])
    if "Table" in present and _found(lambda: clients("dynamodb").describe_table(TableName=present["Table"])):
        try:
            DynamoTable(present["Table"], keys, client=clients("dynamodb")).check()
        except TableProblem as problem:
            msg = f"{problem}. --replace puts a new, empty one in its place"
            raise DeployProblem(msg) from None


# ── the code's bucket ───────────────────────────────────────────────────────────────────────────────────────


class _Code:
    """The zip in S3, under its own SHA-256: an unchanged zip is an unchanged function."""

    def __init__(self, s3: Any, request: Request, account: str, region: str) -> None:
        self._s3, self._archive, self._account, self._region = s3, request.package.archive, account, region
        self.bucket = request.code_bucket or f"windlass-code-{account}-{region}"
        self._chosen = request.code_bucket is not None
        self.key = f"{request.stack}/{request.package.sha256}.zip"
        self._uploaded = False

    def upload(self) -> None:
        """Bring it there, unless it is."""
        place = {"Bucket": self.bucket, "ExpectedBucketOwner": self._account}
        if not self._there():
            self._make()
        try:
            self._s3.head_object(**place, Key=self.key)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey", "NotFound"):
                raise
            self._s3.put_object(**place, Key=self.key, Body=self._archive, ContentType="application/zip")
            self._uploaded = True

    def take_back(self) -> None:
        """Remove what this deployment brought."""
        if self._uploaded:
            with contextlib.suppress(ClientError, BotoCoreError):
                self._s3.delete_object(Bucket=self.bucket, Key=self.key)

    def _there(self) -> bool:
        try:
            self._s3.head_bucket(Bucket=self.bucket, ExpectedBucketOwner=self._account)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("403", "AccessDenied"):
                msg = f"the bucket {self.bucket} for code is not yours, or not allowed: name another with --code-bucket"
                raise DeployProblem(msg) from None
            if code not in ("404", "NoSuchBucket"):
                raise
            return False
        return True

    def _make(self) -> None:
        if self._chosen:
            msg = f"there is no bucket {self.bucket}: create it, or leave --code-bucket out"
            raise DeployProblem(msg)
        where = {} if self._region == "us-east-1" else {"LocationConstraint": self._region}
        self._s3.create_bucket(Bucket=self.bucket, **({"CreateBucketConfiguration": where} if where else {}))
        blocked = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
        self._s3.put_public_access_block(
            Bucket=self.bucket, PublicAccessBlockConfiguration=dict.fromkeys(blocked, True)
        )


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────


def check_names(clients: Clients, settings: Settings, keys: TableKeys, present: Mapping[str, str], region: str) -> None:
    """New names must be free, given ARNs must lead to what is needed. Raises DeployProblem."""
    check = _Names(clients, keys, region, settings.stream_key)
    lookups: tuple[tuple[str, str | None, Callable[[str], None]], ...] = (
        ("Stream", settings.stream, check.stream),
        ("Table", settings.table, check.table),
        ("Function", settings.function, check.function),
        ("FunctionRole", settings.role, check.role),
        ("Bucket", settings.bucket, check.bucket),
    )
    for logical, name, look in lookups:
        if name and present.get(logical) != name:
            look(name)


class _Names:
    """One look-up per kind of name."""

    def __init__(self, clients: Clients, keys: TableKeys, region: str, stream_key: str | None) -> None:
        self._clients, self._keys, self._region, self._stream_key = clients, keys, region, stream_key

    def stream(self, name: str) -> None:
        place = {"StreamARN": name} if name.startswith("arn:") else {"StreamName": name}
        self._same_region("stream", name)
        found = _found(lambda: self._clients("kinesis").describe_stream_summary(**place))
        if name.startswith("arn:"):
            if not found:
                msg = f"there is no stream {name}: give the ARN of one that exists, or a name for a new one"
                raise DeployProblem(msg)
            status = found["StreamDescriptionSummary"]["StreamStatus"]
            if status not in ("ACTIVE", "UPDATING"):
                msg = f"stream {name} is {status}: wait until it is ACTIVE"
                raise DeployProblem(msg)
            self._check_key(name, found["StreamDescriptionSummary"].get("KeyId", AWS_STREAM_KEY))
        elif found:
            arn = found["StreamDescriptionSummary"]["StreamARN"]
            raise DeployProblem(_taken("stream", name, f'read it with stream = "{arn}"'))

    def _check_key(self, name: str, key: str) -> None:
        """A key of the account's own must be one that the role may use: Lambda reads the stream as the function."""
        key_arn = None
        if key != AWS_STREAM_KEY:
            try:
                described = self._clients("kms").describe_key(KeyId=key)["KeyMetadata"]
            except ClientError as error:
                if error.response["Error"]["Code"] == "AccessDeniedException":
                    return  # not for us to see: then the setting is taken as it is
                raise
            key_arn = described["Arn"] if described["KeyManager"] == "CUSTOMER" else None
        if key_arn != self._stream_key:
            told = f'say stream_key = "{key_arn}"' if key_arn else "leave stream_key out"
            msg = f"stream {name} is encrypted with {key_arn or 'the key of AWS, or not at all'}: {told}"
            raise DeployProblem(msg)

    def table(self, name: str) -> None:
        self._same_region("table", name)
        bare = name.rpartition("/")[2]
        found = _found(lambda: self._clients("dynamodb").describe_table(TableName=bare))
        if name.startswith("arn:") and not found:
            msg = f"there is no table {name}: give the ARN of one that exists, or a name for a new one"
            raise DeployProblem(msg)
        if not found:
            return
        try:
            DynamoTable(bare, self._keys, client=self._clients("dynamodb")).check()
        except TableProblem as problem:
            raise DeployProblem(str(problem)) from None
        if not name.startswith("arn:"):
            raise DeployProblem(_taken("table", name, f'write to it with table = "{found["Table"]["TableArn"]}"'))

    def function(self, name: str) -> None:
        if _found(lambda: self._clients("lambda").get_function(FunctionName=name)):
            raise DeployProblem(_taken("function", name))
        log = f"/aws/lambda/{name}"
        groups = self._clients("logs").describe_log_groups(logGroupNamePrefix=log)["logGroups"]
        if any(group["logGroupName"] == log for group in groups):
            msg = (
                f"the log group {log} exists already, outside this stack, as one that was removed leaves it: "
                "delete that group, or choose another name with --set function=NAME"
            )
            raise DeployProblem(msg)

    def role(self, name: str) -> None:
        if _found(lambda: self._clients("iam").get_role(RoleName=name)):
            raise DeployProblem(_taken("role", name))

    def bucket(self, name: str) -> None:
        try:
            taken = _found(lambda: self._clients("s3").head_bucket(Bucket=name))
        except ClientError:  # not allowed to look: somebody else's
            taken = True
        if taken:
            raise DeployProblem(_taken("bucket", name))

    def _same_region(self, kind: str, name: str) -> None:
        if name.startswith("arn:") and name.split(":")[3] != self._region:
            msg = f"{kind} {name} is in {name.split(':')[3]}, the stack would be in {self._region}: give that --region"
            raise DeployProblem(msg)


def _found(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("404", "NoSuchBucket", "NoSuchEntity", "ResourceNotFoundException"):
            return None
        raise


def _taken(kind: str, name: str, instead: str = "") -> str:
    return f"the {kind} {name} exists already, outside this stack: " + (
        f"{instead}, or choose another name" if instead else f"choose another name with --set {kind}=NAME, or remove it"
    )
