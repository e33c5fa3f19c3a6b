"""Looking at what a stack does: every item of a key, whatever its number, and each line of a log once."""

from decimal import Decimal
from typing import Any

import pytest

from windlass.deploy.problem import DeployProblem
from windlass.deploy.status import log_lines, newest

DESCRIBED = {
    "AttributeDefinitions": [
        {"AttributeName": "price", "AttributeType": "N"},
        {"AttributeName": "windowStart", "AttributeType": "S"},
    ],
    "KeySchema": [{"AttributeName": "price", "KeyType": "HASH"}, {"AttributeName": "windowStart", "KeyType": "RANGE"}],
}


@pytest.fixture
def dynamodb(monkeypatch):
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    return boto3.client("dynamodb", region_name="us-east-1", endpoint_url="http://127.0.0.1:9")


def item(second: int) -> dict[str, Any]:
    return {"price": {"N": "1.5"}, "windowStart": {"S": f"2026-01-01T00:00:0{second}Z"}}


def paged(dynamodb: Any, asked: list[Any]) -> Any:
    """The client with answers of two items each, from the newest on."""
    from botocore.stub import ANY, Stubber

    stub = Stubber(dynamodb)
    stub.add_response("describe_table", {"Table": DESCRIBED})
    for newest_second in asked:
        last = item(newest_second - 1)
        answer = {"Items": [item(newest_second), last], "LastEvaluatedKey": last}
        expected = {
            "TableName": "totals",
            "KeyConditionExpression": "#key = :key",
            "ExpressionAttributeNames": {"#key": "price"},
            "ExpressionAttributeValues": {":key": {"N": "1.5"}},
            "ScanIndexForward": False,
            "ConsistentRead": True,
            "Limit": 3,
        }
        more = {} if newest_second == asked[0] else {"ExclusiveStartKey": ANY}
        stub.add_response("query", answer, expected | more)
    stub.activate()
    return stub


def test_the_newest_items_of_a_key_are_read_over_pages_up_to_the_limit(dynamodb):
    stub = paged(dynamodb, [8, 6])
    _, items = newest("totals", lambda service: dynamodb, limit=3, key="1.50")
    assert [each["windowStart"][-3:-1] for each in items] == ["08", "07", "06"]
    assert {each["price"] for each in items} == {Decimal("1.5")}
    stub.assert_no_pending_responses()


@pytest.mark.parametrize("key", ["one", "NaN", "1E+999", ""])
def test_a_key_that_is_no_number_of_dynamodbs_is_one_line(dynamodb, key):
    paged(dynamodb, [])
    with pytest.raises(DeployProblem, match="the key price of table totals is a number"):
        newest("totals", lambda service: dynamodb, limit=3, key=key)


class Logs:
    """A log whose every read gives what lies from the asked time on."""

    def __init__(self, times: list[int]) -> None:
        self.events = [{"eventId": str(place), "timestamp": at, "message": ""} for place, at in enumerate(times)]

    def __call__(self, service: str) -> Any:
        return self

    def get_paginator(self, operation: str) -> Any:
        return self

    def paginate(self, *, startTime: int, **_: Any) -> Any:
        yield {"events": [event for event in self.events if event["timestamp"] >= startTime]}


@pytest.mark.parametrize("times", [[1_000_000] * 100_001, [0, 20_000, 40_000, 70_000]], ids=["many", "spread"])
def test_following_a_log_tells_each_line_once(times):
    rounds = iter(range(3))
    logs = Logs(times)

    def again(seconds: float) -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        told.extend(log_lines("group", logs, since_ms=0, follow=True, sleep=again))
    assert len(told) == len(times)
