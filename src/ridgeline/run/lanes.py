"""Lanes: several steps at a time on one KV pool, each on its own runner with its own share of the threads (E4).

Whoever plans calls everything from one thread. State is moved there and then, so moves keep the order of the plans;
only the steps themselves overlap, each on its lane's thread, since native calls hold no lock of Python's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from ridgeline.kernels import native
from ridgeline.kit.clock import Clock
from ridgeline.kit.errors import InvariantError
from ridgeline.state.plan import StepPlan, StepResult

from .runner import Runner

Outcome = StepResult | Exception


class _Work(NamedTuple):
    plan: StepPlan
    share: float
    began_s: float
    moved_ns: int


class Lanes:
    """runners: by lane; all on the same pools. threads: to share out. Teams are made when first used, and kept."""

    def __init__(self, runners: Mapping[str, Runner], threads: int, clock: Clock) -> None:
        self.runners, self.threads, self._clock = dict(runners), threads, clock
        self._teams: dict[tuple[str, int], native.Team] = {}
        self._done: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()
        self._todo: dict[str, queue.SimpleQueue[_Work | None]] = {}
        self._workers: list[threading.Thread] = []
        self._whole: tuple[str, _Work] | None = None  # a step that has every thread: the caller runs it
        for name in self.runners if threads > 1 else ():
            self._todo[name] = queue.SimpleQueue()
            worker = threading.Thread(target=self._live, args=(name,), name=f"ridgeline-lane-{name}", daemon=True)
            self._workers.append(worker)
            worker.start()

    @property
    def points(self) -> tuple[float, ...]:
        """The shares that there are."""
        return tuple(count / self.threads for count in range(self.threads + 1))

    def start(self, lane: str, plan: StepPlan, share: float) -> None:
        """Begin a step. share: one of the points, not 0; together with those of the steps that run at most 1."""
        count = round(share * self.threads)
        if not 0 < count <= self.threads or (count == self.threads and self._whole is not None):
            raise InvariantError(f"a step was given {share:.2f} of {self.threads} threads")
        runner = self.runners[lane]
        runner.use(self._team("" if count == self.threads else lane, count))
        began_s = self._clock.now()
        plan, moved_ns = runner.move(plan)
        work = _Work(plan, count / self.threads, began_s, moved_ns)
        if count == self.threads:
            self._whole = (lane, work)
        else:
            self._todo[lane].put(work)

    def finish(self) -> tuple[str, StepResult]:
        """Waits for the step that ends first; its lane and what came out."""
        if self._whole is not None:
            (lane, work), self._whole = self._whole, None
            return lane, self._run(lane, work)
        lane, outcome = self._done.get()
        if isinstance(outcome, Exception):
            raise outcome
        return lane, outcome

    def close(self) -> None:
        """Waits for the steps that run."""
        for todo in self._todo.values():
            todo.put(None)
        for worker in self._workers:
            worker.join()
        for team in self._teams.values():
            team.close()

    def _team(self, lane: str, count: int) -> native.Team:
        if (lane, count) not in self._teams:
            self._teams[lane, count] = native.Team(count)
        return self._teams[lane, count]

    def _run(self, lane: str, work: _Work) -> StepResult:
        runner = self.runners[lane]
        result = runner.collect(runner.submit(work.plan))
        if work.share == 1.0 and not work.moved_ns:
            return result
        return msgspec.structs.replace(
            result, share=work.share, started_s=work.began_s, transfer_ns=result.transfer_ns + work.moved_ns
        )

    def _live(self, lane: str) -> None:
        while (work := self._todo[lane].get()) is not None:
            try:
                outcome: Outcome = self._run(lane, work)
            except Exception as error:  # raised by finish, in the thread that planned
                outcome = error
            self._done.put((lane, outcome))
