"""Which rows of logits an entry wants: the next token where it reaches the last known one, and prompt scores."""

from __future__ import annotations

from ridgeline.state.plan import LogitRow
from ridgeline.state.sequence import Sequence, Tree


def count_rows(sequence: Sequence, tokens: int) -> int:
    """Rows wanted from the next `tokens` tokens of the sequence; at most one a token."""
    start, end = sequence.tokens_computed, sequence.tokens_computed + tokens
    chosen = int(end == sequence.tokens_known and sequence.request.max_tokens > 0)
    if sequence.request.prompt_logprobs is None:
        return chosen
    return chosen + max(0, min(end, sequence.tokens_prompt - 1) - max(start, len(sequence.scored)))


def fit_rows(sequence: Sequence, tokens: int, limit: int) -> int:
    """The most of `tokens` tokens (at least 1) that want no more than `limit` >= 1 rows."""
    while tokens > 1 and (over := count_rows(sequence, tokens) - limit) > 0:
        tokens = max(1, tokens - over)
    return tokens


def make_rows(sequence: Sequence, tokens: int, *, law: bool = False) -> tuple[LogitRow, ...]:
    """The rows that count_rows counts, in order of position. law: the choosing row also tells its distribution."""
    request = sequence.request
    end = sequence.tokens_computed + tokens
    scores = () if request.prompt_logprobs is None else _score_rows(sequence, tokens, request.prompt_logprobs)
    if end != len(sequence.tokens) or request.max_tokens == 0:
        return scores
    sampling = request.sampling
    history = (tuple(sequence.tokens), sequence.tokens_prompt) if sampling.needs_history else None
    logprobs = -1 if sampling.logprobs is None else sampling.logprobs
    hidden = sequence.tokens_output >= sequence.hidden_due
    chosen = LogitRow(
        tokens - 1, end, sampling, request.choice, logprobs=logprobs, history=history, law=law, hidden=hidden
    )
    return (*scores, chosen)


def _score_rows(sequence: Sequence, tokens: int, logprobs: int) -> tuple[LogitRow, ...]:
    """One for every token of the prompt after the first that the next `tokens` tokens predict."""
    start, request = sequence.tokens_computed, sequence.request
    positions = range(max(start, len(sequence.scored)), min(start + tokens, sequence.tokens_prompt - 1))
    return tuple(
        LogitRow(
            at - start,
            at + 1,
            request.sampling,
            target=request.prompt[at + 1],
            logprobs=logprobs,
            hidden=request.hidden_mean,
        )
        for at in positions
    )


def make_guess_rows(sequence: Sequence, tokens: int, tree: Tree, *, law: bool) -> tuple[LogitRow, ...]:
    """A row for every guessed token, which stand in the entry behind `tokens` known ones."""
    request, sampling = sequence.request, sequence.request.sampling
    logprobs = -1 if sampling.logprobs is None else sampling.logprobs
    rows = []
    for place in range(len(tree)):
        path = tree.path(place)
        history = None
        if sampling.needs_history:
            history = ((*sequence.tokens, *(tree.tokens[step] for step in path)), sequence.tokens_prompt)
        position = sequence.tokens_known + len(path)
        rows.append(
            LogitRow(tokens + place, position, sampling, request.choice, logprobs=logprobs, history=history, law=law)
        )
    return tuple(rows)
