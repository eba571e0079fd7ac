from __future__ import annotations

import math
import pkgutil
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.budget import Budget, Limit, budget_levels, check_levels
from autoprune.errors import BudgetError
from autoprune.metrics import METRICS, MetricSpec, format_amount, spec_of

NAMES = tuple(spec.name for spec in METRICS)


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("latency=8ms", "latency", 8.0),
        ("latency=0.008s", "latency", 8.0),
        ("latency=8000us", "latency", 8.0),
        ("latency=8000\u00b5s", "latency", 8.0),
        ("latency=8000\u03bcs", "latency", 8.0),
        ("latency=.5ms", "latency", 0.5),
        ("latency=5.ms", "latency", 5.0),
        ("flops=4.2G", "flops", 4.2e9),
        ("flops=900M", "flops", 9e8),
        ("flops=4.2e9", "flops", 4.2e9),
        ("flops=1.1T", "flops", 1.1e12),
        ("params=1.5M", "params", 1.5e6),
        ("params=1500000", "params", 1.5e6),
        ("params=900k", "params", 9e5),
        ("size=3MB", "size", 3e6),
        ("size=900KB", "size", 9e5),
        ("size=512B", "size", 512.0),
        ("size=2MiB", "size", 2 * 2**20),
        ("channels=2000", "channels", 2000.0),
        ("channels=2k", "channels", 2000.0),
        (" Latency = 8 MS ", "latency", 8.0),
    ],
)
def test_absolute_limits_are_read_exactly(text: str, metric: str, value: float) -> None:
    limit = Limit.parse(text)
    assert (limit.metric, limit.value, limit.relative) == (metric, value, False)
    assert limit.requested == text.strip()
    assert limit.resolve(1.0) == value


@pytest.mark.parametrize("metric", NAMES)
@pytest.mark.parametrize(("percent", "share"), [("60%", 0.6), ("100%", 1.0), ("0.5 %", 0.005)])
def test_percentages_are_shares_of_the_dense_network(metric: str, percent: str, share: float) -> None:
    limit = Limit.parse(f"{metric}={percent}")
    assert (limit.value, limit.relative) == (share, True)
    assert limit.resolve(250.0) == share * 250.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "METRIC=AMOUNT"),
        ("8ms", "METRIC=AMOUNT"),
        ("latency:8ms", "METRIC=AMOUNT"),
        ("=8ms", "one of latency, energy, flops, params, size, memory, channels, fps, got ''"),
        ("speed=8ms", "one of latency, energy, flops, params, size, memory, channels, fps, got 'speed'"),
        ("latency=8", "the unit is missing"),
        ("size=3", "the unit is missing"),
        ("latency=8min", "unknown unit 'min'"),
        ("flops=4.2GB", "unknown unit 'gb'"),
        ("params=3MB", "unknown unit 'mb'"),
        ("size=3M", "unknown unit 'm'"),
        ("channels=20px", "unknown unit 'px'; write channels= with 2000, 2K or 15%"),
        ("channels=0.15", "a share is written in percent: channels=15.00%"),
        ("latency=", "'' is not a number"),
        ("latency=ms", "'ms' is not a number"),
        ("latency=nanms", "'nanms' is not a number"),
        ("latency=nan", "'nan' is not a number"),
        ("latency=infms", "'infms' is not a number"),
        ("latency=8ms9", "'8ms9' is not a number"),
        ("latency=1,5ms", "'1,5ms' is not a number"),
        ("latency=8ms,flops=50%", "is not a number"),
        ("latency=0ms", "above zero"),
        ("latency=-1ms", "above zero"),
        ("flops=0%", "above zero"),
        ("flops=-5%", "above zero"),
        ("flops=101%", r"\(0, 100\]"),
        ("flops=0.5", "flops=50.0%"),
        ("flops=50", "no network has so few; a share is written in percent: flops=50%"),
        ("params=100", "params=100%"),
        ("params=.25", "params=25.00%"),
        ("latency=1e400ms", "too large or too small"),
        ("latency=1e-400ms", "too large or too small"),
        ("latency=1e9999999999ms", "is not a number"),
    ],
)
def test_malformed_limits_say_what_is_wrong_and_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(BudgetError, match=said) as caught:
        Limit.parse(text)
    assert "\n" not in str(caught.value)
    assert repr(text.strip()) in str(caught.value)


def test_a_budget_keeps_its_limits_in_order() -> None:
    budget = Budget.parse(["latency=8ms", "flops=50%"])
    assert [limit.metric for limit in budget] == ["latency", "flops"]
    assert (len(budget), str(budget)) == (2, "latency=8ms, flops=50%")


def test_one_text_is_one_limit() -> None:
    assert Budget.parse("flops=50%") == Budget.parse(["flops=50%"])
    assert budget_levels("flops=80%,60%") == budget_levels(["flops=80%,60%"])
    with pytest.raises(BudgetError, match=r"METRIC=AMOUNT, e\.g\. latency=8ms or flops=50%, got 'flops'"):
        Budget.parse("flops")


@pytest.mark.parametrize("second", ["latency=8ms", "latency=7ms", "latency=60%"])
def test_a_metric_is_limited_once(second: str) -> None:
    with pytest.raises(BudgetError, match=f"each metric once, got latency=8ms and {second}"):
        Budget.parse(["latency=8ms", "flops=50%", second])


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="at least one limit"):
        Budget.parse([])


@pytest.mark.parametrize(
    ("texts", "levels"),
    [
        (["flops=50%"], ["flops=50%"]),
        (["latency=12ms,10ms,8ms"], ["latency=12ms", "latency=10ms", "latency=8ms"]),
        (["params=2M", "flops=80%,60%"], ["params=2M, flops=80%", "params=2M, flops=60%"]),
        (["size=3MB,2500KB"], ["size=3MB", "size=2500KB"]),
        (["flops=4G,50%,1G"], ["flops=4G", "flops=50%", "flops=1G"]),  # which of G and % is less, only a run can tell
    ],
)
def test_one_limit_may_list_several_levels(texts: list[str], levels: list[str]) -> None:
    assert [str(budget) for budget in budget_levels(texts)] == levels


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "at least one limit"),
        (["flops=50%,60%"], "below the one before, got flops=60% after flops=50%"),
        (["flops=50%,50%"], "below the one before, got flops=50% after flops=50%"),
        (["flops=50%,1G,60%"], "below the one before, got flops=60% after flops=50%"),
        (["flops=1G,50%,1G"], "below the one before, got flops=1G after flops=1G"),
        (["latency=8ms,0.009s"], "below the one before, got latency=0.009s after latency=8ms"),
        (["flops=80%,60%", "params=80%,60%"], "Only one limit may list several levels, got flops and params"),
        (["flops=80%,60%", "flops=50%"], "each metric once, got flops=80% and flops=50%"),
        (["flops=80%,"], "'' is not a number"),
        (["flops=80%,params=60%"], "is not a number"),
        (["speed=3,2"], "got 'speed'"),
        (["flops"], "METRIC=AMOUNT"),
    ],
)
def test_levels_that_make_no_sense_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(BudgetError, match=said) as caught:
        budget_levels(texts)
    assert "\n" not in str(caught.value)


def limits_of(levels: Sequence[Budget], dense: float) -> list[dict[str, float]]:
    return [{limit.metric: limit.resolve(dense) for limit in level} for level in levels]


@pytest.mark.parametrize("dense", [3e9, 7.9e9])
def test_shares_and_amounts_are_levels_in_order_if_they_fall_on_the_network(dense: float) -> None:
    levels = budget_levels(["flops=4G,50%,1G", "params=1G"])
    check_levels(levels, limits_of(levels, dense))


@pytest.mark.parametrize(
    ("dense", "said"),
    [
        (8e9, r"flops=50% \(4\.00 G\) is not below flops=4G \(4\.00 G\); change their order"),
        (2e9, r"flops=1G \(1\.00 G\) is not below flops=50% \(1\.00 G\); change their order"),
    ],
)
def test_shares_and_amounts_that_do_not_fall_on_the_network_are_refused(dense: float, said: str) -> None:
    levels = budget_levels(["flops=4G,50%,1G", "params=1G"])
    with pytest.raises(BudgetError, match=said):
        check_levels(levels, limits_of(levels, dense))


@pytest.mark.parametrize("dense", [math.nan, math.inf, 0.0, -1.0])
def test_a_share_of_nothing_is_refused(dense: float) -> None:
    with pytest.raises(BudgetError, match="positive number"):
        Limit.parse("flops=50%").resolve(dense)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("latency", 8.0, "8.00 ms"),
        ("latency", 0.125, "0.125 ms"),
        ("latency", 1234.5, "1234.50 ms"),
        ("flops", 4.2e9, "4.20 G"),
        ("flops", 1.1e12, "1.10 T"),
        ("params", 1.5e6, "1.50 M"),
        ("params", 999_999, "1.00 M"),
        ("params", 999, "999"),
        ("params", 0, "0"),
        ("size", 3e6, "3.00 MB"),
        ("size", 9e5, "900.00 KB"),
        ("size", 512, "512 B"),
        ("channels", 2000.0, "2000"),
        ("channels", 123456, "123456"),
        ("flops", math.nan, "nan"),
        ("size", math.inf, "inf B"),
    ],
)
def test_amounts_read_well(metric: str, value: float, text: str) -> None:
    assert format_amount(metric, value) == text


def test_formatting_an_unknown_metric_is_refused() -> None:
    with pytest.raises(BudgetError, match="got 'speed'"):
        format_amount("speed", 1.0)


_UNITS = {
    "latency": ["ms", "s", "us", "%"],
    "energy": ["mJ", "J", "uJ", "%"],
    "flops": ["K", "M", "G", "T", "%"],
    "params": ["K", "M", "G", "%"],
    "size": ["B", "KB", "MB", "GB", "KiB", "MiB", "GiB", "%"],
    "memory": ["B", "KB", "MB", "GB", "KiB", "MiB", "GiB", "%"],
    "channels": ["K", "M", "%"],
}
texts = st.sampled_from(NAMES).flatmap(
    lambda metric: st.builds(
        "{}={}{}".format,
        st.just(metric),
        st.decimals(min_value="0.001", max_value=100, places=3).map(str),
        st.sampled_from(_UNITS[metric]),
    )
)


@given(texts)
def test_reading_the_requested_text_again_gives_the_same_limit(text: str) -> None:
    limit = Limit.parse(text)
    assert Limit.parse(limit.requested) == limit
    assert limit.value > 0
    assert limit.relative == text.endswith("%")


@given(st.lists(texts, min_size=1, max_size=4, unique_by=lambda text: text.split("=")[0]))
def test_a_budget_round_trips_through_its_texts(lines: list[str]) -> None:
    budget = Budget.parse(lines)
    assert Budget.parse(budget.texts) == budget


@given(st.lists(texts, min_size=1, max_size=4, unique_by=lambda text: text.split("=")[0]))
def test_limits_without_lists_are_one_level(lines: list[str]) -> None:
    assert budget_levels(lines) == (Budget.parse(lines),)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True))
def test_levels_that_fall_are_read_in_their_order(percents: list[int]) -> None:
    falling = sorted(percents, reverse=True)
    levels = budget_levels(["size=1MB", "flops=" + ",".join(f"{percent}%" for percent in falling)])
    assert [budget.limits[1].value for budget in levels] == pytest.approx([percent / 100 for percent in falling])
    assert {budget.limits[0].requested for budget in levels} == {"size=1MB"}


@given(st.sampled_from(["flops", "params", "size", "channels"]), st.floats(min_value=101, max_value=1e15))
def test_a_formatted_amount_is_read_back_within_its_two_decimals(metric: str, value: float) -> None:
    text = format_amount(metric, value)
    assert Limit.parse(f"{metric}={text}").value == pytest.approx(value, rel=0.5)
    if value >= 1e3:
        assert Limit.parse(f"{metric}={text}").value == pytest.approx(value, rel=0.0051)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_by_a_budget_error(text: str) -> None:
    try:
        limit = Limit.parse(text)
    except BudgetError:
        return
    assert limit.value > 0


@pytest.mark.parametrize("spec", METRICS, ids=lambda spec: spec.name)
def test_a_record_leads_to_the_cost_of_its_name(spec: MetricSpec) -> None:
    assert not spec.cost or pkgutil.resolve_name(spec.cost).metric == spec.name
    amount = spec.example.partition(",")[0]
    assert Limit.parse(f"{spec.name}={amount}").metric == spec.name
    assert spec_of(spec.name) is spec


# -- words of users ------------------------------------------------------------------------------------


def test_a_rate_is_the_latency_of_a_batch() -> None:
    limit = Limit.parse("fps@openvino=25")
    assert (limit.metric, limit.value, limit.requested) == ("latency@openvino", 40.0, "fps@openvino=25")
    assert limit.for_batch(4).value == 160.0
    assert Limit.parse(str(limit)) == limit
    assert Limit.parse("latency=8ms").for_batch(4).value == 8.0
    levels = budget_levels(["fps=10,20", "params=1M"])
    assert [budget.for_batch(2).limits[0].value for budget in levels] == [200.0, 100.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fps=50%", "images per second have no unit '%'; write fps= with 30 .images per second."),
        ("fps=30ms", "images per second have no unit 'ms'"),
        ("fps=0", "above zero"),
        ("flops@p95=3G", "Only latency and energy are measured on"),
        ("latency@p99=3ms", "A latency is measured on a runtime"),
        ("latency@p95@openvino=3ms", "A latency is measured on a runtime"),
    ],
)
def test_a_rate_and_a_tail_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Limit.parse(text)


def test_a_tail_is_a_metric_of_its_own() -> None:
    budget = Budget.parse(["latency@p95=20ms", "latency=15ms", "latency@openvino@p95=60%"])
    assert [limit.metric for limit in budget] == ["latency@p95", "latency", "latency@openvino@p95"]
    assert format_amount("latency@openvino@p95", 8) == "8.00 ms"
