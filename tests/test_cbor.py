"""Kinesis's calls in CBOR: what the Java SDKs write, from and to JSON."""

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.local.cbor import NotCbor, from_json, to_json


def read(text: str) -> object:
    return json.loads(to_json(bytes.fromhex(text)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("a0", {}),
        ("bfff", {}),
        ("bf6161016162820203ff", {"a": 1, "b": [2, 3]}),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("4401020304", base64.b64encode(b"\x01\x02\x03\x04").decode()),
        ("5f42010243030405ff", base64.b64encode(b"\x01\x02\x03\x04\x05").decode()),
        ("7f657374726561646d696e67ff", "streaming"),
        ("62c3bc", "ü"),
        ("1903e8", 1000),
        ("1b000000e8d4a51000", 1_000_000_000_000),
        ("3903e7", -1000),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("f93c00", 1.0),
        ("fa47c35000", 100000.0),
        ("fb3ff199999999999a", 1.1),
        ("c11b0000016fabcdef01", 0x016FABCDEF01 / 1000),
        ("c074323031332d30332d32315432303a30343a30305a", "2013-03-21T20:04:00Z"),
    ],
)  # fmt: skip
def test_every_kind_of_value_is_read(text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    "text", ["61", "1c", "fc", "bf61", "bf01ff", "a18001", "820", "5f5f4101ffff", "a201", "ff", "81" * 40, "61ff"]
)
def test_what_is_no_cbor_is_refused_and_never_crashes(text: str) -> None:
    with pytest.raises(NotCbor):
        to_json(bytes.fromhex(text if len(text) % 2 == 0 else text + "0"))


@given(st.binary(max_size=40))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with contextlib.suppress(NotCbor):
        json.loads(to_json(data))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    )
)
def test_what_is_written_is_read_again(value: object) -> None:
    written = from_json(json.dumps(value).encode())
    assert json.loads(to_json(written)) == value


def test_bytes_and_times_are_known_by_their_names() -> None:
    data = base64.b64encode(b"\x00\x01").decode()
    answer = {"Records": [{"Data": data, "ApproximateArrivalTimestamp": 1607497475.123, "PartitionKey": data}]}
    written = from_json(json.dumps(answer).encode())
    assert b"\x42\x00\x01" in written  # bytes, two of them
    assert b"\xc1\x1b" + (1607497475123).to_bytes(8) in written  # tag 1, milliseconds
    assert json.loads(to_json(written)) == answer


def test_an_empty_answer_stays_empty() -> None:
    assert from_json(b"") == b""
