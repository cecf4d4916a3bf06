"""StepCosts: seconds of a step of any of an engine's programs, for whoever decides by them. Asks the estimator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from typing import Any

from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program

from .activations import DEFAULT
from .estimate import Estimator
from .machine import Machine


class StepCosts:
    """machine: asked when the first cost is wanted, since measuring one takes a second. activations: Estimator's."""

    def __init__(
        self, programs: Mapping[str, Program], machine: Callable[[], Machine], activations: str = DEFAULT
    ) -> None:
        self._activations = activations
        self._programs = dict(programs)
        self.machine = functools.cache(machine)
        self._estimators: dict[str, Estimator] = {}

    def seconds(self, program: str, entries: Many[tuple[int, int]], rows: int) -> float:
        """entries: (context before, tokens); rows: logit rows."""
        return float(self.curve(program, entries, rows))

    def curve(self, program: str, entries: Many[tuple[Any, Any]], rows: int) -> Any:
        """As seconds, of many steps at once where an entry's numbers are arrays."""
        if program not in self._estimators:
            self._estimators[program] = Estimator(self._programs[program], self.machine(), self._activations)
        reaches = self._programs[program].reaches
        return self._estimators[program].step_seconds(BatchShape.of(entries, rows, reaches))
