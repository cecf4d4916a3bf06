"""Tokenizer routes: /tokenize, /detokenize, /tokenizer_info (SERVING §3.7). Text is raw here, messages are not."""

from __future__ import annotations

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .answering import begin_note, chosen, served_by
from .answers import Detokenized, Tokenized, TokenizerInfo
from .asks import DetokenizeRequest, TokenizeRequest
from .choice import spell
from .conversation import described
from .events import json_response
from .reading import parse
from .refusal import invalid

TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: HttpRequest) -> Response:
    body, note = await begin_note(request)
    ask = parse(TOKENIZE, body)
    served = chosen(request, ask.model)
    if (ask.prompt is None) == (ask.messages is None):
        raise invalid("Give either `prompt` or `messages`.", "prompt")
    if ask.messages is not None:
        tools = tuple(described(tool) for tool in ask.tools or ())
        ids, _ = await served.off_loop(lambda: served.encode_chat(ask, note, tools))
    else:
        text, bos, special = ask.prompt or "", ask.add_special_tokens is not False, ask.parse_special is not False
        ids = await served.off_loop(lambda: served.encode(text, special=special, bos=bos, is_counted=True))
    spelled = [spell(served.tokenizer, token) for token in ids] if ask.return_token_strs else None
    return json_response(Tokenized(len(ids), served.context, list(ids), spelled))


async def detokenize(request: HttpRequest) -> Response:
    body, _ = await begin_note(request)
    ask = parse(DETOKENIZE, body)
    served = chosen(request, ask.model)
    if ask.tokens:
        served.check_ids(ask.tokens, "tokens")
    text = await served.off_loop(lambda: served.tokenizer.decode(ask.tokens, skip_special=False))
    return json_response(Detokenized(text))


async def tokenizer_info(request: HttpRequest) -> Response:
    """Special tokens as plain strings."""
    served = served_by(request)
    tokenizer = served.tokenizer
    bos = None if tokenizer.bos is None else tokenizer.decode([tokenizer.bos], skip_special=False)
    eos = tokenizer.decode(tokenizer.eos[:1], skip_special=False) or None
    info = TokenizerInfo("PreTrainedTokenizerFast", bos, eos, eos, served.backend.chat_template)
    return json_response(info)
