"""What the engine's process and its client say to each other: typed, tagged, one whole message at a time.

Owns their shapes; framing is engine/frames.py. Unknown fields are refused.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .event import TokenEvent
from .request import Request

MAP_CELLS = 256  # of a pool's picture: one byte each
ErrorKind = Literal["user", "capacity", "invariant", "internal"]


class EngineFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was loaded and where it lives; sent once, when the engine is ready."""

    model: str  # as asked for
    name: str
    family: str
    is_random: bool
    vocabulary: int
    context: int  # tokens of prompt and output together that a sequence may have here
    context_model: int  # what the model itself was made for
    bos: int | None = None
    eos: tuple[int, ...] = ()
    add_bos: bool = False
    weights: str = "native"
    body: str = "cpp"
    isa: str | None = None
    threads: int = 1
    file_bytes: int = 0
    resident_weight_bytes: int = 0
    arena_bytes: int = 0
    kv: str = "bf16"
    kv_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_blocks: int = 0
    block_bytes: int = 0  # of the largest block of any group of layers
    state_slots: int = 0  # of recurrent state, one a sequence
    state_bytes: int = 0  # of one slot
    block_tokens: int = 16
    step_tokens: int = 0
    max_sequences: int = 0
    load_s: float = 0.0
    prefix: bool = True  # computed beginnings are kept for later requests
    spec: str = ""  # how tokens are guessed ahead; "": they are not


class Start(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """First message: `config` is an EngineConfig (a higher room's noun, so opaque here)."""

    config: msgspec.Raw


class Add(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """known: output tokens that others have made already. to: the engine that goes on after the next token, with what
    was computed here; "": this one goes on itself."""

    request: Request
    known: tuple[int, ...] = ()
    to: str = ""


class Migrate(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A running request is to go on in another engine, over the link `to`. Its blocks travel while it runs; its events
    here end with HANDED_ON, or STAYED comes and it goes on here."""

    request: str
    to: str


class Cancel(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    request: str


class GetAccount(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """reset: start a new account after answering (a bench's warm-up ends here). turn: start a new page of it: steps
    are forgotten, who runs is not."""

    reset: bool = False
    turn: bool = False


class GetPulse(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Answered when the loop next turns; so an answer is a sign of life."""


class Shutdown(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class Ready(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    facts: EngineFacts


class Tokens(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    events: tuple[TokenEvent, ...]


class AccountReply(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """`account`: what the observer reports (a higher room's noun, so opaque here)."""

    account: msgspec.Raw


class Pulse(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """What the engine's loop was at when it turned. at_s: its clock (one for all processes)."""

    at_s: float
    waiting: int = 0
    running: int = 0
    blocks: int = 0
    blocks_free: int = 0
    blocks_held: int = 0
    blocks_cached: int = 0
    preemptions: int = 0
    tokens_recomputed: int = 0
    map: bytes = b""  # the pool in at most MAP_CELLS cells: 16 x held + cached, in fifteenths of the cell


class Failed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """request None: the engine itself has failed and ends."""

    kind: ErrorKind
    text: str
    request: str | None = None


ToEngine = Start | Add | Migrate | Cancel | GetAccount | GetPulse | Shutdown
FromEngine = Ready | Tokens | AccountReply | Pulse | Failed
