"""Meters: energy counters of this machine (RAPL through powercap, NVML), and a watch that reads one over an interval.

Counters wrap; sensors stall and jump. Whatever cannot be explained makes the interval void, with the reason: nothing is
interpolated. No meter here is the common case (containers, virtual machines) and costs nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

POWERCAP = Path("/sys/class/powercap")
PERIOD_S = 0.2  # between readings; far below any counter's wrap
WINDOWS = 20  # sensor windows below which an interval is an estimate, not a measurement
DRIFT = 0.03  # between idle before and after; above it the run is void
POINTS = 1 << 14  # readings kept: an hour
STILL_S = 2.0  # an energy counter that does not move for so long is broken
MOST_W = 5000.0  # of one meter; a delta above it is a jump


class MeterError(Exception):
    """A reading that cannot be used; its text says why."""


class Meter(Protocol):
    """An energy counter. scope names what it measures; window_s is how often the sensor itself is renewed."""

    source: str
    scope: str
    window_s: float

    def joules(self) -> float:
        """Since the meter was opened, never falling. MeterError when the sensor cannot be read or believed."""
        ...


class Interval(msgspec.Struct, frozen=True):
    """What a meter said between two moments. idle_w: measured with the engine loaded, None where it was not.

    void: why joules cannot be used; "" where they can.
    """

    source: str
    scope: str
    seconds: float
    joules: float
    resolution_s: float
    peak_w: float | None = None
    idle_w: float | None = None
    void: str = ""


class Wrapping:
    """A counter that starts over at `most`: its sum of steps. At most one wrap between two readings."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._last: float | None = None
        self.total = 0.0

    def add(self, reading: float) -> float:
        """Take a reading; returns the sum. MeterError for one outside the counter's range."""
        if not 0 <= reading <= self._most:
            raise MeterError(f"a reading of {reading:.6g} lies outside the counter's range of {self._most:.6g}")
        if self._last is not None:
            step = reading - self._last
            self.total += step if step >= 0 else step + self._most
        self._last = reading
        return self.total


class RaplMeter:
    """Packages and memory of this machine through powercap: microjoule counters with their own range."""

    source = "rapl"
    window_s = 0.001

    def __init__(self, root: Path = POWERCAP) -> None:
        self._counters: list[tuple[Path, Wrapping]] = []
        names = []
        for zone in sorted(root.glob("intel-rapl:*")):
            name = (zone / "name").read_text().strip()
            if not name.startswith(("package", "dram")):
                continue  # cores and uncore lie inside a package, psys around it
            most = float((zone / "max_energy_range_uj").read_text())
            self._counters.append((zone / "energy_uj", Wrapping(most)))
            names.append(name)
        if not self._counters:
            raise MeterError(f"no package counter under {root}")
        self.scope = " + ".join(names)
        self.joules()

    def joules(self) -> float:
        try:
            return 1e-6 * sum(counter.add(float(path.read_text())) for path, counter in self._counters)
        except (OSError, ValueError) as error:
            raise MeterError(f"the RAPL counter cannot be read: {error}") from error


class NvmlMeter:
    """One NVIDIA device: its energy counter, or where it has none its power, integrated between readings."""

    source = "nvml"
    window_s = 0.1  # the power sensor's averaging time; the counter is finer

    def __init__(self, device: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        import ctypes  # noqa: PLC0415  only where a device is asked for

        try:
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise MeterError("there is no NVIDIA driver here (libnvidia-ml.so.1)") from error
        self._ctypes, self._clock = ctypes, clock
        self._handle = ctypes.c_void_p()
        self._check(self._library.nvmlInit_v2(), "nvmlInit")
        self._check(
            self._library.nvmlDeviceGetHandleByIndex_v2(device, ctypes.byref(self._handle)), "nvmlDeviceGetHandle"
        )
        self.scope = f"device {device}"
        self._energy_j = 0.0
        self._last: tuple[float, float] | None = None
        self._first_mj: int | None = None
        self.joules()

    def joules(self) -> float:
        counted = self._ctypes.c_ulonglong()
        status = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, self._ctypes.byref(counted))
        if status == 0:
            self._first_mj = counted.value if self._first_mj is None else self._first_mj
            return 1e-3 * (counted.value - self._first_mj)
        if self._first_mj is not None:
            self._check(status, "nvmlDeviceGetTotalEnergyConsumption")
        milliwatts = self._ctypes.c_uint()
        self._check(
            self._library.nvmlDeviceGetPowerUsage(self._handle, self._ctypes.byref(milliwatts)), "nvmlDeviceGetPower"
        )
        now, watts = self._clock(), 1e-3 * milliwatts.value
        if self._last is not None:
            self._energy_j += (now - self._last[0]) * (watts + self._last[1]) / 2
        self._last = now, watts
        return self._energy_j

    def _check(self, status: int, what: str) -> None:
        if status:
            raise MeterError(f"{what} failed with NVML status {status}")


def open_meter(device: str = "cpu", root: Path = POWERCAP) -> Meter | None:
    """The meter of what computes: RAPL for the processor, NVML for a "cuda" device; None where there is none."""
    with contextlib.suppress(MeterError, OSError, ValueError):
        return NvmlMeter() if device.startswith("cuda") else RaplMeter(root)
    return None


class Watch:
    """Reads a meter from when it is made, from a thread of its own, so that no wrap or jump goes unseen.

    thread False: the caller reads (tests, or a loop that runs anyway).
    """

    def __init__(
        self, meter: Meter, clock: Callable[[], float] = time.perf_counter, period_s: float = PERIOD_S,
        thread: bool = True,
    ) -> None:  # fmt: skip
        self._meter, self._clock, self._period_s = meter, clock, period_s
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._idle_before: float | None = None
        self._idle_w: float | None = None
        self._idle_void = ""
        self.restart()
        self._thread = threading.Thread(target=self._sample, name="energy", daemon=True) if thread else None
        if self._thread is not None:
            self._thread.start()

    def restart(self) -> None:
        """The interval begins here."""
        with self._lock:
            self._void, self._peak_w = "", 0.0
            self._first: tuple[float, float] | None = None  # s, J
            self._last: tuple[float, float] | None = None
            self._moved: tuple[float, float] | None = None  # when the counter last changed
            self._power: deque[tuple[float, float]] = deque(maxlen=POINTS)
            self._read_locked()

    def read(self) -> None:
        """One reading now."""
        with self._lock:
            self._read_locked()

    def interval(self) -> Interval:
        """From the restart until now."""
        with self._lock:
            self._read_locked()
            seconds = joules = 0.0
            if self._first is not None and self._last is not None:
                seconds, joules = self._last[0] - self._first[0], self._last[1] - self._first[1]
            void = self._void or self._idle_void
            if not void and seconds < WINDOWS * self._meter.window_s:
                void = f"{seconds:.3g} s is too short for a sensor renewed every {self._meter.window_s:.3g} s"
            return Interval(
                self._meter.source, self._meter.scope, seconds, joules, self._meter.window_s, self._peak_w or None,
                self._idle_w, void,
            )  # fmt: skip

    def power(self) -> tuple[tuple[float, float], ...]:
        """(clock, W) of every reading since the restart that says something, the last POINTS of them."""
        with self._lock:
            return tuple(self._power)

    def idle(self, seconds: float, wait: Callable[[float], object] = time.sleep) -> float:
        """Measure idle power, engine loaded and waiting; the second call judges the drift. Returns W.

        Call before and after the work; what is measured here is taken out of the interval. MeterError as of the meter.
        """
        with self._lock:
            begin, start_j = self._clock(), self._meter.joules()
        wait(seconds)
        with self._lock:
            waited_s, idle_j = self._clock() - begin, self._meter.joules() - start_j
            if self._first is not None:
                self._first = self._first[0] + waited_s, self._first[1] + idle_j
        power_w = idle_j / max(1e-9, waited_s)
        if self._idle_before is None:
            self._idle_before = self._idle_w = power_w
            return power_w
        mean_w = (self._idle_before + power_w) / 2
        drift = abs(power_w - self._idle_before) / mean_w if mean_w > 0 else 0.0
        self._idle_w, self._idle_before = mean_w, None
        self._idle_void = f"idle power drifted by {drift:.1%} between before and after" if drift > DRIFT else ""
        return power_w

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _sample(self) -> None:
        while not self._stopped.wait(self._period_s):
            self.read()

    def _read_locked(self) -> None:
        try:
            now, joules = self._clock(), self._meter.joules()
        except MeterError as error:
            self._void = self._void or str(error)
            return
        if self._first is None or self._last is None or self._moved is None:
            self._first = self._last = self._moved = (now, joules)
            return
        step_s, step_j = now - self._last[0], joules - self._last[1]
        if step_j < 0:
            self._void = self._void or f"the meter fell by {-step_j:.3g} J"
        elif step_s > 0 and step_j / step_s > MOST_W:
            self._void = self._void or f"the meter jumped by {step_j:.3g} J in {step_s:.3g} s"
        elif step_j > 0 and step_s >= self._meter.window_s:
            self._peak_w = max(self._peak_w, step_j / step_s)
            self._power.append((now, step_j / step_s))
        if joules != self._moved[1]:
            self._moved = (now, joules)
        elif now - self._moved[0] > STILL_S:
            self._void = self._void or f"the meter stood still for {now - self._moved[0]:.3g} s"
        self._last = (now, joules)
