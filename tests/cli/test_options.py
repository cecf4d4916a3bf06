from __future__ import annotations

import pytest
import typer

from ridgeline.cli.options import guarded, size_bytes
from ridgeline.kit.errors import CapacityError, InvariantError, UserError


@pytest.mark.parametrize(
    ("text", "size"), [("256M", 256 << 20), ("2g", 2 << 30), ("1.5K", 1536), ("4096", 4096), ("1T", 1 << 40)]
)
def test_sizes(text, size):
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "M", "12X", "-1G", "0", "nan", "inf", "1e400", "1 2"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="256M"):
        size_bytes(text)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("no such thing"), 2, "error: no such thing"),
        (CapacityError("too big"), 2, "error: too big"),
        (InvariantError("lost a block"), 70, "fault of Ridgeline"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_how_a_verb_ends(capsys, error, code, words):
    @guarded
    def verb() -> None:
        raise error

    with pytest.raises(typer.Exit) as stop:
        verb()
    assert stop.value.exit_code == code
    assert words in capsys.readouterr().err
