"""The pair table: no pair of techniques crashes or is silently different; docs/pairs.md says what the code does."""

import itertools
from pathlib import Path

import pytest

from .pairs import PAGE, Table, seams

NAMES = tuple(seams("", ""))
SOME = (
    3  # pairs run of every two seams: the whole table takes minutes and is made by `python -m tests.conformance.pairs`
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return Table(Path(tmp_path_factory.mktemp("pairs")))


@pytest.mark.model
@pytest.mark.torch
@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(NAMES, 2)))
def test_pairs_pass_or_are_refused_in_a_sentence(table: Table, one: str, other: str) -> None:
    said = PAGE.read_text("utf-8")
    pairs = list(itertools.product(table.seams[one][1:], table.seams[other][1:]))
    for first, second in pairs[:: max(1, -(-len(pairs) // SOME))]:
        verdict = table.judge(first, second)
        assert not verdict.startswith("wrong"), (first.name, second.name, verdict)
        is_listed = f"| `{first.name}` with `{second.name}` |" in said
        assert is_listed == verdict.startswith("refused"), (first.name, second.name, verdict)


def test_the_page_covers_every_entry_and_shows_nothing_wrong() -> None:
    said = PAGE.read_text("utf-8")
    assert "0 are wrong" in said
    for entries in seams("", "SMALLER").values():
        for entry in entries[1:]:
            assert f"`{entry.name}`" in said
