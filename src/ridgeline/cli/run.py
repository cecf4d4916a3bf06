"""ridgeline run: one answer, or a chat; ends with five lines: what it cost, and why."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from typing import Annotated, Any

import typer

from .keepsakes import Keepsakes, LedgerOut, TraceOut
from .options import Json, Model, Picture, engine_verb


@engine_verb
def command(
    options: dict[str, Any],
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; without one: stdin, or a chat.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Choose among the k most likely; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among the likeliest that hold this much probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens this much less likely than the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages tokens that were there.")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Taken once from tokens already in the answer.")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Taken for each time a token is in the answer.")] = 0.0,
    logprobs: Annotated[int | None, typer.Option(help="Also show log-probabilities of this many likeliest.")] = None,
    account: Annotated[bool, typer.Option("--account", help="Show where this request's time went.")] = False,
    trace_out: TraceOut = None,
    ledger_out: LedgerOut = None,
    roofline: Picture = None,
    json: Json = False,
) -> None:
    """Run a model: one answer to PROMPT (or to stdin), or a chat when there is none.

    Ends with five lines: where the time went, arithmetic intensity, the share of this machine's measured roof, energy,
    and the verdict: what bounds it.
    In a chat: /clear forgets the conversation, /account shows the lines so far, /exit or Ctrl-D ends.

    \b
    Examples:
      ridgeline run smollm2-135m "What is the capital of France?"
      ridgeline run smollm2-135m --temperature 0.8 --seed 7 "Tell me a story."
      echo "def fibonacci(n):" | ridgeline run smollm2-135m --raw --max-tokens 64
      ridgeline run smollm2-135m --kv int8 --keep sinks:4+window:512 --spec ngram:k=4
      ridgeline run smollm2-135m --account --trace-out trace.json "Why is the sky blue?"
      ridgeline run smollm2-135m --roofline roofline.html "Why is the sky blue?"
      ridgeline run smollm2-135m --place disaggregated:link=tcp --account "Why is the sky blue?"
      ridgeline run smollm2-135m
    """
    from ridgeline.state.request import Sampling  # noqa: PLC0415  heavy; --help must start in 0.3 s

    from .conversation import Asked, converse  # noqa: PLC0415  likewise

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, logprobs=logprobs,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    keepsakes = Keepsakes(trace_out, ledger_out)
    asked = Asked(
        model, prompt, system, raw, max_tokens, tuple(stop or ()), sampling, options, account, keepsakes, roofline
    )
    raise typer.Exit(converse(asked, json=json))
