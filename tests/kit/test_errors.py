"""Messages quote what files say: a terminal must survive them."""

from __future__ import annotations

from ridgeline.kit.errors import MESSAGE_CHARACTERS, CapacityError, UserError


def test_messages_are_printable_and_bounded() -> None:
    said = str(UserError("a\x1b[2J\0\ud800\u202e b\nc é \U0001f600"))
    assert said == "a\\x1b[2J\\x00\\ud800\\u202e b\nc é \U0001f600"
    said.encode("utf-8")
    long = str(CapacityError("x" * 70_000 + "end."))
    assert len(long) <= MESSAGE_CHARACTERS and long.endswith("end.")
    assert len(str(UserError("\x1b" * 70_000))) <= MESSAGE_CHARACTERS
