"""Declared records: which bytes are one, and what the others are called."""

import json
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import field

from windlass.core.pipeline import compile_windows
from windlass.core.rejected import Reason
from windlass.core.schema import (
    DeclarationError,
    Fault,
    Length,
    Range,
    Record,
    Schema,
    fields_of,
)
from windlass.core.totals import Count, Max, Sum


class Place(Record):
    zone: str
    lat: float | None = None


class Trip(Record):
    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]
    flag: Literal["N", "Y"] = "N"
    miles: float = 0.0
    fare: Decimal = Decimal(0)
    note: Annotated[str, Length(0, 5)] | None = None
    paid: bool = False
    pickup: Place = field(name="pick_up", default=None)  # type: ignore[assignment]


class Plain(Record):
    vendorId: int
    passengerCount: Annotated[int, Range(0, 9)]


def read(record: type[Record], data: bytes, *, coerce: bool = False) -> Any:
    return Schema("X", fields_of(record), coerce=coerce).read([data])[0][0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.NOT_JSON),
        (b"\xff", Reason.NOT_UTF8),
        (b'{"vendorId": 1, "passengerCount": 2, "x": "\xff"}', Reason.NOT_UTF8),
        (b'{"vendorId": 1, "passengerCount": 2', Reason.NOT_JSON),
        (b'{"vendorId": 1, "passengerCount": 2} {', Reason.NOT_JSON),
        (b'{"vendorId": NaN, "passengerCount": 2}', Reason.NOT_JSON),
        (b'{"vendorId": 1, "passengerCount": 2, "x": Infinity}', Reason.NOT_JSON),
        (b'\xef\xbb\xbf{"vendorId": 1, "passengerCount": 2}', Reason.NOT_JSON),
        (b'{"vendorId": 1, "passengerCount": 2, "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", Reason.NOT_JSON),
        (b"[1]", Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
        (b"1e400", Reason.NOT_AN_OBJECT),
        (b'"text"', Reason.NOT_AN_OBJECT),
        (b"{}", Reason.MISSING_FIELD),
        (b'{"vendorId": 1}', Reason.MISSING_FIELD),
        (b'{"vendorId": "1", "passengerCount": 2}', Reason.WRONG_TYPE),
        (b'{"vendorId": 1.0, "passengerCount": 2}', Reason.WRONG_TYPE),
        (b'{"vendorId": true, "passengerCount": 2}', Reason.WRONG_TYPE),
        (b'{"vendorId": null, "passengerCount": 2}', Reason.WRONG_TYPE),
        (b'{"vendorId": [], "passengerCount": 2}', Reason.WRONG_TYPE),
        (b'{"vendorId": 1e400, "passengerCount": 2}', Reason.WRONG_TYPE),
        (b'{"vendorId": 1, "passengerCount": 10}', Reason.OUT_OF_RANGE),
        (b'{"vendorId": 1, "passengerCount": -1}', Reason.OUT_OF_RANGE),
        (b'{"vendorId": 9223372036854775808, "passengerCount": 1}', Reason.OUT_OF_RANGE),
        (b'{"vendorId": ' + b"9" * 5000 + b', "passengerCount": 1}', Reason.OUT_OF_RANGE),
    ],
)
def test_bytes_that_are_not_a_record_are_called_by_their_reason(data, reason):
    found = read(Plain, data)

    assert isinstance(found, Fault)
    assert found.reason == reason
    assert found.detail


def test_undeclared_members_are_ignored_and_the_last_of_repeated_ones_counts():
    found = read(Plain, b'{"vendorId": 1, "x": {"y": [1, null]}, "passengerCount": 2, "vendorId": 3}')

    assert (found.vendorId, found.passengerCount) == (3, 2)


def test_one_bad_record_takes_only_itself_out_of_a_batch():
    good, bad = b'{"vendorId": 1, "passengerCount": 2}', b"{"
    schema = Schema("X", fields_of(Plain), coerce=False)

    found, faults = schema.read([bad, good, bad, bad, good, bad])

    assert [isinstance(record, Fault) for record in found] == [True, False, True, True, False, True]
    assert faults == [0, 2, 3, 5]


def test_bad_utf8_in_one_record_leaves_the_others_of_the_batch_readable():
    schema = Schema("X", fields_of(Plain), coerce=False)
    found, _ = schema.read(
        [b'{"vendorId": 1, "passengerCount": 2}', b"\xff", '{"vendorId": 1, "passengerCount": 2, "é": "ü"}'.encode()]
    )

    assert [getattr(record, "reason", None) for record in found] == [None, Reason.NOT_UTF8, None]


@pytest.mark.parametrize("text", ['"2"', '" 2"', '"2\\t"', '"\\t 2 "'])
def test_coerce_takes_a_number_written_as_text_with_blanks_and_tabs_around_it(text):
    found = read(Plain, f'{{"vendorId": {text}, "passengerCount": {text}}}'.encode(), coerce=True)

    assert (found.vendorId, found.passengerCount) == (2, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('""', Reason.WRONG_TYPE),
        ('"two"', Reason.WRONG_TYPE),
        ('"1e2"', Reason.WRONG_TYPE),
        ('"1.0"', Reason.WRONG_TYPE),
        ('"+1"', Reason.WRONG_TYPE),
        ('"01"', Reason.WRONG_TYPE),
        ('"1_0"', Reason.WRONG_TYPE),
        ('"NaN"', Reason.WRONG_TYPE),
        ('"\\n1"', Reason.WRONG_TYPE),
        ('"٣"', Reason.WRONG_TYPE),
        ('"12"', Reason.OUT_OF_RANGE),
        (f'"{"9" * 5000}"', Reason.OUT_OF_RANGE),
        (f'"-{"9" * 5000}"', Reason.OUT_OF_RANGE),
        ("1.0", Reason.WRONG_TYPE),
        ("true", Reason.WRONG_TYPE),
    ],
)
def test_coerce_takes_nothing_but_numbers_of_the_fields_type(text, reason):
    found = read(Plain, f'{{"vendorId": 1, "passengerCount": {text}}}'.encode(), coerce=True)

    assert isinstance(found, Fault)
    assert found.reason == reason


class Fare(Record):
    key: str
    fare: Decimal
    tip: float
    least: float | None = None


def exact(data: str, *, coerce: bool = False, decimals: int = 18) -> Any:
    plan = compile_windows(
        Fare,
        key="key",
        every_s=30,
        totals={"fares": Sum("fare", decimals=decimals), "tips": Sum("tip"), "most": Max("least")},
        coerce=coerce,
    )
    return plan.schema.read([data.encode()])[0][0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", "1"),
        ("1.10", "1.1"),
        ("-0.000", "0"),
        ("1e3", "1000"),
        ("12345678901.123456789012345678", "12345678901.123456789012345678"),
    ],
)
def test_a_decimal_is_taken_digit_by_digit(text, value):
    assert exact(f'{{"key": "a", "fare": {text}, "tip": 0.1}}').fare == Decimal(value)


def test_a_float_is_the_decimal_that_its_shortest_text_says():
    found = exact('{"key": "a", "fare": 0, "tip": 0.1000000000000000055511151231257827}')

    assert found.tip == Decimal("0.1")


@pytest.mark.parametrize("text", ["1e-19", "123456789012", "1e11", "1e400", "1e-400", "1e999999999999999999", "9" * 39])
def test_what_could_not_be_summed_exactly_is_out_of_range(text):
    found = exact(f'{{"key": "a", "fare": {text}, "tip": 0}}')

    assert isinstance(found, Fault)
    assert found.reason == Reason.OUT_OF_RANGE


def test_a_total_may_keep_fewer_decimals_and_larger_numbers():
    assert exact('{"key": "a", "fare": 12345678901234567890.25, "tip": 0}', decimals=2).fare == Decimal(
        "12345678901234567890.25"
    )
    assert exact('{"key": "a", "fare": 0.125, "tip": 0}', decimals=2).reason == Reason.OUT_OF_RANGE


class Price(Record):
    key: str
    price: Annotated[Decimal, Range(0.1, 0.3)]


@pytest.mark.parametrize(("text", "inside"), [("0.1", True), ("0.3", True), ("0.09999", False), ("0.30001", False)])
def test_a_decimals_bounds_are_the_decimals_that_were_written(text, inside):
    found = read(Price, f'{{"key": "a", "price": {text}}}'.encode())

    assert isinstance(found, Fault) is not inside


@pytest.mark.parametrize("text", ['"1"', "true", "null", "[]", "{}"])
def test_a_decimal_field_takes_json_numbers_only(text):
    assert exact(f'{{"key": "a", "fare": {text}, "tip": 0}}').reason == Reason.WRONG_TYPE


@pytest.mark.parametrize(("text", "value"), [('" 1.5"', "1.5"), ('"2e1"', "20"), ("3", "3")])
def test_a_decimal_may_be_text_with_coerce(text, value):
    assert exact(f'{{"key": "a", "fare": {text}, "tip": {text}}}', coerce=True).fare == Decimal(value)


@pytest.mark.parametrize("text", ["1e-131", "1e200", "1e126"])
def test_a_float_that_dynamodb_cannot_hold_is_out_of_range(text):
    assert exact(f'{{"key": "a", "fare": 1, "tip": 1, "least": {text}}}').reason == Reason.OUT_OF_RANGE


def test_an_empty_or_very_long_text_key_is_out_of_range():
    assert exact('{"key": "", "fare": 1, "tip": 1}').reason == Reason.OUT_OF_RANGE
    assert exact(f'{{"key": "{"x" * 513}", "fare": 1, "tip": 1}}').reason == Reason.OUT_OF_RANGE
    assert exact(f'{{"key": "{"é" * 512}", "fare": 1, "tip": 1}}').key == "é" * 512


class Device(Record):
    id: str


class Reading(Record):
    device: Device
    value: int = field(name="val")
    grade: Literal[1, 2] = 1


def test_nested_and_renamed_members_are_found_by_their_json_names():
    found = read(Reading, b'{"device": {"id": "d1", "x": 0}, "val": 7}')

    assert (found.device.id, found.value, found.grade) == ("d1", 7, 1)
    assert read(Reading, b'{"device": {}, "val": 7}').reason == Reason.MISSING_FIELD
    assert read(Reading, b'{"device": 5, "val": 7}').reason == Reason.WRONG_TYPE
    assert read(Reading, b'{"device": {"id": "d"}, "val": 7, "grade": 3}').reason == Reason.OUT_OF_RANGE
    assert [f.name for f in fields_of(Reading)] == ["device", "device.id", "val", "grade"]


def test_choices_that_are_all_numbers_are_coerced_too():
    def grade(text: str) -> Any:
        return read(Reading, f'{{"device": {{"id": "d"}}, "val": 7, "grade": {text}}}'.encode(), coerce=True)

    assert grade('" 2"').grade == 2
    assert grade('"3"').reason == Reason.OUT_OF_RANGE
    assert grade('"2.0"').reason == grade('"x"').reason == Reason.WRONG_TYPE


class Nested(Record):
    key: str
    deep: Fare


usual_numbers = st.one_of(st.decimals(-999, 999, places=3), st.integers(-(10**6), 10**6), st.just("0"))
odd_numbers = st.sampled_from(
    [
        *("-0", "0.0", "-0.0", "1e2", "1E-2", "1e-19", "1e400", "1e-400", "0.1000000000000000055511151231257827"),
        *("12345678901.123456789012345678", "100.50", "123456789012", "9" * 39, "null", '"1.5"', '" 2 "', '"x"', "[]"),
    ]
)


@given(st.lists(st.tuples(usual_numbers | odd_numbers, usual_numbers | odd_numbers, odd_numbers)), st.booleans())
def test_a_batch_reads_as_its_records_do_one_by_one(numbers, coerce):
    plan = compile_windows(
        Nested,
        key="key",
        every_s=30,
        totals={"fares": Sum("deep.fare"), "tips": Sum("deep.tip"), "most": Max("deep.least")},
        coerce=coerce,
    )
    batch = [
        f'{{"key": "a", "deep": {{"key": "b", "fare": {fare}, "tip": {tip}, "least": {least}}}}}'.encode()
        for fare, tip, least in numbers
    ]

    records, faults = plan.schema.read(batch)

    assert list(map(repr, records)) == [repr(plan.schema.read([payload])[0][0]) for payload in batch]
    assert faults == [index for index, record in enumerate(records) if isinstance(record, Fault)]


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 17))
def test_a_float_is_the_same_decimal_however_long_it_is_written(double, digits):
    for text in (repr(double), f"{double:.{digits}f}"):
        value = Decimal(repr(float(text))).normalize()
        summed = not value or (abs(value) < 10**11 and value.as_tuple().exponent >= -18)

        found = exact(f'{{"key": "a", "fare": 0, "tip": {text}}}')

        assert (found.tip == value) if summed else (found.reason == Reason.OUT_OF_RANGE), text


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_a_fault(data):
    for coerce in (False, True):
        found = read(Plain, data, coerce=coerce)
        assert isinstance(found, Fault) or found.passengerCount in range(10)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["key", "fare", "tip", "least", "x"]), json_values))
def test_any_json_is_a_record_or_a_fault(value):
    data = json.dumps(value)
    for coerce in (False, True):
        found = exact(data, coerce=coerce)
        assert isinstance(found, Fault) or isinstance(found.fare, Decimal)


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        (list[int], "is not a type that a record can declare"),
        (int | str, "one type, or one type `| None`"),
        (Annotated[str, Range(1, 2)], "Range is for numbers"),
        (Annotated[int, Length(1, 2)], "Length is for strings"),
        (Annotated[int, "x"], "is not a constraint Windlass knows"),
        (Literal["a", None], "is not a type that a record can declare"),
    ],
)
def test_a_field_that_cannot_be_declared_says_what_to_do(annotation, says):
    record = type("Bad", (Record,), {"__annotations__": {"x": annotation}, "__module__": __name__})

    with pytest.raises(DeclarationError, match=says.replace("|", r"\|")):
        fields_of(record)


def test_an_empty_range_is_refused_when_it_is_made():
    with pytest.raises(DeclarationError, match="is empty"):
        Range(3, 2)
    with pytest.raises(DeclarationError, match="without bounds"):
        Range()


def test_a_count_alone_needs_no_numeric_field():
    plan = compile_windows(Plain, key="vendorId", every_s=30, totals={"trips": Count()})

    assert [column.attribute for column in plan.folder.columns] == ["trips"]


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (int, 0.5),
        (int, True),
        (float, float("nan")),
        (float, float("inf")),
        (Decimal, Decimal("NaN")),
        (Decimal, "1"),
        (str, 1),
        (Literal["a"], "b"),
        (Literal[1, 2], True),
    ],
)
def test_a_default_that_no_clean_record_could_hold_is_refused(annotation, default):
    record = type("R", (Record,), {"__annotations__": {"value": annotation}, "value": default})

    with pytest.raises(DeclarationError, match=r"R\.value: its default is a plain value of its type"):
        fields_of(record)


def test_a_default_of_the_fields_own_type_or_none_stands():
    class Usual(Record):
        whole: int = 0
        part: float = 0
        exact: Decimal = Decimal("0.1")
        text: str = ""
        yes: bool = False
        letter: Literal["a"] = "a"
        absent: int | None = None

    assert [field.default for field in fields_of(Usual)] == [0, 0, Decimal("0.1"), "", False, "a", None]
