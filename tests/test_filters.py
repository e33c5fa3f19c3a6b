"""FilterCriteria: which records pass."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.filters import PATTERN_CHARS_MAX, Filter, InvalidPattern


def keeps(filter_: Filter, data: bytes = b"{}", key: str = "k", sequence: str = "1", arrival_ms: int = 1) -> bool:
    return filter_.keeps(data=data, partition_key=key, sequence=sequence, arrival_ms=arrival_ms)


def passes(pattern: str, value: str) -> bool:
    """Whether data {"v": value} passes {"data": {"v": pattern}}; both given as JSON text."""
    return keeps(Filter([f'{{"data": {{"v": {pattern}}}}}']), f'{{"v": {value}}}'.encode())


CASES = [
    # equality: kind and text
    ('["a"]', '"a"', True),
    ('["a"]', '"A"', False),
    ('["a", "b"]', '"b"', True),
    ("[1]", "1", True),
    ("[1]", '"1"', False),
    ('["1"]', "1", False),
    ("[300]", "300.0", False),
    ("[300]", "3.0e2", False),
    ("[3.0e2]", "3.0e2", True),
    ("[true]", "true", True),
    ("[true]", "1", False),
    ("[true]", '"true"', False),
    ("[null]", "null", True),
    ("[null]", '""', False),
    ('[""]', '""', True),
    ('[""]', "null", False),
    ('["é"]', '"\\u00e9"', True),
    ('["é"]', '"e\\u0301"', False),
    # arrays match where any element does
    ('["a"]', '["x", "a"]', True),
    ('["a"]', '["x", ["a"]]', True),
    ('["a"]', "[]", False),
    ('["a", "b"]', '["x"]', False),
    ('["a"]', '{"a": "a"}', False),
    # exists
    ('[{"exists": true}]', "null", True),
    ('[{"exists": true}]', "[1]", True),
    ('[{"exists": true}]', "{}", False),
    ('[{"exists": false}]', "0", False),
    ('[{"exists": false}]', '{"a": 1}', True),
    # prefix, suffix, equals-ignore-case
    ('[{"prefix": "us-"}]', '"us-east-1"', True),
    ('[{"prefix": "us-"}]', '"eu-west-1"', False),
    ('[{"prefix": "1"}]', "12", False),
    ('[{"prefix": {"equals-ignore-case": "US-"}}]', '"us-east-1"', True),
    ('[{"suffix": ".png"}]', '"a.png"', True),
    ('[{"suffix": ".png"}]', '"a.PNG"', False),
    ('[{"suffix": {"equals-ignore-case": ".PNG"}}]', '"a.png"', True),
    ('[{"equals-ignore-case": "Trip"}]', '"tRIP"', True),
    ('[{"equals-ignore-case": "Trip"}]', '"trips"', False),
    ('[{"prefix": "us-"}, 7]', "7", True),
    # numeric
    ('[{"numeric": ["=", 300]}]', "3.0e2", True),
    ('[{"numeric": ["=", 300]}]', '"300"', False),
    ('[{"numeric": [">", 0]}]', "0", False),
    ('[{"numeric": [">=", 0]}]', "0", True),
    ('[{"numeric": ["<", -1.5]}]', "-1.6", True),
    ('[{"numeric": [">", 0, "<=", 5]}]', "5", True),
    ('[{"numeric": [">", 0, "<=", 5]}]', "5.01", False),
    ('[{"numeric": [">", 0, "<=", 5]}]', "[9, 3]", True),
    ('[{"numeric": [">", 0]}]', "1" + "0" * 5000, True),
    # anything-but
    ('[{"anything-but": "a"}]', '"b"', True),
    ('[{"anything-but": "a"}]', '"a"', False),
    ('[{"anything-but": ["a", "b"]}]', '"b"', False),
    ('[{"anything-but": ["a", "b"]}]', '"c"', True),
    ('[{"anything-but": [1, 2]}]', "2", False),
    ('[{"anything-but": [1, 2]}]', '"2"', True),
    ('[{"anything-but": {"prefix": "a"}}]', '"ab"', False),
    ('[{"anything-but": {"prefix": "a"}}]', '"ba"', True),
    ('[{"anything-but": {"suffix": ["a", "b"]}}]', '"cb"', False),
    ('[{"anything-but": {"equals-ignore-case": "A"}}]', '"a"', False),
    # outside Lambda's own list
    ('[{"wildcard": "a*c"}]', '"abbc"', True),
    ('[{"wildcard": "a*c"}]', '"abbcd"', False),
    ('[{"wildcard": "a\\\\*c"}]', '"a*c"', True),
    ('[{"wildcard": "a\\\\*c"}]', '"abc"', False),
    ('[{"wildcard": "a.c"}]', '"abc"', False),
    ('[{"cidr": "10.0.0.0/24"}]', '"10.0.0.7"', True),
    ('[{"cidr": "10.0.0.0/24"}]', '"10.0.1.7"', False),
    ('[{"cidr": "10.0.0.0/24"}]', '"home"', False),
]


@pytest.mark.parametrize(("pattern", "value", "expected"), CASES)
def test_a_value_passes_as_documented(pattern, value, expected):
    assert passes(pattern, value) is expected


NESTED = [
    ('{"a": {"b": [1]}}', {"a": {"b": 1}}, True),
    ('{"a": {"b": [1]}}', {"a": {"b": 2}}, False),
    ('{"a": {"b": [1]}}', {"a": 1}, False),
    ('{"a": {"b": [1]}}', {}, False),
    ('{"a": {"b": [1]}}', {"a": [{"b": 2}, {"b": 1}]}, True),
    ('{"a": {"b": [1], "c": [2]}}', {"a": [{"b": 1, "c": 0}, {"b": 0, "c": 2}]}, False),
    ('{"a": [1], "b": [2]}', {"a": 1, "b": 2}, True),
    ('{"a": [1], "b": [2]}', {"a": 1, "b": 3}, False),
    ('{"a": [{"exists": false}]}', {"b": 1}, True),
    ('{"a": {"b": [{"exists": false}]}}', {}, True),
    ('{"a": [{"anything-but": "x"}]}', {"b": 1}, False),
    ('{"$or": [{"a": [1]}, {"b": [2]}]}', {"b": 2}, True),
    ('{"$or": [{"a": [1]}, {"b": [2]}]}', {"a": 2}, False),
    ('{"c": [3], "$or": [{"a": [1]}, {"b": [2]}]}', {"a": 1, "c": 3}, True),
    ('{"c": [3], "$or": [{"a": [1]}, {"b": [2]}]}', {"a": 1, "c": 4}, False),
    ('{"$or": [{"exists": false}, {"prefix": "x"}]}', {}, True),  # an ordinary field of that name
    ('{"$or": [{"exists": false}, {"prefix": "x"}]}', {"$or": "xy"}, True),
    ('{"a": [1], "a": [2]}', {"a": 2}, True),  # the last of two equal keys counts
    ('{"a": [1], "a": [2]}', {"a": 1}, False),
]


@pytest.mark.parametrize(("pattern", "data", "expected"), NESTED)
def test_objects_match_field_by_field(pattern, data, expected):
    assert keeps(Filter([f'{{"data": {pattern}}}']), json.dumps(data).encode()) is expected


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xfe", b"{", b"NaN", b"[" * 100_000, b'{"a": 1} x'])
def test_data_that_is_not_json_is_passed_over_by_a_pattern_on_data(data):
    assert not keeps(Filter(['{"data": {"a": [{"exists": false}]}}']), data)
    assert keeps(Filter(['{"partitionKey": ["k"]}']), data)
    assert keeps(Filter(['{"data": {"a": [1]}}', '{"partitionKey": ["k"]}']), data)


@pytest.mark.parametrize("data", [b"7", b"null", b'"a"', b"[1]"])
def test_data_that_is_json_but_no_object_has_no_fields(data):
    assert not keeps(Filter(['{"data": {"a": [7]}}']), data)


def test_without_patterns_everything_passes():
    assert keeps(Filter([]), b"\xff")


def test_patterns_are_joined_by_or():
    filter_ = Filter(['{"data": {"a": [1]}}', '{"data": {"b": [2]}}'])
    assert [keeps(filter_, data) for data in (b'{"a": 1}', b'{"b": 2}', b'{"a": 2}')] == [True, True, False]


def test_metadata_is_flat_beside_data_and_warned_of():
    filter_ = Filter(['{"partitionKey": [{"prefix": "a"}], "data": {"n": [1]}}'])
    assert keeps(filter_, b'{"n": 1}', key="abc")
    assert not keeps(filter_, b'{"n": 1}', key="b")
    assert filter_.warnings == ["pattern on partitionKey: Lambda documents filtering Kinesis records by data only"]
    assert keeps(Filter(['{"approximateArrivalTimestamp": [{"numeric": [">", 5]}]}']), arrival_ms=5001)
    assert Filter(['{"kinesis": {"partitionKey": ["a"]}}']).warnings != []


@pytest.mark.parametrize("operator", ['{"wildcard": "a*"}', '{"cidr": "10.0.0.0/8"}'])
def test_operators_outside_lambdas_list_are_accepted_with_a_warning(operator):
    [warning] = Filter([f'{{"data": {{"a": [{operator}]}}}}']).warnings
    assert "not in Lambda's documented list" in warning


INVALID = [
    "",
    "text",
    "[]",
    "{}",
    "7",
    '{"data": "text"}',
    '{"data": ["text"]}',
    '{"data": {}}',
    '{"data": {"a": 1}}',
    '{"data": {"a": "x"}}',
    '{"data": {"a": []}}',
    '{"data": {"a": [[1]]}}',
    '{"data": {"a": [{}]}}',
    '{"data": {"a": [{"prefix": "a", "suffix": "b"}]}}',
    '{"data": {"a": [{"unknown": 1}]}}',
    '{"data": {"a": [{"exists": "yes"}]}}',
    '{"data": {"a": [{"prefix": 1}]}}',
    '{"data": {"a": [{"prefix": {"equals-ignore-case": 1}}]}}',
    '{"data": {"a": [{"equals-ignore-case": 1}]}}',
    '{"data": {"a": [{"numeric": []}]}}',
    '{"data": {"a": [{"numeric": ["=", "1"]}]}}',
    '{"data": {"a": [{"numeric": ["~", 1]}]}}',
    '{"data": {"a": [{"numeric": ["<", 1, ">", 0]}]}}',
    '{"data": {"a": [{"numeric": [">", 5, "<", 1]}]}}',
    '{"data": {"a": [{"numeric": 5}]}}',
    '{"data": {"a": [{"numeric": [5, 5]}]}}',
    '{"data": {"a": [{"anything-but": ["a", 1]}]}}',
    '{"data": {"a": [{"anything-but": []}]}}',
    '{"data": {"a": [{"anything-but": true}]}}',
    '{"data": {"a": [{"anything-but": {"numeric": ["=", 1]}}]}}',
    '{"data": {"a": [{"anything-but": {}}]}}',
    '{"data": {"a": [{"wildcard": "a**b"}]}}',
    '{"data": {"a": [{"wildcard": "a\\\\b"}]}}',
    '{"data": {"a": [{"wildcard": "a\\\\"}]}}',
    '{"data": {"a": [{"cidr": "10.0.0.0/99"}]}}',
    '{"data": {"a": [{"cidr": 10}]}}',
    '{"data": {"a": [NaN]}}',
    '{"$or": [{"data": [1]}, {"data": {"a": [1]}}]}',
    '{"data": {"a": ["' + "x" * PATTERN_CHARS_MAX + '"]}}',
    '{"a":' * 50_000,
]


@pytest.mark.parametrize("pattern", INVALID)
def test_a_pattern_that_cannot_be_used_is_refused(pattern):
    with pytest.raises(InvalidPattern):
        Filter([pattern])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_a_scalar_matches_itself_and_anything_but_itself_does_not(value):
    text = json.dumps(value)
    if not isinstance(value, (dict, list)):
        assert passes(f"[{text}]", text)
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        assert not passes(f'[{{"anything-but": {text}}}]', text)


@given(JSON)
def test_exists_true_and_false_are_opposites(value):
    data = json.dumps({"v": value})
    found = [passes(f'[{{"exists": {wanted}}}]', json.dumps(value)) for wanted in ("true", "false")]
    assert sorted(found) == [False, True], data


@given(st.binary(max_size=30))
def test_no_bytes_raise(data):
    assert keeps(Filter(['{"data": {"a": [{"exists": true}]}}']), data) in (True, False)


@pytest.mark.parametrize("depth", [50, 400, 990])
def test_deep_nesting_does_not_raise(depth):
    deep = b'{"v": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
    assert keeps(Filter(['{"data": {"v": [1]}}']), deep) in (True, False)
    pattern = '{"a":' * min(depth, 680) + "[1]" + "}" * min(depth, 680)
    try:
        keeps(Filter([pattern]), b"{}")
    except InvalidPattern:
        assert depth > 50
