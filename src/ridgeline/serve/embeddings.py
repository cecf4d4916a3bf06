"""Embeddings: /v1/embeddings: last hidden states of the served decoder, pooled, at length 1. Requests like any other.

`mean` (the default: it parts what differs better) is of all tokens of the text, `last` of its last one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, UnsetType
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

from .answering import answer, begin_note, chosen
from .answers import Account, Embedded, Embedding, EmbeddingUsage
from .asks import Ids, SomeText
from .choice import Delta
from .completions import kinds_of
from .fields import Generation, Label, Name, Salt, Strict, TokenId
from .reading import parse
from .refusal import invalid, too_long
from .shape import Shape


class EmbeddingsRequest(Strict, kw_only=True):
    """input: text, texts, ids, or lists of ids. dimensions: only the model's own."""

    model: Name
    input: SomeText | Annotated[list[SomeText | TokenId | Ids], Meta(min_length=1, max_length=1 << 22)]
    pooling: Literal["mean", "last"] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None
    cache_salt: Salt | None = None
    user: Label | None = None


DECODER = msgspec.json.Decoder(EmbeddingsRequest)


async def embeddings(request: HttpRequest) -> Response:
    """The endpoint."""
    body, note = await begin_note(request)
    ask = parse(DECODER, body)
    served = chosen(request, ask.model)
    given = kinds_of(ask.input, "input")
    began_ns = request.state.since_ns()

    def encode(one: str | list[int]) -> tuple[int, ...]:
        ids = served.encode(one, special=False, bos=True) if isinstance(one, str) else tuple(one)
        served.check_ids(ids, "input")
        return ids

    prompts = await served.off_loop(lambda: [encode(one) for one in given])
    note.before["tokenize"] = request.state.since_ns() - began_ns
    generation = Generation(model=ask.model, temperature=0.0, ignore_eos=True, cache_salt=ask.cache_salt)
    shape = EmbeddingShape(served, generation, request.state.name, prompts)
    shape.told(ask)
    return await answer(request, shape, note)


class EmbeddingShape(Shape):
    """Never streamed."""

    def told(self, ask: EmbeddingsRequest) -> None:
        self.given = ask
        self.found: dict[int, npt.NDArray[np.float32]] = {}

    def requests(self, name: str, tenant: str) -> list[Request]:
        context = self.served.context
        more: dict[str, Any] = {"hidden_every": 1}
        if self.given.pooling != "last":
            more |= {"hidden_mean": True, "prompt_logprobs": 0}
        made: list[Request] = []
        for place, ids in enumerate(self.prompts):
            if len(ids) + 1 > context:
                raise too_long(context, len(ids), 1, "input")
            made += self.served.requests(self.asked, f"{name}-{place}", ids, 1, tenant, **more)
        return made

    def add(self, index: int, delta: Delta, event: TokenEvent) -> None:
        if event.hidden:
            self.found[index] = np.frombuffer(event.hidden, "<f4")

    def whole(self, account: Account | UnsetType) -> Embedded:
        if len(self.found) < len(self.prompts):
            raise invalid("This model tells no hidden states, so it gives no embeddings.", "model")
        data = [Embedding(self._written(unit(self.found[index])), index) for index in range(len(self.prompts))]
        tokens = sum(len(ids) for ids in self.prompts)
        return Embedded(data, self.served.name, EmbeddingUsage(tokens, tokens))

    def _written(self, values: npt.NDArray[np.float32]) -> list[float] | str:
        if self.given.encoding_format == "base64":
            return base64.b64encode(values.astype("<f4").tobytes()).decode()
        return [float(value) for value in values]

    def opening(self) -> list[Any]:
        return []

    def chunks(self, index: int, delta: Delta, event: TokenEvent) -> Iterator[Any]:
        return iter(())

    def closing(self, account: Account | UnsetType) -> Any:
        return self.whole(account)


def unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scaled to length 1; zeros stay."""
    length = float(np.linalg.norm(values.astype(np.float64)))
    return (values / length).astype(np.float32) if length > 0 else values
