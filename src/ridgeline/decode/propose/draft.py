"""draft: a smaller model with the same tokenizer guesses (I1). Its Program runs in the plan, with its own KV."""

from __future__ import annotations

from collections.abc import Mapping

from ridgeline.kit.errors import UserError
from ridgeline.state.plan import SequenceId
from ridgeline.state.sequence import Sequence, Tree

from ..options import refuse_unknown
from .proposer import Proposer


class DraftProposer:
    name = "draft"
    program = "draft"
    width = 1

    def __init__(self, model: str) -> None:
        self.model = model

    def guess(self, sequence: Sequence, tokens: int) -> Tree:
        return sequence.tree  # grown token by token by the program

    def forget(self, sequence: SequenceId) -> None:
        pass


def make(options: Mapping[str, str]) -> Proposer:
    refuse_unknown("draft", options, ("model",))
    if not options.get("model"):
        raise UserError("speculation with a draft model needs its name: draft:model=NAME (a known name or a path).")
    return DraftProposer(options["model"])
