"""Energy: what is shared sums to the meter, idle is taken out, broken readings are void, and estimates say so."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.perf.energy import GAPS, HOST, Run, Work, by_request, energy, modelled, power_model, power_models, shared
from ridgeline.perf.meters import Interval, MeterError, RaplMeter, Watch, Wrapping, open_meter

from .conftest import round_machine


class MockMeter:
    """Known power on a known clock. power: W as a function of the time."""

    source, scope, window_s = "mock", "device", 0.01

    def __init__(self, power=lambda at_s: 10.0) -> None:
        self.now_s, self.total_j, self.power, self.broken = 0.0, 0.0, power, ""

    def advance(self, seconds: float, steps: int = 10) -> None:
        for _ in range(steps):
            self.total_j += self.power(self.now_s) * seconds / steps
            self.now_s += seconds / steps

    def clock(self) -> float:
        return self.now_s

    def joules(self) -> float:
        if self.broken:
            raise MeterError(self.broken)
        return self.total_j


def watched(meter: MockMeter) -> Watch:
    return Watch(meter, clock=meter.clock, thread=False)


def a_run(seconds: float = 2.0) -> Run:
    works = (
        Work("prefill", "up", 0.2 * seconds, {"int8": 2e9}, 1e8),
        Work("prefill", "attend", 0.1 * seconds, {"f32": 1e8}, 1e6),
        Work("decode", "up", 0.4 * seconds, {"int8": 1e8}, 4e9),
    )
    return Run(works, {"prefill": 0.35 * seconds, "decode": 0.55 * seconds}, 0.1 * seconds, seconds, 20, 100, 2)


def metered(joules: float, idle_w: float | None = 3.0, seconds: float = 2.0, void: str = "") -> Interval:
    return Interval("mock", "device", seconds, joules, 0.01, 12.0, idle_w, void)


@given(st.floats(8.0, 500.0), st.floats(0.0, 3.9))
def test_phases_operators_and_idle_sum_to_the_meter(joules, idle_w):
    summary = energy(a_run(), round_machine(), metered(joules, idle_w))
    operators = sum(j for parts in summary.by_part_j.values() for j in parts.values())
    assert summary.idle_j + sum(summary.by_phase_j.values()) == pytest.approx(joules, rel=1e-12)
    assert summary.idle_j + operators == pytest.approx(joules, rel=1e-12)
    assert not summary.is_estimated and summary.source == "meter(mock)" and summary.band == (1.0, 1.0)


def test_the_model_is_counts_times_coefficients():
    model = power_model("Intel(R) Xeon(R) Processor @ 2.50GHz")
    joules = modelled(a_run(), model, threads=2)
    assert joules["decode"]["up"] == pytest.approx(
        model.active_w * 0.8 * 2 + 1e8 * model.j_per_flop["int8"] + 4e9 * model.j_per_byte
    )
    assert joules["prefill"][GAPS] == pytest.approx(model.active_w * (0.35 - 0.3) * 2 * 2)
    assert joules[HOST] == {HOST: pytest.approx(model.active_w * 0.2)}


def test_without_a_meter_every_figure_is_an_estimate_with_its_band():
    summary = energy(a_run(), round_machine())
    assert (summary.source, summary.is_estimated, summary.idle_source) == ("estimate", True, "estimate")
    assert summary.band[0] < 1 < summary.band[1]
    assert summary.low_j < summary.net_j < summary.high_j
    assert summary.net_j == pytest.approx(sum(summary.by_phase_j.values()))
    assert summary.gross_j == pytest.approx(summary.net_j + summary.idle_j)
    plain = msgspec.to_builtins(summary)
    assert plain["is_estimated"] and plain["band"]


def test_every_class_of_the_data_file_names_its_sources_and_a_band():
    for model in power_models():
        assert model.sources and model.band[0] < 1 < model.band[1] and model.match
        assert model.basis in ("literature", "fitted") and (model.basis == "fitted") == (model.held_out > 0)


def test_a_void_interval_falls_back_to_the_estimate_and_says_why():
    summary = energy(a_run(), round_machine(), metered(40.0, void="the meter stood still for 3 s"))
    assert summary.is_estimated and summary.void == "the meter stood still for 3 s"


def test_less_than_idle_power_is_void_never_a_negative_share():
    summary = energy(a_run(), round_machine(), metered(5.0, idle_w=3.0))
    assert summary.is_estimated and "less than idle" in summary.void


def test_shares_of_nothing_go_to_the_host():
    assert shared(3.0, {}) == {HOST: {HOST: 3.0}}


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=6))
def test_requests_sum_to_the_net(costs):
    summary = energy(a_run(), round_machine(), metered(40.0))
    cost_ns = {str(i): {"prefill": prefill, "verify": verify} for i, (prefill, verify) in enumerate(costs)}
    assert sum(by_request(summary, cost_ns).values()) == pytest.approx(summary.net_j, rel=1e-9)


def test_idle_is_taken_out_with_the_engine_loaded_and_lies_in_no_interval():
    meter = MockMeter(lambda at_s: 50.0 if 30 <= at_s < 40 else 20.0)
    watch = watched(meter)
    watch.idle(30.0, meter.advance)
    watch.restart()
    meter.advance(10.0)
    watch.read()
    watch.idle(30.0, meter.advance)
    interval = watch.interval()
    assert not interval.void
    assert (interval.seconds, interval.joules) == (pytest.approx(10.0), pytest.approx(500.0))
    summary = energy(a_run(10.0), round_machine(), interval)
    assert summary.idle_source == "measured"
    assert summary.net_j == pytest.approx(300.0)


def test_idle_that_drifts_voids_the_run():
    meter = MockMeter(lambda at_s: 20.0 if at_s < 40 else 20.8)  # 4 %
    watch = watched(meter)
    watch.idle(30.0, meter.advance)
    meter.advance(10.0)
    watch.idle(30.0, meter.advance)
    assert "drifted" in watch.interval().void


def test_a_counter_that_wraps_goes_on():
    counter = Wrapping(1000.0)
    assert [counter.add(reading) for reading in (900.0, 990.0, 40.0, 140.0)] == [0.0, 90.0, 140.0, 240.0]
    with pytest.raises(MeterError):
        counter.add(1001.0)


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda meter: setattr(meter, "total_j", meter.total_j - 50.0), "fell"),
        (lambda meter: setattr(meter, "total_j", meter.total_j + 1e6), "jumped"),
        (lambda meter: setattr(meter, "power", lambda at_s: 0.0), "stood still"),
        (lambda meter: setattr(meter, "broken", "the sensor is gone"), "the sensor is gone"),
    ],
)
def test_what_cannot_be_explained_voids_the_interval_for_good(harm, word):
    meter = MockMeter()
    watch = watched(meter)
    meter.advance(1.0)
    watch.read()
    harm(meter)
    for _ in range(6):
        meter.advance(0.5)
        watch.read()
    meter.broken = ""
    assert word in watch.interval().void
    watch.restart()
    meter.power = lambda at_s: 10.0
    meter.advance(1.0)
    assert not watch.interval().void


def test_a_run_shorter_than_the_sensor_can_see_is_not_a_measurement():
    meter = MockMeter()
    watch = watched(meter)
    meter.advance(0.1)
    assert "too short" in watch.interval().void


def rapl(root, **zones):
    for index, (name, most) in enumerate(zones.items()):
        zone = root / f"intel-rapl:{index}"
        zone.mkdir()
        (zone / "name").write_text(name.replace("_", "-") + "\n")
        (zone / "max_energy_range_uj").write_text(f"{most}\n")
        (zone / "energy_uj").write_text("0\n")


def test_rapl_sums_packages_and_memory_and_unwraps_each(tmp_path):
    rapl(tmp_path, package_0=10_000_000, dram=4_000_000, psys=10_000_000, core=10_000_000)
    meter = RaplMeter(tmp_path)
    assert meter.scope == "package-0 + dram"
    for package, dram, expected in ((9_000_000, 1_000_000, 10.0), (1_000_000, 3_000_000, 14.0)):
        (tmp_path / "intel-rapl:0/energy_uj").write_text(str(package))
        (tmp_path / "intel-rapl:1/energy_uj").write_text(str(dram))
        assert meter.joules() == pytest.approx(expected)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("nonsense")
    with pytest.raises(MeterError):
        meter.joules()


def test_where_there_is_no_counter_there_is_no_meter(tmp_path):
    assert open_meter(root=tmp_path) is None


def test_the_watch_reads_by_itself():
    meter = MockMeter()
    watch = Watch(meter, clock=meter.clock, period_s=0.001)
    meter.advance(1.0)
    watch.close()
    assert watch.interval().joules == pytest.approx(10.0)
