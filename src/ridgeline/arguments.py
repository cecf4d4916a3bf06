"""Arguments of the Python face (llm.py), sorted into what they are: engine options, sampling, service, prompts.

Unknown names are refused with the known ones; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.state.request import Sampling

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
SERVICE = (
    "priority",
    "tenant",
    "deadline_s",
    "ttft_deadline_s",
    "min_tokens",
    "salt",
)  # of Request: what policies go by


def config_of(model: str, options: Mapping[str, Any]) -> EngineConfig:
    unknown = set(options) - set(EngineConfig.__struct_fields__)
    if unknown:
        known = ", ".join(field for field in EngineConfig.__struct_fields__ if field != "model")
        raise UserError(f"unknown engine option {', '.join(sorted(unknown))}. Known: {known}.")
    config = msgspec.structs.replace(EngineConfig(model=model), **options)
    config.check()
    return config


def sampling_of(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    unknown = set(settings) - set(Sampling.__struct_fields__)
    if unknown:
        raise UserError(
            f"unknown sampling setting {', '.join(sorted(unknown))}. Known: {', '.join(Sampling.__struct_fields__)}."
        )
    return msgspec.structs.replace(sampling or Sampling(), **settings)


def answer_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of _start_ids; everything else is a sampling setting."""
    own = {key: options[key] for key in ("max_tokens", "stop", "ignore_stop", "choice") if key in options}
    settings = {key: value for key, value in options.items() if key not in own and key != "sampling"}
    return own | {"service": service_of(settings), "sampling": sampling_of(options.get("sampling"), settings)}


def service_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What policies go by, taken out of the settings."""
    return {key: settings.pop(key) for key in SERVICE if key in settings}


def prompts_of(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many: text is one, and so is a flat list of ids."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
