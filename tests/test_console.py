"""The console's answers, and who gets them."""

import http.client
import json

import msgspec
import pytest
from starlette.datastructures import Headers

from tests.console_sources import NOW_MS, SHARD, WINDOW_MS, MadeUp, item, refused
from windlass.console.demo_source import examples, status_view
from windlass.console.desk import Desk, key_in
from windlass.console.index import Items, Pace, RejectedRecords, _natural
from windlass.console.problem import ConsoleProblem
from windlass.console.server import Console, refusal
from windlass.console.source import ShardView, SourceProblem
from windlass.console.values import item_view
from windlass.core.position import position
from windlass.core.rejected import Reason
from windlass.core.window import Window
from windlass.local.mapping import Counters
from windlass.local.meter import Meter
from windlass.local.poller import ShardStatus
from windlass.local.taxi import trips
from windlass.local.watch import WatchedCall
from windlass.quarantine import MemoryQuarantine
from windlass.telemetry import Report

PORT = 4567
HOME = {"host": f"127.0.0.1:{PORT}"}
OURS = HOME | {"content-type": "application/json", "x-windlass": "1"}


# --- who is let in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "headers", "is_in"),
    [
        ("GET", HOME, True),
        ("GET", {"host": f"localhost:{PORT}"}, True),
        ("GET", {"host": "127.0.0.1"}, False),
        ("GET", {"host": f"127.0.0.1:{PORT + 1}"}, False),
        ("GET", {"host": f"evil.example:{PORT}"}, False),
        ("GET", {"host": f"127.0.0.1.evil.example:{PORT}"}, False),
        ("GET", {}, False),
        ("GET", HOME | {"origin": f"http://127.0.0.1:{PORT}"}, True),
        ("GET", HOME | {"origin": "https://evil.example"}, False),
        ("GET", HOME | {"origin": "null"}, False),
        ("GET", HOME | {"origin": f"http://127.0.0.1:{PORT + 1}"}, False),
        ("GET", HOME | {"sec-fetch-site": "cross-site"}, False),
        ("GET", HOME | {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, False),
        ("GET", HOME | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ("POST", OURS, True),
        ("POST", OURS | {"content-type": "application/json; charset=utf-8"}, True),
        ("POST", OURS | {"content-type": "text/plain"}, False),
        ("POST", OURS | {"x-windlass": ""}, False),
        ("POST", HOME | {"content-type": "application/x-www-form-urlencoded"}, False),
        ("POST", OURS | {"origin": "https://evil.example"}, False),
        ("POST", OURS | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),
    ],
)
def test_only_its_own_page_on_this_machine_is_answered(method, headers, is_in):
    assert (refusal(method, Headers(headers), PORT) is None) is is_in


@pytest.fixture(scope="module")
def served():
    source = MadeUp()
    with Console(source) as console:
        yield console, source


def request(console, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_stranger_gets_nothing_and_is_told_why(served):
    console, _ = served

    status, _, body = request(console, "GET", "/api/pipeline", Host="evil.example")

    assert status == 403
    assert b"evil.example" in body


@pytest.mark.parametrize("path", ["/", "/api/pipeline", "/static/main.js", "/nothing-there"])
def test_every_answer_forbids_all_other_hosts_and_inline_scripts(served, path):
    console, _ = served

    _, headers, _ = request(console, "GET", path)

    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "access-control-allow-origin" not in headers
    assert headers["x-content-type-options"] == "nosniff"


def test_a_file_outside_of_the_page_is_not_served(served):
    console, _ = served

    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py"):
        assert request(console, "GET", path)[0] == 404


def test_a_record_is_put_by_json_with_our_header_alone(served):
    console, source = served
    body = json.dumps({"partition_key": "k", "data": "ünclean"})

    bare = request(console, "POST", "/api/put", body, **{"content-type": "application/json"})
    ours = request(console, "POST", "/api/put", body, **{"content-type": "application/json", "x-windlass": "1"})

    assert (bare[0], ours[0]) == (403, 200)
    assert source.put_records == [("k", "ünclean".encode())]
    assert json.loads(ours[2])["sequence"] == "101"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ('{"partition_key": "k"}', 400),
        ('{"partition_key": "", "data": "x"}', 200),
        ('{"partition_key": "k", "data": ""}', 200),
    ],
)
def test_a_put_that_cannot_be_is_refused_in_words(served, body, status):
    console, _ = served

    found, _, answer = request(
        console, "POST", "/api/put", body, **{"content-type": "application/json", "x-windlass": "1"}
    )

    assert found == status
    assert json.loads(answer)["problem"]


@pytest.mark.parametrize(
    "query", ["items?offset=-1&limit=x", "items?limit=99999999999999999", "chart?top=x&span=", "series?span_ms=-5"]
)
def test_numbers_that_are_none_are_read_as_the_usual_ones(served, query):
    console, _ = served

    assert request(console, "GET", f"/api/{query}")[0] == 200


def test_the_stream_of_events_tells_the_state_at_once(served):
    console, _ = served
    connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=10)
    connection.request("GET", "/api/stream")
    answer = connection.getresponse()

    assert answer.getheader("content-type").startswith("text/event-stream")
    assert (answer.readline(), answer.readline()) == (b"retry: 1000\n", b"\n")
    assert answer.readline() == b"event: tick\n"
    tick = json.loads(answer.readline().removeprefix(b"data: "))
    connection.close()
    assert tick["now_ms"] == NOW_MS
    assert tick["shards"][0]["shard_id"] == SHARD
    assert tick["rates"]["received"] == 1.0


def test_a_taken_port_is_said_in_one_line(served):
    console, source = served

    with pytest.raises(ConsoleProblem, match=rf"127.0.0.1:{console.port}: .*another port"):
        Console(source, port=console.port).start()


# --- items ---------------------------------------------------------------------------------------------------------


def indexed(*items):
    index = Items(lambda: items)
    index.refresh()
    return index


def test_items_come_newest_first_and_keys_by_value():
    index = indexed(item("10", 1), item("9", 1), item("b", 0), item("10", 0))

    assert [(each.key, each.window_start_ms) for each in index.page("", 0, 9).rows] == [
        (key, NOW_MS - (ago + 1) * WINDOW_MS) for key, ago in [("10", 0), ("b", 0), ("9", 1), ("10", 1)]
    ]


def test_a_filter_is_a_key_where_there_is_one_and_else_a_part_of_keys():
    index = indexed(item("1", 0), item("10", 0), item("21", 0))

    assert [each.key for each in index.page("1", 0, 9).rows] == ["1"]
    assert [each.key for each in index.page("2", 0, 9).rows] == ["21"]
    assert index.page("none", 0, 9).total == 0


def test_a_page_is_a_stretch_of_the_whole():
    index = indexed(*(item(str(key), 0) for key in range(50)))

    page = index.page("", 20, 5)

    assert (page.total, [each.key for each in page.rows]) == (50, ["20", "21", "22", "23", "24"])


def test_the_revision_changes_with_the_items_alone():
    items = [item("1", 0)]
    index = Items(lambda: items)
    index.refresh()
    before = index.revision
    index.refresh()
    assert index.revision == before
    items[0] = item("1", 0, passenger=2)
    index.refresh()
    assert index.revision == before + 1


def test_the_chart_has_the_largest_keys_and_the_sum_of_all():
    index = indexed(*(item(str(key), ago, passenger=key * 10) for key in range(1, 6) for ago in range(3)))

    found = index.chart("passenger", [], 2, 2)

    assert found["at_ms"] == [NOW_MS - 2 * WINDOW_MS, NOW_MS - WINDOW_MS]
    assert found["series"] == [{"key": "5", "values": [50, 50]}, {"key": "4", "values": [40, 40]}]
    assert found["sum"] == [150, 150]
    assert found["keys"] == 5


def test_a_window_without_an_item_of_the_key_is_a_gap():
    index = indexed(item("1", 0, passenger=3), item("1", 2, passenger=4), item("2", 1))

    assert index.chart("passenger", ["1"], 8, 9)["series"] == [{"key": "1", "values": [4, None, 3]}]


def test_of_a_table_that_is_too_large_the_newest_items_stay(monkeypatch):
    monkeypatch.setattr("windlass.console.index.ITEMS_MAX", 10)
    index = indexed(*(item("1", ago) for ago in range(100)))

    assert (index.count, index.is_whole) == (10, False)
    assert index.page("", 0, 1).rows[0].window_start_ms == NOW_MS - WINDOW_MS


def test_reading_pauses_for_as_long_as_it_is_told_after_what_it_took():
    pace = Pace(700, times=8)
    pace.done(1000, 1500)

    assert (pace.is_due(5499), pace.is_due(5500)) == (False, True)
    pace.done(6000, 6010)
    assert (pace.is_due(6709), pace.is_due(6710)) == (False, True)


def test_an_item_is_seen_with_its_totals_shards_and_all_else_apart():
    seen = item_view(
        {
            "vendorId": 2,
            "windowStart": "2026-11-23T11:00:00Z",
            "windowEnd": "2026-11-23T11:00:30Z",
            "passenger": 5,
            "applied#us-east-1:1:trips/shardId-1": position("7"),
            "applied#us-east-1:1:others/shardId-1": position("8"),
            "version": 3,
            "note": "<b>",
        },
        "vendorId",
        ["passenger"],
        30_000,
        "trips",
    )

    assert (seen.key, seen.totals, seen.others) == ("2", {"passenger": "5"}, {"note": "<b>"})
    assert seen.shards == {"shardId-1": position("7"), "us-east-1:1:others/shardId-1": position("8")}
    assert seen.window_end_ms - seen.window_start_ms == 30_000


def test_shards_of_equal_streams_in_two_places_keep_their_whole_names():
    fences = {f"applied#{region}:1:trips/shardId-1": position("7") for region in ("eu-west-1", "us-east-1")}

    seen = item_view({"vendorId": 2, **fences}, "vendorId", [], 30_000, "trips")

    assert list(seen.shards) == ["eu-west-1:1:trips/shardId-1", "us-east-1:1:trips/shardId-1"]


def test_keys_are_in_the_order_of_their_numbers_and_then_of_their_texts():
    keys = ["10", "nan", "2", "b", "0.5", "a", "inf"]
    assert sorted(keys, key=_natural) == ["0.5", "2", "10", "a", "b", "inf", "nan"]


# --- rejected records ----------------------------------------------------------------------------------------------


def test_rejected_records_are_counted_by_reason_and_read_once():
    quarantine = MemoryQuarantine()
    quarantine.put(SHARD, [refused(1), refused(2, Reason.MISSING_FIELD)])
    quarantine.put(SHARD, [refused(2, Reason.MISSING_FIELD), refused(3)])
    read = []
    original = quarantine.read_object
    quarantine.read_object = lambda name: read.append(name) or original(name)
    records = RejectedRecords(quarantine)

    records.refresh()
    records.refresh()

    assert len(read) == 2
    assert [(count.reason, count.count) for count in records.reasons()] == [("not_json", 2), ("missing_field", 1)]
    assert [record.position for record in records.page("", "", 0, 9).rows] == [position(str(n)) for n in (3, 2, 1)]
    assert records.page("missing_field", "", 0, 9).total == 1
    assert records.page("", "no such text", 0, 9).total == 0


def test_of_many_objects_the_newest_are_read_first(monkeypatch):
    monkeypatch.setattr("windlass.console.index.OBJECTS_PER_REFRESH_MAX", 2)
    quarantine = MemoryQuarantine()
    for sequence in range(1, 6):
        quarantine.put(SHARD, [refused(sequence)])
    records = RejectedRecords(quarantine)

    records.refresh()

    assert (records.count, records.is_whole) == (2, False)
    assert records.find(SHARD, "5") is not None
    records.refresh()
    records.refresh()
    assert (records.count, records.is_whole) == (5, True)


def test_of_more_records_than_are_kept_the_newest_are_and_it_is_told(monkeypatch):
    monkeypatch.setattr("windlass.console.index.OBJECTS_PER_REFRESH_MAX", 2)
    monkeypatch.setattr("windlass.console.index.REJECTED_MAX", 3)
    quarantine = MemoryQuarantine()
    for sequence in range(1, 6):
        quarantine.put(SHARD, [refused(sequence)])
    records = RejectedRecords(quarantine)

    for _ in range(3):
        records.refresh()

    assert [record.position for record in records.page("", "", 0, 9).rows] == [position(str(n)) for n in (5, 4, 3)]
    assert (records.count, records.is_whole) == (5, False)
    quarantine.put(SHARD, [refused(6)])
    records.refresh()
    assert [record.position for record in records.page("", "", 0, 9).rows] == [position(str(n)) for n in (6, 5, 4)]


# --- the demo's shards ---------------------------------------------------------------------------------------------


def test_a_shard_that_lags_hides_nothing_of_what_another_has_folded():
    def call(shard, start_ms, clean):
        return WatchedCall(
            number=1,
            request_id="r",
            shard_id=shard,
            kind="fold",
            window_start_ms=start_ms,
            window_end_ms=start_ms + 30_000,
            records=clean,
            attempt=1,
            started_ms=0,
            duration_ms=1,
            error_type="",
            error_message="",
            first="",
            last="",
            lines=(),
            report=Report(shard=shard, clean=clean),
        )

    listed = ShardView(shard_id="ahead", parents=(), low=0, high=1, closed=False, state="reading")
    status = ShardStatus("ahead", Counters(), Window(300_000, 330_000), "", done=False)
    calls = [call("ahead", 300_000, 10), call("ahead", 300_000, 20), call("behind", 210_000, 5)]
    assert status_view(listed, status, calls).folded == 30


# --- the desk ------------------------------------------------------------------------------------------------------


def desk_about(source):
    desk = Desk(source)
    desk.items.refresh()
    desk.rejected.refresh()
    return desk


def test_a_record_that_was_put_is_found_where_it_ended_up():
    source = MadeUp(items=[])
    desk = desk_about(source)
    clean, bad = desk.put("k", b'{"key": 7}'), desk.put("k", b"{")
    assert desk.whereabouts(clean.sequence) == {"stage": "put"}

    source.made = [item("8", -1, through=clean.sequence), item("7", -1, through=clean.sequence)]
    source.quarantine.put(SHARD, [refused(int(bad.sequence))])
    desk = Desk(source, timer=lambda: 0.0)
    desk._puts = {clean.sequence: (clean, b'{"key": 7}'), bad.sequence: (bad, b"{")}
    desk.items.refresh()
    desk.rejected.refresh()

    settled, rejected = desk.whereabouts(clean.sequence), desk.whereabouts(bad.sequence)
    assert (settled["stage"], settled["item"].key) == ("settled", "7")
    assert (rejected["stage"], rejected["rejected"]["reason"]) == ("rejected", "not_json")


def test_an_item_applied_through_an_earlier_record_does_not_hold_a_later_one():
    source = MadeUp(items=[])
    desk = Desk(source)
    put = desk.put("k", b'{"key": 7}')
    source.made = [item("7", -1, through=str(int(put.sequence) - 1))]
    desk.items.refresh()

    assert desk.whereabouts(put.sequence) == {"stage": "put"}


def test_a_record_put_elsewhere_is_not_followed():
    with pytest.raises(SourceProblem, match="not put here"):
        desk_about(MadeUp()).whereabouts("4711")


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b'{"key": 7}', "7"),
        (b'{"key": " 7"}', "7"),
        (b'{"other": 7}', None),
        (b"[7]", None),
        (b"{", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_a_record_tells_its_key_where_it_has_one(data, key):
    assert key_in(data, MadeUp().pipeline()) == key


def test_calls_are_searched_by_their_lines_and_shown_by_kind():
    desk = desk_about(MadeUp(word="Boom"))

    assert desk.call_page("boom", "errors", 0, 9).total == 1
    assert desk.call_page("", "final", 0, 9).total == 1
    assert desk.call_page("silence", "", 0, 9).total == 0


def test_what_cannot_be_read_is_told_and_the_rest_goes_on():
    source = MadeUp()
    source.problem = "stream s cannot be used: it is gone"
    told = json.loads(Desk(source).tick())

    assert told["problems"] == ["stream s cannot be used: it is gone"]
    assert told["shards"] == []
    assert told["rates"]["received"] == 1.0


def test_bytes_of_any_kind_are_shown_as_text():
    source = MadeUp()
    source.quarantine.put(SHARD, [refused(1, data=b"\xff\x00<script>", detail="odd \udcff detail")])
    page = desk_about(source).rejected_page("", "", 0, 9)

    row = json.loads(msgspec.json.encode(page))["rows"][0]
    assert row["text"] == "\\xff\x00<script>"
    assert row["json"] is False
    assert row["detail"] == "odd \\udcff detail"


def test_the_examples_of_a_pipeline_are_what_they_are_called():
    made = examples(trips.describe())

    assert json.loads(made["clean"]) == {"vendorId": 1, "passengerCount": 1}
    assert json.loads(made["missing field"]) == {"passengerCount": 1}
    assert json.loads(made["wrong type"])["vendorId"] == "not a number"
    with pytest.raises(json.JSONDecodeError):
        json.loads(made["not JSON"])


# --- the meter -----------------------------------------------------------------------------------------------------


def test_values_fall_into_the_steps_of_their_time():
    meter = Meter()
    meter.add(10_500, [("calls", 1), ("duration", 40)])
    meter.add(10_900, [("calls", 1), ("duration", 20)])
    meter.add(12_000, [("calls", 1), ("duration", 9)])

    steps = meter.read(10_000, 14_000, 2_000)

    assert [step.get("calls") and step["calls"].total for step in steps] == [2, 1]
    first = steps[0]["duration"]
    assert (first.times, first.total, first.least, first.greatest) == (2, 60, 20, 40)


def test_a_day_is_kept_by_the_minute_and_an_hour_by_the_second(monkeypatch):
    monkeypatch.setattr("windlass.local.meter.FINE_BUCKETS", 3)
    meter = Meter()
    for second in range(600):
        meter.add(second * 1000, [("calls", 1)])

    fine = meter.read(0, 600_000, 1_000)
    coarse = meter.read(0, 600_000, 60_000)

    assert sum(step["calls"].total for step in fine if step) == 3
    assert [step["calls"].total for step in coarse] == [60] * 10
