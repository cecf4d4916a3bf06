"""mlp: the length of an answer from the last hidden state of the model itself (E6): four layers, learned by fit.py.

Weights lie in RIDGELINE_HOME/lengths as safetensors, one file a model; `ridgeline learn` makes them. Refuses a file of
another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ridgeline.kit.errors import UserError
from ridgeline.kit.home import home
from ridgeline.state.sequence import Sequence

Floats = npt.NDArray[np.float32]
MADE_FOR = ("model", "width", "every")  # what its file says about it


def lengths_file(model: str, what: str = "predictor") -> Path:
    """Where a model's predictor (or "answers") lies. model: the name in its own file."""
    return home() / "lengths" / f"{re.sub('[^a-z0-9.]+', '-', model.lower()).strip('-')}.{what}.safetensors"


@dataclass(frozen=True, slots=True)
class Mlp:
    """layers: (weight [inputs, outputs], bias [outputs]); ReLU between them; the last has one output, which is `scale`
    tokens. The first one also holds the inputs' mean and spread."""

    layers: tuple[tuple[Floats, Floats], ...]
    scale: float

    def remaining(self, states: Floats) -> Floats:
        """[n, width] -> [n] output tokens still to come, at least 1."""
        x = states
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight + bias, 0)
        weight, bias = self.layers[-1]
        remaining: Floats = np.maximum((x @ weight + bias)[:, 0] * np.float32(self.scale), 1)
        return remaining

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(weight.size + bias.size for weight, bias in self.layers)


class MlpRefiner:
    """Implements Refiner."""

    def __init__(self, network: Mlp, every: int) -> None:
        self.network, self.every = network, every

    def length(self, sequence: Sequence, hidden: Floats | None) -> float:
        if hidden is None:
            return 0.0
        return sequence.tokens_output + float(self.network.remaining(hidden[None])[0])


def save_predictor(network: Mlp, path: Path, about: Mapping[str, str]) -> None:
    """about: MADE_FOR, and what else a reader may want to know."""
    arrays: dict[str, npt.NDArray[np.float32]] = {"scale": np.array([network.scale], np.float32)}
    for index, (weight, bias) in enumerate(network.layers):
        arrays[f"weight.{index}"], arrays[f"bias.{index}"] = np.ascontiguousarray(weight), bias
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, str(path), metadata=dict(about))


def load_predictor(model: str, width: int) -> MlpRefiner:
    """The one of this model. UserError when nobody has made it, or the file is not one."""
    path = lengths_file(model)
    cure = "`ridgeline learn MODEL` makes one"
    if not path.is_file():
        raise UserError(f"nothing predicts how long answers of {model} get: {path} is not there. {cure}.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        layers = tuple((arrays[f"weight.{i}"], arrays[f"bias.{i}"]) for i in range((len(arrays) - 1) // 2))
        made_for, every = int(about["width"]), int(about["every"])
        network = Mlp(layers, float(arrays["scale"][0]))
        chain = [made_for, *(weight.shape[1] for weight, _ in layers)]
        is_whole = all(w.shape[0] == n and b.shape == w.shape[1:] for n, (w, b) in zip(chain, layers, strict=False))
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} is no length predictor: {error}. {cure}.") from error
    if not layers or not is_whole or chain[-1] != 1 or every < 1:
        raise UserError(f"{path} is no length predictor: its layers do not follow each other. {cure}.")
    if about.get("model") != model or made_for != width:
        raise UserError(f"{path} was made for {about.get('model')} ({made_for} wide), not for {model}. {cure}.")
    return MlpRefiner(network, every)
