"""Stacks that do not come to be: each state and failure, Ctrl-C, losses refused, and nothing half-made left behind."""

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from windlass.deploy.package import Package
from windlass.deploy.problem import DeployProblem
from windlass.deploy.settings import Settings
from windlass.deploy.source import Target
from windlass.deploy.stack import Change, Event, Request, Stack, Watcher, refuse_loss
from windlass.table import TableKeys

REQUEST = Request(
    stack="taxi",
    body="Resources: {}",
    package=Package(b"zip", "ab" * 32, "app.handler", Target(), [], []),
    settings=Settings(),
    keys=TableKeys.history("vendorId", "N"),
    change_set="one",
)
CODE = f"windlass-code-123456789012-us-east-1/taxi/{'ab' * 32}.zip"


def refusal(code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "Operation")


class Aws:
    """CloudFormation, S3 and STS as a script: what each describes in turn, and what it was asked."""

    class meta:
        region_name = "us-east-1"

    def __init__(self, statuses: list[Any], events: list[tuple[str, str, str]] = (), change_set: Any = None) -> None:
        self.statuses = statuses  # of the stack, look by look; "" where there is none; the last one stays
        self.events = events
        self.change_set = change_set or {"Status": "CREATE_COMPLETE", "Changes": [change("Add", "Function")]}
        self.asked: list[str] = []
        self.objects: set[str] = set()
        self.buckets: set[str] = set()
        self.summaries: list[dict[str, str]] = []
        self.fails: dict[str, BaseException] = {}  # by operation

    def __call__(self, service: str) -> "Aws":
        return self

    def get_caller_identity(self):
        return {"Account": "123456789012"}

    # CloudFormation

    def describe_stacks(self, StackName):
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, BaseException):
            raise status
        if not status:
            raise refusal("ValidationError", f"Stack with id {StackName} does not exist")
        return {"Stacks": [{"StackStatus": status, "StackId": "arn:stack"}]}

    def create_change_set(self, **request):
        self.asked.append(f"create_change_set {request['ChangeSetType']}")
        return {"Id": "arn:change-set", "StackId": "arn:stack"}

    def describe_change_set(self, **_):
        if isinstance(self.change_set, BaseException):
            raise self.change_set
        return self.change_set

    def __getattr__(self, name):
        if name not in ("execute_change_set", "delete_change_set", "delete_stack", "cancel_update_stack"):
            raise AttributeError(name)

        def noted(**_):
            self.asked.append(name)
            if name in self.fails:
                raise self.fails[name]

        return noted

    def get_paginator(self, operation):
        pages = {
            "list_stack_resources": [{"StackResourceSummaries": self.summaries}],
            "describe_stack_events": [{"StackEvents": [_event(*each) for each in reversed(self.events)]}],
        }
        aws = self

        class Pages:
            def paginate(self, **_):
                started = "execute_change_set" in aws.asked
                return pages[operation] if operation != "describe_stack_events" or started else [{"StackEvents": []}]

        return Pages()

    # S3

    def head_bucket(self, Bucket, **_):
        if Bucket not in self.buckets:
            raise refusal("404")

    def create_bucket(self, Bucket, **_):
        self.buckets.add(Bucket)

    def put_public_access_block(self, **_):
        pass

    def head_object(self, Bucket, Key, **_):
        if f"{Bucket}/{Key}" not in self.objects:
            raise refusal("404")

    def put_object(self, Bucket, Key, **_):
        self.objects.add(f"{Bucket}/{Key}")

    def delete_object(self, Bucket, Key):
        self.objects.discard(f"{Bucket}/{Key}")


def _event(resource: str, status: str, reason: str) -> dict[str, Any]:
    return {
        "EventId": f"{resource} {status}",
        "LogicalResourceId": resource,
        "ResourceType": "AWS::It",
        "ResourceStatus": status,
        "ResourceStatusReason": reason,
        "PhysicalResourceId": f"the-{resource.lower()}",
    }


def change(
    action: str, resource: str, kind: str = "AWS::Lambda::Function", replacement: str = "False"
) -> dict[str, Any]:
    plain = {"Action": action, "LogicalResourceId": resource, "ResourceType": kind, "Replacement": replacement}
    return {"ResourceChange": plain}


class Told(Watcher):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.events: list[Event] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def event(self, event: Event) -> None:
        self.events.append(event)


def deploy(aws: Aws, told: Told | None = None, sleep: Any = lambda seconds: None) -> Any:
    return Stack("taxi", aws, sleep).deploy(REQUEST, told or Told())


def refused(aws: Aws, **more: Any) -> str:
    with pytest.raises(DeployProblem) as raised:
        deploy(aws, **more)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ── what a stack's state allows ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("ROLLBACK_COMPLETE", "never came up and cannot be updated; remove it first: windlass destroy --stack taxi"),
        ("ROLLBACK_FAILED", "never came up"),
        ("CREATE_FAILED", "never came up"),
        ("DELETE_FAILED", "remove it first: windlass destroy --stack taxi"),
        ("UPDATE_ROLLBACK_FAILED", "aws cloudformation continue-update-rollback --stack-name taxi"),
        ("UPDATE_IN_PROGRESS", "another operation on it is under way"),
        ("DELETE_IN_PROGRESS", "another operation on it is under way"),
        ("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS", "another operation on it is under way"),
    ],
)
def test_a_stack_in_a_state_that_forbids_it_is_one_line_and_nothing_is_made(status, text):
    aws = Aws([status])
    said = refused(aws)
    assert said.startswith(f"stack taxi is in state {status}: ")
    assert text in said
    assert (aws.asked, aws.objects) == ([], set())


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        (["", "CREATE_IN_PROGRESS", "CREATE_COMPLETE"], "CREATE"),
        (["CREATE_COMPLETE", "UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"], "UPDATE"),
        (["UPDATE_ROLLBACK_COMPLETE", "UPDATE_COMPLETE"], "UPDATE"),
        (["DELETE_COMPLETE", "CREATE_COMPLETE"], "CREATE"),
    ],
)
def test_a_stack_is_created_or_updated_by_its_state(statuses, kind):
    aws = Aws(statuses)
    assert deploy(aws).action == ("created" if kind == "CREATE" else "updated")
    assert aws.asked == [f"create_change_set {kind}", "execute_change_set"]
    assert aws.objects == {CODE}


def test_what_an_abandoned_change_set_left_is_removed_first():
    aws = Aws(["REVIEW_IN_PROGRESS", "CREATE_COMPLETE"])
    assert deploy(aws).action == "created"
    assert aws.asked == ["delete_stack", "create_change_set CREATE", "execute_change_set"]


def test_an_update_without_changes_leaves_everything_as_it_is():
    none = {"Status": "FAILED", "StatusReason": "The submitted information didn't contain changes. Submit different."}
    aws = Aws(["CREATE_COMPLETE"], change_set=none)
    assert deploy(aws).action == "unchanged"
    assert aws.asked == ["create_change_set UPDATE", "delete_change_set"]


def test_what_a_stack_never_got_or_no_longer_has_is_not_its_own():
    aws = Aws(["CREATE_COMPLETE"])
    found = {
        "Stream": "CREATE_COMPLETE",
        "Table": "CREATE_FAILED",
        "Bucket": "DELETE_COMPLETE",
        "Function": "UPDATE_FAILED",
    }
    aws.summaries = [
        {"LogicalResourceId": logical, "PhysicalResourceId": logical.lower(), "ResourceStatus": status}
        for logical, status in found.items()
    ]
    assert Stack("taxi", aws, lambda seconds: None).own() == {"Stream": "stream", "Function": "function"}


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────

FAILED = [
    ("Table", "CREATE_FAILED", "kinesisAggs already exists"),
    ("Stream", "CREATE_FAILED", "Resource creation cancelled"),
    ("taxi", "ROLLBACK_COMPLETE", ""),
]


def test_a_creation_that_fails_says_the_cause_and_is_removed_whole():
    aws, told = Aws(["", "CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE", ""], FAILED), Told()
    said = refused(aws, told=told)
    assert said == "stack taxi could not be created, and is removed again: Table: kinesisAggs already exists"
    assert aws.asked[-1] == "delete_stack"
    assert aws.objects == set()
    assert [event.resource for event in told.events] == ["Table", "Stream", "taxi"]


def test_an_update_that_fails_says_the_cause_and_is_left_to_cloudformations_rollback():
    aws = Aws(["CREATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"], [("Mapping", "UPDATE_FAILED", "no such window")])
    assert refused(aws) == "stack taxi could not be updated, and is as it was before: Mapping: no such window"
    assert "delete_stack" not in aws.asked
    assert aws.objects == set()


def test_a_rollback_that_fails_is_said_and_the_code_of_what_lives_on_stays():
    aws = Aws(["CREATE_COMPLETE", "UPDATE_ROLLBACK_FAILED"], [("Mapping", "UPDATE_FAILED", "no such window")])
    assert refused(aws) == (
        "stack taxi could not be updated, and is UPDATE_ROLLBACK_FAILED (repair it first: "
        "aws cloudformation continue-update-rollback --stack-name taxi): Mapping: no such window"
    )
    assert aws.objects == {CODE}


def test_a_failed_creation_that_cannot_be_removed_is_said_and_keeps_its_code():
    aws = Aws(["", "CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE", "DELETE_FAILED"], FAILED)
    assert refused(aws) == (
        "stack taxi could not be created, and could not be removed: DELETE_FAILED "
        "(remove it first: windlass destroy --stack taxi): Table: kinesisAggs already exists"
    )
    assert aws.objects == {CODE}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EndpointConnectionError(endpoint_url="https://cloud"), "Could not connect to the endpoint URL"),
        (refusal("ExpiredToken", "The security token has expired"), "ExpiredToken: The security token has expired"),
    ],
)
@pytest.mark.parametrize("before", ["", "CREATE_COMPLETE"])
def test_a_stack_that_is_lost_from_sight_goes_on_with_its_code(before, error, text):
    aws = Aws([before, "UPDATE_IN_PROGRESS", error])
    said = refused(aws)
    assert text in said
    assert said.endswith("; the stack goes on; see windlass status --stack taxi")
    assert aws.asked[-1] == "execute_change_set"
    assert aws.objects == {CODE}


@pytest.mark.parametrize(("before", "dropped"), [("", ["delete_stack"]), ("CREATE_COMPLETE", [])])
def test_an_execution_that_is_refused_leaves_no_change_set_and_no_code(before, dropped):
    aws = Aws([before])
    aws.fails["execute_change_set"] = refusal("AccessDenied", "not authorized")
    said = refused(aws)
    assert said.startswith("CloudFormation does not begin the changes to stack taxi: ")
    assert "not authorized" in said
    assert aws.asked[1:] == ["execute_change_set", "delete_change_set", *dropped]
    assert aws.objects == set()


def test_a_change_set_that_is_refused_leaves_neither_stack_nor_code():
    aws = Aws([""], change_set={"Status": "FAILED", "StatusReason": "Template error:\n no resource Tabel"})
    assert refused(aws) == "CloudFormation refuses the changes to stack taxi: Template error: no resource Tabel"
    assert aws.asked == ["create_change_set CREATE", "delete_change_set", "delete_stack"]
    assert aws.objects == set()


def test_code_that_was_there_before_stays_when_a_deployment_fails():
    aws = Aws(["CREATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"], FAILED)
    aws.buckets.add(CODE.partition("/")[0])
    aws.objects.add(CODE)
    refused(aws)
    assert aws.objects == {CODE}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NoCredentialsError(), "no AWS credentials; run aws configure"),
        (refusal("ExpiredToken", "The security token\nhas expired"), "ExpiredToken: The security token has expired"),
        (refusal("AccessDenied", "not authorized"), "deploying stack taxi: AccessDenied: not authorized"),
    ],
)
def test_what_aws_refuses_is_one_line(error, text):
    assert text in refused(Aws([error]))


def test_a_bucket_for_code_that_is_somebody_elses_is_refused():
    aws = Aws([""])
    aws.head_bucket = lambda **_: (_ for _ in ()).throw(refusal("403"))
    assert "is not yours, or not allowed: name another with --code-bucket" in refused(aws)


# ── Ctrl-C ──────────────────────────────────────────────────────────────────────────────────────────────────


def interrupted_at(number: int) -> Any:
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == number:
            raise KeyboardInterrupt

    return sleep


def test_ctrl_c_during_a_creation_removes_the_stack_and_the_code():
    aws = Aws(["", "CREATE_IN_PROGRESS", "DELETE_IN_PROGRESS", ""])
    assert refused(aws, sleep=interrupted_at(1)) == "interrupted: stack taxi is removed again"
    assert aws.asked == ["create_change_set CREATE", "execute_change_set", "delete_stack"]
    assert aws.objects == set()


def test_ctrl_c_during_a_creation_names_what_cloudformation_left():
    events = [("Function", "DELETE_COMPLETE", ""), ("Table", "DELETE_SKIPPED", ""), ("Bucket", "DELETE_SKIPPED", "")]
    aws = Aws(["", "CREATE_IN_PROGRESS", "DELETE_IN_PROGRESS", ""], events)
    assert refused(aws, sleep=interrupted_at(1)) == (
        "interrupted: stack taxi is removed again; CloudFormation left table the-table, bucket the-bucket: "
        "remove that before the next try, or it is in the way"
    )


def test_ctrl_c_during_an_update_cancels_it_and_waits():
    aws = Aws(["CREATE_COMPLETE", "UPDATE_IN_PROGRESS", "UPDATE_ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_COMPLETE"])
    assert refused(aws, sleep=interrupted_at(1)) == "interrupted: stack taxi is as it was before"
    assert aws.asked == ["create_change_set UPDATE", "execute_change_set", "cancel_update_stack"]
    assert aws.objects == set()


@pytest.mark.parametrize("fails", [{}, {"cancel_update_stack": refusal("ValidationError", "cannot be called")}])
def test_ctrl_c_that_comes_too_late_for_an_update_says_so_and_keeps_its_code(fails):
    aws = Aws(["CREATE_COMPLETE", "UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"], [("taxi", "UPDATE_IN_PROGRESS", "")])
    aws.fails = fails
    said = refused(aws, sleep=interrupted_at(1))
    assert said == "interrupted: stack taxi finished before it could be cancelled"
    assert aws.objects == {CODE}


def test_ctrl_c_during_a_creation_that_cannot_be_removed_says_its_state_and_keeps_its_code():
    aws = Aws(
        ["", "CREATE_IN_PROGRESS", "DELETE_IN_PROGRESS", "DELETE_FAILED"], [("Stream", "DELETE_FAILED", "in use")]
    )
    said = refused(aws, sleep=interrupted_at(1))
    assert said.startswith("interrupted: stack taxi could not be removed: DELETE_FAILED (remove it first: ")
    assert aws.objects == {CODE}


def test_ctrl_c_while_the_execution_is_asked_for_takes_it_back_too():
    aws = Aws(["", "DELETE_IN_PROGRESS", ""])
    aws.fails["execute_change_set"] = KeyboardInterrupt()
    assert refused(aws) == "interrupted: stack taxi is removed again"
    assert aws.asked[-1] == "delete_stack"
    assert aws.objects == set()


def test_ctrl_c_before_an_update_has_begun_leaves_the_stack_as_it_was():
    aws = Aws(["UPDATE_COMPLETE"])
    aws.fails["execute_change_set"] = KeyboardInterrupt()
    assert refused(aws) == "interrupted: stack taxi is as it was before"


def test_a_second_ctrl_c_leaves_the_stack_to_itself_with_its_code():
    def always(seconds: float) -> None:
        raise KeyboardInterrupt

    aws = Aws(["CREATE_COMPLETE", "UPDATE_IN_PROGRESS"])
    said = refused(aws, sleep=always)
    assert said == "interrupted: the stack goes on; see windlass status --stack taxi"
    assert aws.objects == {CODE}


def test_ctrl_c_before_anything_is_executed_leaves_nothing():
    aws = Aws([""], change_set={"Status": "CREATE_IN_PROGRESS"})
    with pytest.raises(KeyboardInterrupt):
        deploy(aws, sleep=interrupted_at(2))
    assert aws.asked == ["create_change_set CREATE", "delete_change_set", "delete_stack"]
    assert aws.objects == set()


def test_the_status_of_before_is_not_taken_for_the_end():
    told = Told()
    begun = [("taxi", "UPDATE_IN_PROGRESS", ""), ("taxi", "UPDATE_COMPLETE", "")]
    aws = Aws(["CREATE_COMPLETE", "CREATE_COMPLETE", "CREATE_COMPLETE", "UPDATE_COMPLETE"], [])
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        aws.events = begun if len(looks) == 2 else aws.events

    assert deploy(aws, told, sleep).action == "updated"
    assert [event.status for event in told.events] == ["UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"]


# ── losses ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["AWS::Kinesis::Stream", "AWS::DynamoDB::Table", "AWS::S3::Bucket"])
@pytest.mark.parametrize(("action", "replacement"), [("Modify", "True"), ("Modify", "Conditional"), ("Remove", "")])
def test_a_change_that_would_lose_data_is_refused_unless_it_is_told_to(kind, action, replacement):
    lossy = [Change(action, "It", kind, replacement), Change("Modify", "Function", "AWS::Lambda::Function", "True")]
    with pytest.raises(DeployProblem, match=r"would replace or remove It \(AWS::"):
        refuse_loss(lossy, replace=False)
    refuse_loss(lossy, replace=True)
    refuse_loss([Change("Modify", "It", kind, "False"), lossy[1]], replace=False)


MAPPING = "AWS::Lambda::EventSourceMapping"


@pytest.mark.parametrize(("action", "replacement"), [("Modify", "True"), ("Remove", "")])
def test_a_change_that_would_lose_what_is_unread_is_refused_unless_it_is_told_to(action, replacement):
    lossy = [Change(action, "Mapping", MAPPING, replacement)]
    with pytest.raises(DeployProblem, match="what is unread and the open windows are lost"):
        refuse_loss(lossy, replace=False)
    refuse_loss(lossy, replace=True)


def test_a_mapping_whose_stream_changes_in_place_is_no_loss():
    stream = Change("Modify", "Stream", "AWS::Kinesis::Stream", "False")
    refuse_loss([stream, Change("Modify", "Mapping", MAPPING, "Conditional")], replace=False)


def test_a_loss_leaves_the_stack_as_it_is():
    table = {"Status": "CREATE_COMPLETE", "Changes": [change("Modify", "Table", "AWS::DynamoDB::Table", "True")]}
    aws = Aws(["CREATE_COMPLETE"], change_set=table)
    assert "the new one begins empty" in refused(aws)
    assert aws.asked == ["create_change_set UPDATE", "delete_change_set"]
