"""Engine options are written once and reach every verb that starts an engine."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from ridgeline.cli import bench, explain, run, serve
from ridgeline.cli.options import ENGINE
from ridgeline.engine.config import EngineConfig


@pytest.mark.parametrize("verb", [bench, explain, run, serve], ids=lambda verb: verb.__name__.rpartition(".")[2])
def test_every_verb_has_every_engine_option(verb: ModuleType) -> None:
    parameters = inspect.signature(verb.command).parameters
    assert set(ENGINE) <= set(parameters) and "options" not in parameters


def test_they_are_fields_of_the_engine_with_its_defaults() -> None:
    config = EngineConfig("smollm2-135m")
    assert {name: getattr(config, name) for name in ENGINE if "bytes" not in name} == {
        name: default for name, (_, default) in ENGINE.items() if "bytes" not in name
    }
