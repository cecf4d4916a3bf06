"""Error kinds. A message says what happened, the limit and the cure (DESIGN promise 4)."""


class RidgelineError(Exception):
    """Anything Ridgeline raises on purpose."""


MESSAGE_CHARACTERS = 3000  # a memory bill has about a thousand; what a hostile file says may have millions


class UserError(RidgelineError):
    """Something a person asked for cannot be done as asked. CLI exit code 2.

    Messages quote what files say, so they are made printable (no control characters, no lone surrogates) and bounded.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey; the middle of a long one is left out."""
    text = _cut(text)
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return _cut("".join(shown))


def _cut(text: str) -> str:
    half = MESSAGE_CHARACTERS // 2 - 20
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


class CapacityError(UserError):
    """What was asked for does not fit; the message carries the itemised bill."""


class InvariantError(RidgelineError):
    """Our own bookkeeping is wrong. CLI exit code 70; never the user's fault."""
