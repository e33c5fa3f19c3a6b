"""Positions order as the stream does; windows are half-open, aligned to the epoch, and survive their text."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.position import SUB_MAX, position, split
from windlass.core.window import Window

places = st.tuples(st.integers(0, 10**56 - 1), st.integers(0, SUB_MAX))
moments_ms = st.integers(0, 4_000_000_000_000)
lengths_s = st.integers(1, 900)


@given(places, places)
def test_text_order_is_stream_order(one, other):
    texts = [position(str(sequence), sub) for sequence, sub in (one, other)]

    assert (texts[0] < texts[1]) == (one < other)


@given(places)
def test_a_position_gives_back_its_sequence_and_its_place(place):
    sequence, sub = place

    assert split(position(str(sequence), sub)) == (str(sequence), sub)


@pytest.mark.parametrize("sequence", ["", "-1", "12a", " 12", "1.5", "9" * 57, "٣"])
def test_what_is_no_sequence_number_is_refused_with_what_was_found(sequence):
    with pytest.raises(ValueError, match="1 to 56 decimal digits"):
        position(sequence)


@given(moments_ms, lengths_s)
def test_a_moment_lies_in_its_window_and_windows_touch_without_overlap(moment_ms, length_s):
    window = Window.of(moment_ms, length_s * 1000)

    assert window.start_ms <= moment_ms < window.end_ms
    assert window.start_ms % (length_s * 1000) == 0
    assert Window.of(window.end_ms, length_s * 1000).start_ms == window.end_ms
    assert Window.of(window.end_ms - 1, length_s * 1000) == window


@given(moments_ms, lengths_s)
def test_a_window_survives_its_text_and_text_order_is_time_order(moment_ms, length_s):
    window = Window.of(moment_ms, length_s * 1000)

    assert Window.parse(window.start, window.end) == window
    assert window.start < window.end
    assert datetime.fromisoformat(window.start) == datetime.fromtimestamp(window.start_ms / 1000, UTC)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2020-12-09T07:04:30Z", "2020-12-09T07:04:00Z"),
        ("2020-12-09T07:04:00Z", "2020-12-09T07:04:00Z"),
        ("2020-12-09T07:04:00", "2020-12-09T07:04:30"),
        ("yesterday", "today"),
        (None, 5),
    ],
)
def test_what_is_no_window_is_refused(start, end):
    with pytest.raises(ValueError, match="window"):
        Window.parse(start, end)
