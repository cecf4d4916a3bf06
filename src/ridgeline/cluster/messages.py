"""What two engines say to each other about one sequence on its way. A stream is one sequence on one link."""

# giver                                     taker
# Open (so many tokens, this layout)  --->
#                                     <---  Go, when there is room for all of it; or Refused
# Block, Block, ... while it computes --->  [with payloads: whole blocks, or layer by layer]
# Handover (the request, its tokens)  --->
#                                     <---  Taken: now the giver's blocks are free; or Refused
# Drop, until Taken was heard         --->  what was added meanwhile is ended

from __future__ import annotations

import msgspec

from ridgeline.state.request import Request


class Open(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """tokens: whose state will come, at most: one that moves while it runs gets more on the way. layout and block_bytes
    are those of the giver's pool (state.ports.KeptState)."""

    stream: int
    tokens: int
    layout: str
    block_bytes: tuple[int, ...]


class Block(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The payload is block `index` of the sequence in this group, as it is stored, from the byte `offset` on; its parts
    come in order. What comes again replaces what was there."""

    stream: int
    group: int
    index: int
    offset: int = 0


class Handover(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Everything was sent. known: output tokens so far; the last one's state is not computed."""

    stream: int
    request: Request
    known: tuple[int, ...]


class Drop(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """request: its name; the stream of one that was handed over means nothing to the taker any more."""

    stream: int
    request: str


class Go(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    stream: int


class Taken(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    stream: int


class Refused(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    stream: int
    why: str


Message = Open | Block | Handover | Drop | Go | Taken | Refused
