"""ScheduleOptions: what one step may use, and how sequences are batched. Owns their limits and refuses the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ridgeline.kit.errors import UserError

BATCHINGS = ("continuous", "static")


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """static batching admits only when nothing runs and keeps a finished sequence's slot until the whole batch is
    done (B3); cache=False forgets what was computed after every chosen token (generation without KV reuse, B2).
    mixes=False: whoever has several tokens to compute goes first, in steps without the others."""

    step_tokens: Annotated[int, "tokens computed in one step, all sequences together"] = 512
    step_logit_rows: Annotated[int, "tokens chosen or scored in one step, all sequences together"] = 64
    sequences: Annotated[int, "sequences that run at a time"] = 64
    chunk: Annotated[int | None, "tokens of one sequence in one step; None: no limit"] = None
    batching: Annotated[str, "continuous or static"] = "continuous"
    cache: Annotated[bool, "keep what was computed"] = True
    mixes: Annotated[bool, "one step serves sequences with one token to compute and with many"] = True
    takes_turns: Annotated[bool, "attention draws items of many rows and of few in turns"] = False

    def check(self) -> None:
        """Raise UserError for limits under which a running sequence could get nothing in a step."""
        if self.sequences < 1:
            raise UserError(f"max_sequences is {self.sequences}; at least one sequence must run.")
        for name, value in (("step_tokens", self.step_tokens), ("step_logit_rows", self.step_logit_rows)):
            if value < self.sequences:
                raise UserError(
                    f"{name} is {value}, less than max_sequences {self.sequences}, but every running sequence is owed "
                    f"one a step. Raise {name} or lower max_sequences."
                )
        if self.chunk is not None and self.chunk < 1:
            raise UserError(f"chunk is {self.chunk}; it must be at least 1 token, or absent for no limit.")
        if self.batching not in BATCHINGS:
            raise UserError(f"batching is {self.batching!r}; known: {', '.join(BATCHINGS)}.")
