"""moto's DynamoDB under one lock: no merge is lost between another's condition and effect."""

from concurrent.futures import ThreadPoolExecutor

import boto3
from moto import mock_aws

from windlass.core.contribution import Contribution
from windlass.core.position import position
from windlass.core.window import Window
from windlass.local.whole_writes import whole_writes
from windlass.table import DynamoTable, TableKeys

KEYS = TableKeys.history("vendorId", "N")


def contribution(shard, number):
    here = position(str(number))
    return Contribution({"vendorId": 1}, Window(0, 30_000), f"s-{shard}", here, here, {"n": 1})


def test_eight_writers_into_one_item_lose_nothing(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    with mock_aws(), whole_writes():
        client = boto3.client("dynamodb", region_name="us-east-1")
        client.create_table(
            TableName="t",
            AttributeDefinitions=[
                {"AttributeName": "vendorId", "AttributeType": "N"},
                {"AttributeName": "windowStart", "AttributeType": "S"},
            ],
            KeySchema=[
                {"AttributeName": "vendorId", "KeyType": "HASH"},
                {"AttributeName": "windowStart", "KeyType": "RANGE"},
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        table = DynamoTable("t", KEYS, client=client)

        def write(shard):
            for number in range(1, 11):
                table.merge(contribution(shard, number))

        with ThreadPoolExecutor(8) as writers:
            list(writers.map(write, range(8)))

        (item,) = table.items()
        assert item["n"] == 80


def test_motos_own_methods_are_back_afterwards():
    from moto.dynamodb.models import DynamoDBBackend

    before = DynamoDBBackend.update_item
    with whole_writes():
        assert DynamoDBBackend.update_item is not before

    assert DynamoDBBackend.update_item is before
