"""An estimate follows its load: laws of size, and figures one can work out by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.commands.deploy import run_cost
from windlass.deploy.cost import Load, estimate, measure_core_records_s, prices, to_dict
from windlass.deploy.template import template

PRICES = prices()
LOADS = st.builds(
    Load,
    records_s=st.floats(0.01, 1e6),
    record_bytes=st.integers(1, 100_000),
    keys=st.integers(1, 10**6),
    window_s=st.integers(1, 900),
    per_aggregate=st.integers(1, 200),
    shards=st.one_of(st.none(), st.integers(1, 5000)),
    on_demand=st.booleans(),
    retention_hours=st.integers(24, 8760),
    memory_mb=st.integers(128, 10_240),
)


def test_four_provisioned_shards_cost_what_the_price_page_says():
    found = estimate(Load(records_s=1000, shards=4, on_demand=False), PRICES)
    hours = 4 * 730 * 0.015
    puts = 1000 * 730 * 3600 / 1e6 * 0.014
    assert found.usd["Kinesis"] == pytest.approx(hours + puts)


def test_small_records_on_demand_pay_for_a_kilobyte_each():
    found = estimate(Load(records_s=1000, record_bytes=100), PRICES)
    gb = 1000 * 1024 / 1e9 * 730 * 3600
    assert found.usd["Kinesis"] == pytest.approx(730 * 0.04 + gb * (0.08 + 0.04))


@pytest.mark.parametrize("on_demand", [True, False])
def test_beyond_a_week_only_the_price_of_keeping_longer_grows(on_demand):
    week, more = (
        estimate(Load(records_s=1000, record_bytes=1024, on_demand=on_demand, retention_hours=hours), PRICES)
        for hours in (168, 168 + 730)
    )
    gb_a_month = 1000 * 1024 / 1e9 * 730 * 3600
    assert more.usd["Kinesis"] - week.usd["Kinesis"] == pytest.approx(gb_a_month * 0.023)


def test_writes_are_one_per_key_window_and_shard():
    found = estimate(Load(records_s=10_000, keys=2, window_s=30, shards=4), PRICES)
    assert found.writes_s == pytest.approx(2 * 4 / 30)
    assert found.write_units_s == pytest.approx(found.writes_s)  # items below a kilobyte


def test_a_key_on_a_thousand_shards_is_told_to_be_hot():
    found = estimate(Load(records_s=1_000_000, keys=1, window_s=30, shards=1000), PRICES)
    assert found.item_bytes == 200 + 132 * 1000
    # 1 to 130 kilobytes, each for about eight writes
    assert found.hottest_item_units == pytest.approx(1000 * 65, rel=0.02)
    assert any("write units per window" in note for note in found.notes)


def test_a_stream_on_demand_begins_with_four_shards():
    assert [estimate(Load(records_s=rate), PRICES).shards for rate in (1, 5000)] == [4, 5]
    assert estimate(Load(records_s=1, shards=1), PRICES).shards == 1
    assert estimate(Load(records_s=1, on_demand=False), PRICES).shards == 1


@pytest.mark.parametrize(("per_aggregate", "told"), [(1024, False), (1025, True)])
def test_an_aggregate_that_is_no_kinesis_record_is_told(per_aggregate, told):
    found = estimate(Load(records_s=1, record_bytes=1024, per_aggregate=per_aggregate), PRICES)
    assert any("a stream takes 1 MiB" in note for note in found.notes) == told


def test_a_load_that_its_shards_cannot_take_is_told():
    found = estimate(Load(records_s=5000, shards=2), PRICES)
    assert found.shards_needed == 5
    assert any("2 shards take less than this load: it needs 5" in note for note in found.notes)


def test_a_function_that_is_busy_all_the_time_is_told():
    found = estimate(Load(records_s=1000, core_records_s=1000, shards=1), PRICES)
    assert found.busy > 1
    assert any("take more memory or more shards" in note for note in found.notes)


def test_aggregates_save_what_they_should():
    plain, packed = (estimate(Load(records_s=5000, per_aggregate=n), PRICES) for n in (1, 120))
    assert packed.usd["Kinesis"] < plain.usd["Kinesis"] / 2
    assert any("aggregate them" in note for note in plain.notes)
    assert not packed.notes


@given(LOADS)
def test_every_figure_is_finite_and_positive(load):
    found = estimate(load, PRICES)
    assert found.usd_month > 0
    assert all(0 <= usd < 1e12 for usd in found.usd.values())
    assert found.shards >= 1
    assert found.calls_s > 0
    json.dumps(to_dict(load, found, PRICES))


@given(LOADS, st.sampled_from(["records_s", "record_bytes"]))
def test_more_and_larger_records_never_cost_less(load, name):
    import msgspec

    load = msgspec.structs.replace(load, shards=load.shards or 4)
    more = msgspec.structs.replace(load, **{name: getattr(load, name) * 2})
    assert estimate(more, PRICES).usd_month >= estimate(load, PRICES).usd_month * 0.999


def test_the_price_table_says_where_and_when_it_is_from():
    assert PRICES.region == "us-east-1"
    assert PRICES.as_of >= "2025"
    assert all(usd > 0 for usd in PRICES.usd.values())


def test_the_alarms_of_an_estimate_are_those_of_the_template():
    from windlass.apps import find_app
    from windlass.deploy.cost import ALARMS
    from windlass.deploy.settings import Settings

    resources = template(find_app("examples/taxi/app.py"), Settings())["Resources"].values()
    assert sum(each["Type"] == "AWS::CloudWatch::Alarm" for each in resources) == ALARMS


def test_this_machines_rate_is_measured_on_real_events():
    ticks = iter(range(1000))
    assert measure_core_records_s(Load(records_s=1, record_bytes=422), lambda: next(ticks)) == 2000
    assert measure_core_records_s(Load(records_s=1, per_aggregate=50), lambda: next(ticks)) == 2000


def test_the_command_prints_both_ways(capsys):
    load = Load(records_s=2000, core_records_s=400_000)
    assert run_cost(load, measure=False, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["usd_month"] == pytest.approx(sum(told["usd"].values()), abs=0.01)
    assert run_cost(load, measure=False, as_json=False) == 0
    assert "USD  a month, prices of us-east-1 as of" in capsys.readouterr().out
