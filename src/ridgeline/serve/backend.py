"""Backend: what the server needs of a model behind an engine process. llm.LLM fills it; tests may bring their own."""

from __future__ import annotations

from typing import Protocol

from ridgeline.engine.client import Deliver
from ridgeline.perf.intervals import ClientNote
from ridgeline.perf.ledger import RunLedger
from ridgeline.perf.totals import Window
from ridgeline.perf.verdict import Verdict
from ridgeline.state.messages import EngineFacts, Pulse
from ridgeline.state.request import Request
from ridgeline.text.tokenizer import Tokenizer


class Backend(Protocol):
    """Thread-safe."""

    @property
    def facts(self) -> EngineFacts: ...

    @property
    def tokenizer(self) -> Tokenizer:
        """UserError for a model without one."""
        ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def pulse(self) -> Pulse | None:
        """The engine's last sign of life; None before the first."""
        ...

    @property
    def failure(self) -> Exception | None:
        """Why the engine is gone for good; None while it is there."""
        ...

    def ask_pulse(self) -> None:
        """Ask for a sign of life; it comes when the engine's loop next turns."""
        ...

    def submit_to(self, request: Request, deliver: Deliver, note: ClientNote | None = None) -> None:
        """Events go to `deliver`, from another thread. UserError at once for what no engine would take."""
        ...

    def cancel(self, request_id: str) -> None: ...

    def revive(self) -> None:
        """Start an engine that is gone again. Raises what kept it from starting."""
        ...

    def why(self) -> Verdict:
        """What bounds the engine since its start (or the last reset of its account)."""
        ...

    def turn_page(self) -> Window | None:
        """Close a page of the account, so that it does not grow for ever; None: this backend keeps none."""
        ...

    def ledger(self, *, reset: bool = False) -> RunLedger: ...
