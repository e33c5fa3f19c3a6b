import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from windlass.core.position import position
from windlass.core.rejected import Reason, Rejected
from windlass.quarantine import (
    DETAIL_CHARACTERS_MAX,
    FolderQuarantine,
    MemoryQuarantine,
    NoQuarantine,
    Quarantine,
    QuarantineProblem,
    S3Quarantine,
    open_quarantine,
)

SHARD = "shardId-000000000000"
BUCKET = "quarantine-bucket"
SEQUENCE = 49546986683135544286507457936321625675700192471156785154


def rejected(offset: int = 0, *, sub: int = 0, shard: str = SHARD, data: bytes = b"\xff{", **others) -> Rejected:
    values = {"reason": Reason.NOT_JSON, "detail": "what is wrong", "arrival_ms": 1_735_689_600_123} | others
    return Rejected(shard=shard, position=position(str(SEQUENCE + offset), sub), data=data, **values)


def sorted_by_place(records) -> list[Rejected]:
    return sorted(records, key=lambda record: (record.shard, record.position))


@pytest.fixture(scope="module")
def s3() -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture
def memory() -> Callable[[], Quarantine]:
    same = MemoryQuarantine()
    return lambda: same


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], Quarantine]:
    return lambda: FolderQuarantine(tmp_path / "not" / "yet" / "there")


@pytest.fixture
def bucket(s3, request) -> Callable[[], Quarantine]:
    return lambda: S3Quarantine(BUCKET, f"windlass/{request.node.name}", lambda: s3)


@pytest.fixture
def bucket_root(s3, request) -> Iterator[Callable[[], Quarantine]]:
    s3.create_bucket(Bucket="whole-bucket")
    yield lambda: S3Quarantine("whole-bucket", "", lambda: s3)
    for item in s3.list_objects_v2(Bucket="whole-bucket").get("Contents", []):
        s3.delete_object(Bucket="whole-bucket", Key=item["Key"])


@pytest.fixture(params=["memory", "folder", "bucket", "bucket_root"])
def opened(request) -> Callable[[], Quarantine]:
    """Opens the same place again and again."""
    return request.getfixturevalue(request.param)


class TestEveryForm:
    def test_what_was_put_is_read_back_as_it_was(self, opened) -> None:
        records = [
            rejected(0, reason=reason, detail=f'{reason.meaning} "é\\\n😀"', data=bytes(range(256)), sub=sub)
            for sub, reason in enumerate(Reason)
        ]
        opened().put(SHARD, records)
        assert sorted_by_place(opened().read()) == records

    def test_a_place_where_nothing_was_put_is_empty(self, opened) -> None:
        assert list(opened().read()) == []

    def test_a_call_that_rejected_nothing_leaves_nothing(self, opened) -> None:
        opened().put(SHARD, [])
        assert list(opened().read()) == []

    def test_a_retry_overwrites_its_own_copy(self, opened) -> None:
        records = [rejected(0), rejected(5)]
        for _ in range(3):
            opened().put(SHARD, records)
        assert sorted_by_place(opened().read()) == records

    def test_replays_with_other_batch_edges_give_each_record_once(self, opened) -> None:
        records = [rejected(offset) for offset in range(6)]
        for first, last in [(0, 2), (2, 6), (0, 6), (1, 3), (3, 4)]:
            opened().put(SHARD, records[first:last])
        assert sorted_by_place(opened().read()) == records

    def test_equal_positions_of_two_shards_are_two_records(self, opened) -> None:
        records = [rejected(0, shard="shardId-000000000000"), rejected(0, shard="shardId-000000000001")]
        for record in records:
            opened().put(record.shard, [record])
        assert sorted_by_place(opened().read()) == records

    def test_the_order_in_which_a_call_rejects_does_not_matter(self, opened) -> None:
        records = [rejected(offset) for offset in range(4)]
        opened().put(SHARD, records)
        opened().put(SHARD, [records[2], records[0], records[3], records[1]])
        assert sorted_by_place(opened().read()) == records

    def test_the_detail_is_bounded_and_always_text(self, opened) -> None:
        opened().put(SHARD, [rejected(detail="x" * 5000), rejected(1, detail="lone \ud800 surrogate")])
        long, odd = sorted_by_place(opened().read())
        assert long.detail == "x" * (DETAIL_CHARACTERS_MAX - 1) + "…"
        assert odd.detail == "lone \\ud800 surrogate"

    def test_a_shard_id_that_could_leave_its_place_is_refused(self, opened) -> None:
        for shard in ("..", "../x", "a/b", "", "x" * 200):
            with pytest.raises(QuarantineProblem, match="not a shard id"):
                opened().put(shard, [rejected()])


@given(data=st.binary(max_size=100), detail=st.text(max_size=400), sub=st.integers(0, 999_999))
def test_any_bytes_and_any_detail_survive(data: bytes, detail: str, sub: int) -> None:
    record = rejected(data=data, detail=detail, sub=sub)
    with tempfile.TemporaryDirectory() as folder:
        FolderQuarantine(Path(folder)).put(SHARD, [record])
        (place,) = Path(folder).glob("*/*")
        assert place.read_bytes().count(b"\n") == 1
        (read,) = FolderQuarantine(Path(folder)).read()
    assert (read.data, read.position) == (data, record.position)
    assert len(read.detail) <= DETAIL_CHARACTERS_MAX
    assert read.detail[:299] == detail[:299]


def test_an_object_is_ndjson_that_any_tool_can_read(tmp_path: Path) -> None:
    quarantine = FolderQuarantine(tmp_path)
    quarantine.put(SHARD, [rejected(3, sub=7, data=b"\x00\xff"), rejected(1, data=b"{}")])
    (place,) = (path for path in tmp_path.rglob("*") if path.is_file())
    first, last = position(str(SEQUENCE + 1)), position(str(SEQUENCE + 3), 7)
    assert place.relative_to(tmp_path).as_posix() == f"{SHARD}/{first}-{last}.ndjson"
    assert json.loads(place.read_text().splitlines()[0]) == {
        "reason": "not_json",
        "detail": "what is wrong",
        "shard": SHARD,
        "position": last,
        "sequence": str(SEQUENCE + 3),
        "sub": 7,
        "arrival": "2025-01-01T00:00:00.123Z",
        "arrival_ms": 1_735_689_600_123,
        "data": "AP8=",
    }


def test_an_object_of_ten_thousand_records_passes_through_s3(s3) -> None:
    quarantine = S3Quarantine(BUCKET, "large", lambda: s3)
    records = [rejected(0, sub=sub, data=b"x" * 700) for sub in range(10_000)]
    quarantine.put(SHARD, records)
    assert sum(1 for _ in quarantine.read()) == 10_000
    assert len(s3.list_objects_v2(Bucket=BUCKET, Prefix="large/")["Contents"]) == 1


def test_a_prefix_does_not_see_its_neighbour(s3) -> None:
    S3Quarantine(BUCKET, "trips", lambda: s3).put(SHARD, [rejected(0)])
    S3Quarantine(BUCKET, "trips-2", lambda: s3).put(SHARD, [rejected(1)])
    assert [record.position for record in S3Quarantine(BUCKET, "trips", lambda: s3).read()] == [rejected(0).position]


def test_a_quarantine_below_another_ones_prefix_is_not_read_with_it(s3) -> None:
    outer, inner = S3Quarantine(BUCKET, "outer", lambda: s3), S3Quarantine(BUCKET, "outer/inner", lambda: s3)
    outer.put(SHARD, [rejected(1)])
    inner.put(SHARD, [rejected(2)])
    assert [record.position for record in outer.read()] == [rejected(1).position]
    assert [record.position for record in inner.read()] == [rejected(2).position]


def test_none_keeps_nothing() -> None:
    quarantine = open_quarantine("none")
    assert isinstance(quarantine, NoQuarantine)
    quarantine.put(SHARD, [rejected()])
    assert list(quarantine.read()) == []


def test_a_place_opens_as_the_form_it_names(tmp_path: Path) -> None:
    s3 = open_quarantine("s3://some-bucket/a/b/")
    assert isinstance(s3, S3Quarantine)
    assert (s3.bucket, s3.prefix, s3.where) == ("some-bucket", "a/b", "s3://some-bucket/a/b")
    whole = open_quarantine("s3://some-bucket")
    assert isinstance(whole, S3Quarantine)
    assert whole.where == "s3://some-bucket"
    assert isinstance(open_quarantine("memory"), MemoryQuarantine)
    folder = open_quarantine(str(tmp_path))
    assert isinstance(folder, FolderQuarantine)
    assert folder.folder == tmp_path


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("gs://bucket/x", "gs:// is not known"),
        ("s3:/bucket/x", "is no place in S3"),
        ("S3:bucket", "is no place in S3"),
        ("s3://", "'' is not a bucket"),
        ("s3:///prefix", "'' is not a bucket"),
        ("s3://Bad_Bucket/x", "'Bad_Bucket' is not a bucket"),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_one_line(where: str, says: str) -> None:
    with pytest.raises(QuarantineProblem) as raised:
        open_quarantine(where)
    assert says in str(raised.value)
    assert "s3://bucket/prefix" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_opening_calls_nobody_and_the_client_is_made_once() -> None:
    made: list[object] = []

    class Client:
        def put_object(self, **arguments) -> None:
            arguments["Body"].read()

    def make() -> Client:
        made.append(None)
        return Client()

    quarantine = S3Quarantine(BUCKET, "", make)
    quarantine.put(SHARD, [])
    assert made == []
    quarantine.put(SHARD, [rejected()])
    quarantine.put(SHARD, [rejected()])
    assert len(made) == 1


def test_a_bucket_that_does_not_exist_is_one_clear_line(s3) -> None:
    quarantine = S3Quarantine("no-such-bucket-here", "p", lambda: s3)
    for use in (lambda: quarantine.put(SHARD, [rejected()]), lambda: list(quarantine.read())):
        with pytest.raises(QuarantineProblem) as raised:
            use()
        assert str(raised.value) == (
            "the quarantine s3://no-such-bucket-here/p cannot be used: "
            "bucket no-such-bucket-here does not exist; create it, or name another one"
        )


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def put_object(self, **arguments) -> None:
        raise self.error


def client_error(code: str, message: str = "no\nreason") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (client_error("AccessDenied"), "s3:PutObject is not allowed (AccessDenied); allow it"),
        (client_error("403"), "s3:PutObject is not allowed"),
        (client_error("PermanentRedirect"), "another region"),
        (client_error("ExpiredToken"), "expired"),
        (client_error("SlowDown", "{reduce} your\nrate"), "SlowDown: {reduce} your rate"),
        (NoCredentialsError(), "credentials"),
    ],
)
def test_what_fails_in_s3_is_one_line_that_names_the_place(error: Exception, says: str) -> None:
    quarantine = S3Quarantine(BUCKET, "p", lambda: Failing(error))
    with pytest.raises(QuarantineProblem) as raised:
        quarantine.put(SHARD, [rejected()])
    assert says in str(raised.value)
    assert f"s3://{BUCKET}/p" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_our_own_bug_is_not_dressed_up_as_a_problem_of_s3() -> None:
    with pytest.raises(ZeroDivisionError):
        S3Quarantine(BUCKET, "p", lambda: Failing(ZeroDivisionError())).put(SHARD, [rejected()])


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    quarantine = FolderQuarantine(place)
    for use in (lambda: quarantine.put(SHARD, [rejected()]), lambda: list(quarantine.read())):
        with pytest.raises(QuarantineProblem, match=r"quarantine folder .* cannot be used"):
            use()


def test_a_write_that_breaks_off_leaves_the_old_object_and_no_litter(tmp_path: Path, monkeypatch) -> None:
    quarantine = FolderQuarantine(tmp_path)
    records = [rejected(0), rejected(1)]
    quarantine.put(SHARD, records)

    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(QuarantineProblem, match="No space left"):
        quarantine.put(SHARD, records)
    assert list(quarantine.read()) == records
    assert len(list((tmp_path / SHARD).iterdir())) == 1


@pytest.mark.parametrize("line", [b"{}", b"not json", b'{"reason":"of_tomorrow"}', b'{"reason":"not_json","data":"*"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    quarantine = FolderQuarantine(tmp_path)
    quarantine.put(SHARD, [rejected()])
    (place,) = (tmp_path / SHARD).iterdir()
    place.write_bytes(place.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(QuarantineProblem, match=r"line 3 of .*ndjson is not a quarantined record"):
        list(quarantine.read())


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / SHARD).mkdir()
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / SHARD / ".half.part").write_text("half")
    assert list(FolderQuarantine(tmp_path).read()) == []


def test_object_by_object_gives_what_reading_whole_gives(opened):
    opened().put(SHARD, [rejected(2), rejected(1)])
    opened().put(SHARD, [rejected(3)])

    names = opened().names()

    assert len(names) == len(set(names)) == 2
    found = [record for name in names for record in opened().read_object(name)]
    assert sorted_by_place(found) == sorted_by_place(opened().read()) == [rejected(1), rejected(2), rejected(3)]


def test_an_object_that_is_not_there_is_said(opened):
    with pytest.raises(QuarantineProblem):
        opened().read_object(f"{SHARD}/1-2.ndjson")


def test_no_quarantine_has_no_objects():
    assert NoQuarantine().names() == []
    with pytest.raises(QuarantineProblem, match="dropped on purpose"):
        NoQuarantine().read_object("any")
