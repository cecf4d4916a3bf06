"""Kernel tests run under every instruction set this machine has, on teams that live as long as the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ridgeline.kernels import native

from .steps import Teams

ISAS = native.instruction_sets() if native.is_available() else ("none",)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture(scope="session")
def teams() -> Iterator[Callable[[int], native.Team]]:
    kept = Teams()
    yield kept
    kept.close()
