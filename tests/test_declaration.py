"""A declaration that cannot work fails when it is made, and says what to do."""

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest

import windlass
from windlass import Count, Length, Max, Mean, Min, Range, Record, Records, Sum, Windows


class Device(Record):
    id: str
    room: str | None = None


class Trip(Record):
    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]
    flag: Literal["N", "Y"] = "N"
    name: str = ""
    fare: Decimal | None = None
    miles: float = 0.0
    paid: bool = False


class Build(Record):
    version: str
    windowStart: str
    applied: int
    device: str
    grade: Literal["", "A"]


class Reading(Record):
    device: Device
    value: float


def declare(record: Any = Trip, **changed: Any) -> Windows:
    usual: dict[str, Any] = {
        "key": "vendorId",
        "every": timedelta(seconds=30),
        "totals": {"passenger": Sum("passengerCount"), "trips": Count()},
        "table": "kinesisAggs",
    }
    return Windows(record, **(usual | changed))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"key": "vendor"}, "key names 'vendor', which Trip does not declare; it declares vendorId, passengerCount"),
        ({"key": []}, "has a key"),
        ({"key": 5}, "has a key: the name of a field, or of several; found [5]"),
        ({"key": None}, "has a key"),
        ({"every": 30}, "every is a timedelta, like timedelta(seconds=30); found 30"),
        ({"totals": [Count()]}, "totals is names and totals, like"),
        ({"table": ""}, "table is the name of a table, or env"),
        ({"table": None}, "table is the name of a table, or env"),
        ({"key": ["vendorId", "vendorId"]}, "names each field once"),
        ({"key": "miles"}, "key field miles is a float"),
        ({"key": "paid"}, "key field paid is a bool"),
        ({"key": "fare"}, "key field fare may be null or absent"),
        ({"key": "name"}, "key field name may be null or absent"),
        ({"every": timedelta(seconds=0)}, "1 to 900 whole seconds"),
        ({"every": timedelta(seconds=901)}, "1 to 900 whole seconds"),
        ({"every": timedelta(milliseconds=1500)}, "1 to 900 whole seconds"),
        ({"every": timedelta(seconds=899, microseconds=1)}, "found 899.000001 s"),
        ({"totals": {}}, "has totals"),
        ({"totals": {str(n): Mean("miles") for n in range(125)}}, "make 254 attributes; DynamoDB updates at most 250"),
        ({"totals": {"x": Sum("none")}}, "names 'none', which Trip does not declare"),
        ({"totals": {"x": Sum("name")}}, "name is a str: Sum needs a number"),
        ({"totals": {"x": Max("flag")}}, "flag is a choice: Max needs a number"),
        ({"totals": {1: Count()}}, "a total has a name, the attribute that it is stored under; found 1"),
        ({"totals": {"x": Sum(["miles"])}}, "names ['miles'], which Trip does not declare"),
        ({"totals": {"x": Sum("miles", decimals="2")}}, "keeps '2' decimals: 0 to 28"),
        ({"totals": {"x": "count"}}, "use Count"),
        ({"totals": {"x": Count}}, "use Count"),
        ({"totals": {"vendorId": Count()}}, "named like an attribute of the key"),
        ({"totals": {"windowStart": Count()}}, "named like an attribute of Windlass"),
        ({"totals": {"applied#x": Count()}}, "named like an attribute of Windlass"),
        ({"totals": {"": Count()}}, "named like an attribute"),
        ({"totals": {"a": Mean("miles"), "a#sum": Count()}}, "total 'a' and total 'a#sum' are both stored as 'a#sum'"),
        ({"totals": {"applied": Mean("miles")}}, "stored as 'applied#sum', like an attribute of Windlass"),
        ({"record": Build, "key": "version"}, "'version' is named like an attribute that Windlass writes"),
        ({"record": Build, "key": ["device", "version"]}, "'version' is named like an attribute that Windlass writes"),
        ({"record": Build, "key": "windowStart"}, "'windowStart' is named like an attribute that Windlass writes"),
        ({"record": Build, "key": ["applied", "device"]}, "'applied#device' is named like an attribute"),
        ({"record": Build, "key": "grade", "totals": {"n": Count()}}, "grade may be '': DynamoDB takes keys"),
        ({"totals": {"x": Sum("miles", decimals=29)}}, "0 to 28"),
        ({"state_bytes_max": 1_000_001}, "state_bytes_max is 1 to 1000000 bytes"),
        ({"state_bytes_max": 0}, "state_bytes_max is 1 to 1000000 bytes"),
        ({"state_bytes_max": "1"}, "state_bytes_max is 1 to 1000000 bytes; found '1'"),
        ({"delivery": {"attempts": 3}}, "delivery is a DeliveryPolicy, or None for the usual one; found {'attempts'"),
        ({"quarantine": None}, "quarantine is s3://bucket/prefix, a folder"),
        ({"quarantine": "gs://b/x"}, "gs:// is not known"),
        ({"quarantine": "s3://Bad_Bucket"}, "'Bad_Bucket' is not a bucket's name"),
        ({"quarantine": windlass.env("")}, "the variable that env names is a name"),
        ({"coerce": "no"}, "coerce is True or False; found 'no'"),
        ({"layout": "newest"}, "history or latest"),
        ({"aggregates": "some"}, "keep_insiders or keep_all"),
        ({"record": dict}, "derived from windlass.Record"),
    ],
)
def test_a_declaration_that_cannot_work_says_what_to_do(changed, says):
    with pytest.raises(windlass.DeclarationError) as caught:
        declare(changed.pop("record", Trip), **changed)

    assert says in str(caught.value)


class Node(Record):
    vendorId: int
    next: "Node"


class Strict(Record, forbid_unknown_fields=True):
    vendorId: int


class Row(Record, array_like=True):
    vendorId: int


class Tagged(Record, tag="trip"):
    vendorId: int


class Checked(Record):
    vendorId: int

    def __post_init__(self) -> None:
        raise AssertionError


class Holder(Record):
    vendorId: int
    inner: Strict


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (Node, "Node holds itself"),
        (Strict, "Strict has forbid_unknown_fields, which a record cannot have: members that are not declared"),
        (Row, "Row has array_like, which a record cannot have"),
        (Tagged, "Tagged has tag, which a record cannot have"),
        (Checked, "Checked has __post_init__, which a record cannot have"),
        (Holder, "Strict has forbid_unknown_fields"),
    ],
)
def test_what_a_struct_can_do_and_a_record_cannot_is_refused_instead_of_ignored(record, says):
    with pytest.raises(windlass.DeclarationError, match=says):
        declare(record, totals={"n": Count()})
    with pytest.raises(windlass.DeclarationError, match=says):
        Records(record, table="t")


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (lambda: Annotated[int, Range("a", "b")], "bounds of a Range are finite numbers"),
        (lambda: Annotated[float, Range(0, float("nan"))], "bounds of a Range are finite numbers"),
        (lambda: Annotated[int, Range(False, True)], "bounds of a Range are finite numbers"),
        (lambda: Annotated[int, Range(5, 2)], "is empty"),
        (lambda: Annotated[int, Range(10**400)], "x: the bounds of an int are whole numbers of 64 bits"),
        (lambda: Annotated[str, Length(0, 2**70)], "whole numbers of characters, below 2**31"),
        (lambda: Literal[2**63], "a Literal of strings or whole numbers of 64 bits"),
        (lambda: "int |", "an annotation names what is not there"),
        (lambda: Annotated[int, Range()], "says nothing"),
        (lambda: Annotated[int, Range(0.5, 2)], "x: the bounds of an int are whole numbers of 64 bits; found 0.5"),
        (lambda: Annotated[int, Range(2**63)], "x: the bounds of an int are whole numbers of 64 bits"),
        (lambda: Annotated[float, Range(high=1e200)], "x: a float is between -1E+126 and 1E+126"),
        (lambda: Annotated[str, Length(5, 2)], "fits no text"),
        (lambda: Annotated[str, Length(-1)], "fits no text"),
        (lambda: Annotated[str, Length(1.5)], "whole numbers of characters"),
        (lambda: Annotated[str, Range(0, 1)], "x: Range is for numbers; this field is a str"),
        (lambda: Annotated[int, Length(1)], "x: Length is for strings; this field is a int"),
        (lambda: "Nowhere", "an annotation names what is not there (name 'Nowhere' is not defined)"),
    ],
)
def test_a_field_that_cannot_be_says_what_to_do(annotation, says):
    with pytest.raises(windlass.DeclarationError) as caught:
        declare(
            type("Odd", (Record,), {"__annotations__": {"vendorId": int, "x": annotation()}}), totals={"n": Count()}
        )

    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "default", "total", "says"),
    [
        (int, 10**38 + 1, Sum("x"), "Odd.x: the default 1"),
        (Annotated[int, Range(0, 7)], 100, Sum("x"), "100 is out of range (declared 0 to 7)"),
        (float, 1 / 300, Sum("x"), "at most 18 decimals"),
        (Annotated[Decimal, Range(0, 1)], Decimal(2), Count(), "2 is out of range"),
        (Annotated[str, Length(2)], "a", Count(), "1 characters (declared 2 to None)"),
    ],
)
def test_a_default_that_no_record_could_have_is_refused(annotation, default, total, says):
    members = {"__annotations__": {"vendorId": int, "x": annotation}, "x": default}
    with pytest.raises(windlass.DeclarationError) as caught:
        declare(type("Odd", (Record,), members), totals={"n": total})

    assert says in str(caught.value)


class Coded(Record):
    code: Annotated[str, Length(200, 700)]
    long: Annotated[str, Length(600, 700)]
    large: Annotated[Decimal, Range(10**12)]
    small: Annotated[float, Range(high=-1e15)]


@pytest.mark.parametrize(
    ("key", "totals", "says"),
    [
        ("long", {"n": Count()}, "key field long has a Length that no key can have: DynamoDB takes 1 to 512"),
        (["code", "long"], {"n": Count()}, "key field code has a Length that no key can have: DynamoDB takes 1 to 128"),
        (
            "code",
            {"n": Sum("large")},
            "large has a Range of which nothing could be summed: with 18 decimals a value has",
        ),
        ("code", {"n": Mean("small")}, "at most 11 digits before them; declare fewer, like Sum('small', decimals=2)"),
    ],
)
def test_a_declaration_that_no_record_could_meet_is_refused(key, totals, says):
    with pytest.raises(windlass.DeclarationError) as caught:
        declare(Coded, key=key, totals=totals)
    assert says in str(caught.value)
    declare(Coded, key="code", totals={"n": Sum("large", decimals=2), "m": Max("small")})


def test_a_field_with_a_default_may_stand_before_one_without():
    class Ride(Record):
        note: str | None = None
        vendorId: int

    class LongRide(Ride):
        miles: float = 0.0
        fare: Decimal

    pipeline = declare(LongRide, totals={"n": Sum("fare")})
    assert [field["path"] for field in pipeline.describe()["fields"] if field["required"]] == [["vendorId"], ["fare"]]


def test_constraints_of_an_alias_hold_beside_its_users_own():
    class Nested(Record):
        vendorId: Annotated[Annotated[int, Range(0)], Range(None, 9)]
        name: Annotated[Annotated[str, Length(2)], Length(0, 5)]

    number, name = declare(Nested, totals={"n": Count()}).describe()["fields"]
    assert (number["low"], number["high"]) == (0, 9)
    assert (name["min_length"], name["max_length"]) == (2, 5)
    with pytest.raises(windlass.DeclarationError, match="no number in common"):
        declare(
            type("Odd", (Record,), {"__annotations__": {"vendorId": Annotated[Annotated[int, Range(5)], Range(0, 2)]}}),
            totals={"n": Count()},
        )


def test_bounds_of_an_int_may_be_written_as_whole_floats():
    class Coarse(Record):
        vendorId: Annotated[int, Range(1e3, Decimal(5000))]

    assert declare(Coarse, totals={"n": Count()}).describe()["fields"][0]["high"] == 5000


def test_a_key_may_be_a_nested_field_and_totals_too():
    pipeline = declare(Reading, key="device.id", totals={"mean": Mean("value")})

    assert pipeline.describe()["key"] == [["device", "id"]]
    assert pipeline.describe()["key_attribute"] == "device.id"


class Ride(Record):
    vendorId: int
    flag: Literal["N", "Y"]


def test_several_fields_make_one_text_key():
    keys = declare(Ride, key=["vendorId", "flag"], totals={"rides": Count()}).table_keys

    assert str(keys) == "partition key vendorId#flag (S) and sort key windowStart (S)"


def test_a_declaration_describes_itself_in_plain_values():
    described = declare(totals={"p": Sum("passengerCount"), "m": Mean("miles"), "f": Min("fare")}).describe()

    assert described["kind"] == "windows"
    assert described["every_s"] == 30
    assert described["key_type"] == "N"
    assert described["layout"] == "history"
    assert described["totals"] == [
        {"name": "p", "kind": "sum", "path": ["passengerCount"]},
        {"name": "m", "kind": "mean", "path": ["miles"]},
        {"name": "f", "kind": "min", "path": ["fare"]},
    ]
    assert {tuple(field["path"]): field["decimals"] for field in described["fields"]}["miles",] == 18


def test_text_keys_are_as_long_as_dynamodb_takes_them():
    class Ride(Record):
        city: str
        driver: str

    def longest(pipeline: Any) -> list[int]:
        return [field["max_length"] for field in pipeline.describe()["fields"]]

    assert longest(Records(Ride, key="city", table="t")) == [512, None]
    assert longest(Records(Ride, key=["city", "driver"], table="t")) == [512, 256]
    assert longest(declare(Ride, key=["city", "driver"], totals={"n": Count()})) == [128, 128]


def test_records_take_one_or_two_key_fields_or_none():
    assert Records(Trip, table="t").describe()["key_attributes"] == ["shard", "position"]
    assert Records(Trip, key="vendorId", table="t").describe()["key_attributes"] == ["vendorId"]
    with pytest.raises(windlass.DeclarationError, match="key field grade may be ''"):
        Records(Build, key=["device", "grade"], table="t")
    with pytest.raises(windlass.DeclarationError, match="at most one sort key"):
        Records(Trip, key=["vendorId", "passengerCount", "name"], table="t")


def test_the_public_names_are_a_list_one_reads_in_ten_seconds():
    assert len(windlass.__all__) <= 24
    assert all(hasattr(windlass, name) for name in windlass.__all__)
