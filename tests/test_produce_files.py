"""Records from files: the trips' own columns, any CSV with a header, NDJSON; and what a broken row says."""

import json
import os
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest

from windlass.produce.files import TRIP_COLUMNS, UnreadableFile, read
from windlass.produce.source import records
from windlass.produce.trips import Trip

REAL_TRIPS = Path(__file__).parent.parent / ".." / "shared" / "data" / "nyc-trips-5340.csv"
ROW = "id0000777,1,3/4/16 7:08,3/4/16 7:19,2,-73.95,40.78,-73.97,40.76,Y,1.74,640,3100,702"
NO_ROUTE = "id0000778,2,3/4/16 7:08,3/4/16 7:19,2,-73.95,40.78,-73.97,40.76,N,1.74,640,,"


def file(tmp_path: Path, text: str, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_a_file_without_a_header_is_read_as_trips_by_its_columns(tmp_path):
    assert list(read(file(tmp_path, f"{ROW}\n{NO_ROUTE}\n"))) == [
        Trip(
            id="id0000777",
            vendor=1,
            passengers=2,
            pickup_ms=1_457_075_280_000,  # 2016-03-04T07:08:00
            dropoff_ms=1_457_075_940_000,
            pickup_longitude=-73.95,
            pickup_latitude=40.78,
            dropoff_longitude=-73.97,
            dropoff_latitude=40.76,
            held=True,
            miles=1.74,
            trip_s=640,
            road_m=3100,
            road_s=702,
        ),
        Trip("id0000778", 2, 2, 1_457_075_280_000, 1_457_075_940_000, -73.95, 40.78, -73.97, 40.76, False, 1.74, 640,
             None, None),
    ]  # fmt: skip


def test_the_trips_columns_may_have_their_header_and_their_dates_may_be_iso(tmp_path):
    iso = ROW.replace("3/4/16 7:08", "2016-03-04 07:08:00").replace("3/4/16 7:19", "2016-03-04T07:19:00")
    with_header = file(tmp_path, f"{','.join(TRIP_COLUMNS)}\n{iso}\n", "a.csv")
    assert list(read(with_header)) == list(read(file(tmp_path, ROW, "b.csv")))


@pytest.mark.parametrize("dialect", ["kpl", "sdk", "flink"])
def test_trips_of_a_file_are_written_in_a_dialect(tmp_path, dialect):
    (record,) = records(csv=file(tmp_path, ROW), dialect=dialect)
    assert record.key == "id0000777"
    assert int(json.loads(record.data)["passengerCount"]) == 2


def test_any_other_csv_becomes_objects_each_column_of_one_kind(tmp_path):
    path = file(tmp_path, 'city,amount,code,paid,note\nBasel,1.50,007,true,"a, b"\nBern,-2e3,7,,\nChur,,8,false,5\n')
    rows = list(read(path))
    assert [row.data for row in rows] == [
        b'{"city":"Basel","amount":1.50,"code":"007","paid":true,"note":"a, b"}',
        b'{"city":"Bern","amount":-2e3,"code":"7"}',
        b'{"city":"Chur","code":"8","paid":false,"note":"5"}',
    ]
    assert [row.key for row in rows] == ["Basel", "Bern", "Chur"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_columns_may_be_parted_by_other_marks(tmp_path, mark):
    (record,) = read(file(tmp_path, f"city{mark}amount\nBasel, BS{mark}2\n"))
    assert record.data == b'{"city":"Basel, BS","amount":2}'


def test_what_cannot_be_read_twice_is_read_cell_by_cell(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writing = Thread(target=path.write_text, args=("city,code\nBasel,007\nBern,7\n",))
    writing.start()
    rows = list(read(path))
    writing.join()
    assert [row.data for row in rows] == [b'{"city":"Basel","code":"007"}', b'{"city":"Bern","code":7}']


def test_a_file_without_rows_is_not_looped_for_ever(tmp_path):
    for path in (file(tmp_path, "", "empty.ndjson"), file(tmp_path, "city,code\n")):
        with pytest.raises(UnreadableFile, match="has no rows to repeat"):
            next(records(csv=path, loop=True))


def test_a_line_that_is_nested_very_deep_is_sent_as_it_is(tmp_path):
    deep = "[" * 50_000 + "]" * 50_000
    (record,) = read(file(tmp_path, f'\ufeff{{"id": 1, "x": {deep}}}', "rows.ndjson"))
    assert record.key == "row-1"
    assert record.data.startswith(b'{"id": 1')
    assert list(records(csv=file(tmp_path, f'{{"x": {deep}}}\n' * 50, "deep.ndjson"), unclean=0.5))


def test_an_array_of_objects_is_not_taken_for_one_record(tmp_path):
    with pytest.raises(UnreadableFile, match="holds a JSON array; a record is a line"):
        list(read(file(tmp_path, '[{"id": 1}, {"id": 2}]', "rows.json")))


def test_numbers_keep_every_digit(tmp_path):
    (record,) = read(file(tmp_path, "id,amount\n1,12345678901234567890.12345678901234567890\n"))
    assert b"12345678901234567890.12345678901234567890" in record.data


def test_the_field_id_is_the_partition_key_and_a_row_without_one_has_its_number(tmp_path):
    path = file(tmp_path, "city,id\nBasel,b-1\nBern,\n")
    assert [row.key for row in read(path)] == ["b-1", "row-3"]


def test_lines_of_ndjson_stay_as_they_are(tmp_path):
    text = '{"id": "a",  "x": 1}\r\n\nnot json\n{"id":7}\n["no object"]'
    rows = list(read(file(tmp_path, text, "rows.ndjson")))
    assert [row.data for row in rows] == [b'{"id": "a",  "x": 1}', b"not json", b'{"id":7}', b'["no object"]']
    assert [row.key for row in rows] == ["a", "row-3", "7", "row-5"]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    (record,) = read(file(tmp_path, "\ufeffid,x\n1,2\n"))
    assert record.data == b'{"id":1,"x":2}'


def test_a_loop_begins_again_and_without_one_the_file_ends(tmp_path):
    path = file(tmp_path, f"{ROW}\n{NO_ROUTE}\n")
    assert [row.key for row in islice(records(csv=path, loop=True), 5)] == ["id0000777", "id0000778"] * 2 + [
        "id0000777"
    ]
    assert len(list(records(csv=path))) == 2


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (f"{ROW}\n{ROW.replace(',640,', ',six,')}", r"row 2: trip_duration is a whole number, found 'six'"),
        (f"{ROW}\n\n{ROW.replace('3/4/16 7:19', 'noon')}", r"row 3: dropoff_datetime is a time such as .*found 'noon'"),
        (f"{ROW}\n{ROW.replace('40.78', 'nan')}", r"row 2: pickup_latitude is a number, found 'nan'"),
        (f"{ROW}\n{ROW},1", r"row 2: 15 cells where row 1 has 14; mend or delete the row"),
        (f"{ROW}\n{ROW.replace('id0000777', '')}", r"row 2: id is the partition key .*found 0"),
        ("a,b\n1", r"row 2: 1 cells where row 1 has 2"),
        ('a,b\n1,"2\n', r"row 2: not CSV in UTF-8"),
        ("1,2\n3,4", r"row 1: a header names each column once, in words; found '1'"),
        ("a,a\n3,4", r"row 1: a header names each column once, in words; found 'a'"),
        ("", r"the file is empty"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, rows, says):
    with pytest.raises(UnreadableFile, match=says):
        list(read(file(tmp_path, rows)))


def test_bytes_that_are_not_utf8_are_named_by_row(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes(b"city\n" + b"Basel\n" * 3000 + b"Gen\xe8ve\n")
    with pytest.raises(UnreadableFile, match=r"latin\.csv, row 3002: not CSV in UTF-8"):
        list(read(path))


def test_a_file_that_is_not_there_says_so():
    with pytest.raises(UnreadableFile, match=r"nowhere\.csv: No such file or directory; name a CSV"):
        list(read(Path("nowhere.csv")))


@pytest.mark.skipif(not REAL_TRIPS.exists(), reason="the file of real trips is not on this machine")
def test_five_thousand_real_trips_are_all_read():
    trips = list(read(REAL_TRIPS))
    assert len(trips) == 5340
    assert all(isinstance(trip, Trip) for trip in trips)
    assert sum(trip.road_m is None for trip in trips) == 6
    assert len({trip.id for trip in trips}) == 5340
