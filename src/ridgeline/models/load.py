"""Models by name, path or shape: load (with numbers) and describe (shapes and formats only).

`model` is a name from the pull table, a .gguf file, a directory with config.json and safetensors, `random:<shape>` of
the catalogue or `random:<config.json>`, or `moe8:<model>`, a dense one as eight experts. `weights` is "native" (the
file's own bits, mapped) or a format everything is converted to. Refuses, naming the cure, what is unknown.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ridgeline.formats.format import FORMATS
from ridgeline.formats.gguf import read_gguf
from ridgeline.formats.layout.layout import read_layout
from ridgeline.formats.safetensors_file import ELEMENT_FORMATS, read_raw
from ridgeline.formats.weight import StoredWeight, convert
from ridgeline.kit.errors import UserError
from ridgeline.ops.program import Program
from ridgeline.ops.protocols import Format, KvRetention, KvStorage
from ridgeline.text.tokenizer import Tokenizer, read_config, starts_with_bos

from .catalogue import shape, shapes, suggest
from .config import read_json, spec_from_config
from .family import FAMILIES, record_program
from .mamba2_fields import flatten_vectors, negative_exponential
from .metadata import ROPE_FACTORS, spec_from_gguf, tokenizer_from_gguf
from .pull import TABLE, Progress, find, pull
from .random_weights import filled
from .spec import ModelSpec
from .split import SPLIT, split_spec, split_weights
from .stacks import stacked
from .weights import ModelWeights, Shape, assemble, build, gguf_names, hf_names, map_weights

# Names that every verb takes; int8, int4 and fp8 also with options: int4:group=128,zero=1 (formats/).
WEIGHTS = ("native", "f32", "f16", "bf16", "q8_0", "q4_1", "q4_0", "q5_0", "int8", "int4", "fp8")
SMALL = {"q4_1": "q8_0", "q4_0": "q8_0", "q5_0": "q8_0", "int4": "int8"}  # what their logits are made at
ONE_PLUS = frozenset({"gemma3"})  # families whose Hugging Face files hold gains less 1
SMALL_ROLES = frozenset({"conv", "decay", "skip"})  # a few numbers a channel or head: never in blocks
RANDOM = "random:"
RANDOM_NATIVE = "bf16"  # what the published shapes are distributed in


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """source: the file or directory, None for random shapes. file_bytes: size of the files read, 0 without any.

    notes: sentences about how the file was read, for whoever runs it.
    """

    spec: ModelSpec
    weights: ModelWeights
    source: Path | None = None
    file_bytes: int = 0
    chat_template: str | None = None
    random: bool = False
    notes: tuple[str, ...] = ()
    make_tokenizer: Callable[[], Tokenizer | None] = field(default=lambda: None, repr=False)

    def tokenizer(self) -> Tokenizer | None:
        """Built on first use; None when the model comes without one."""
        return self.make_tokenizer()


def load(model: str, *, weights: str = "native", seed: int = 0, progress: Progress | None = None) -> LoadedModel:
    """A model with its numbers. Names of the pull table are fetched when absent (progress: bytes done, in all).

    native: memory-mapped views of the file, no copies. Otherwise matrices are converted to the named format, except
    that the one that makes logits stays at eight bits under four and five (as llama.cpp's Q4_1 files have it); norms
    and biases are f32. UserError says what is wrong and what to do.
    """
    found = _find(model, weights, progress, fetch=True)
    if found.random:
        return replace(found, weights=_filled(found.weights, seed))
    return found if weights == "native" else replace(found, weights=_converted(found.weights, weights))


def describe(model: str, *, weights: str = "native") -> LoadedModel:
    """The same without numbers: every weight's data is None and nothing is allocated (A8). Fetches nothing."""
    found = _find(model, weights, None, fetch=False)
    described = map_weights(found.weights, lambda role, weight: weight.describe())
    return replace(found, weights=described if weights == "native" or found.random else _converted(described, weights))


def record(loaded: LoadedModel, storage: KvStorage, retention: KvRetention | None = None) -> Program:
    """The model's Program with its KV kept in `storage` as `retention` says."""
    return record_program(loaded.spec, loaded.weights, storage, retention)


def _find(model: str, weights: str, progress: Progress | None, *, fetch: bool) -> LoadedModel:
    """Where a name leads: mapped weights of a file, or descriptors of a random shape."""
    check_weights(weights)
    if match := SPLIT.fullmatch(model):
        whole, experts = _find(match[2], weights, progress, fetch=fetch), int(match[1])
        spec = split_spec(whole.spec, experts)
        return replace(whole, spec=spec, weights=split_weights(whole.weights, experts))
    if model.startswith(RANDOM):
        return _random(model.removeprefix(RANDOM), weights)
    if model in TABLE:
        if TABLE[model].architecture not in FAMILIES:
            raise UserError(
                f"{model} is a {TABLE[model].architecture!r} model: it can be pulled but not run yet. Supported "
                f"architectures: {', '.join(FAMILIES.names())}."
            )
        path = pull(model, progress) if fetch else find(model)
        if path is None:
            raise UserError(f"{model} is not on this machine yet. Run `ridgeline pull {model}` first.")
        return _from_gguf(path, model)
    path = _path(model)
    if path.is_dir():
        return _from_directory(path)
    if path.is_file() or path.suffix == ".gguf":
        return _from_gguf(path, path.stem)
    if model in shapes():
        raise UserError(f"{model} is a shape without weights here: use {RANDOM}{model}, or a path to its files.")
    known = [*TABLE, *(RANDOM + name for name in shapes())]
    raise UserError(f"unknown model {model!r}: no such file, directory or name. {suggest(model, known)}")


def _from_gguf(path: Path, name: str) -> LoadedModel:
    file = read_gguf(path)
    spec = spec_from_gguf(file.metadata, file.tensors, name, str(path))
    dropped = frozenset({ROPE_FACTORS})  # in the spec's rope
    template = file.metadata.get("tokenizer.chat_template")
    tensors = _tensors(spec, file.tensors, gguf_names(spec), str(path))
    return LoadedModel(
        spec, assemble(spec, tensors, gguf_names(spec), str(path), dropped), path, file.file_bytes,
        template if isinstance(template, str) else None, False, (),
        functools.cache(lambda: tokenizer_from_gguf(file.metadata, spec, str(path))),
    )  # fmt: skip


def _from_directory(directory: Path) -> LoadedModel:
    """config.json and safetensors, as Hugging Face repositories are laid out; quantised ones by their layout."""
    config = read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    if generation.exists():  # names more ends of text than config.json does (Llama 3, Qwen 2.5)
        config |= {key: value for key, value in read_json(generation).items() if key == "eos_token_id"}
    spec = spec_from_config(config, directory.resolve().name, str(directory / "config.json"))
    spec = replace(spec, add_bos=starts_with_bos(directory))
    names = hf_names(spec)
    contents = read_layout(config, read_raw(directory), str(directory / "config.json"))
    head = contents.tensors.get(names["head"])
    if spec.tied and head is not None and head.format.name not in ELEMENT_FORMATS.values():
        raise UserError(
            f"{directory} has its logits' matrix quantised, and tie_word_embeddings says there is none. "
            "Set it to false in config.json."
        )
    tensors = _tensors(spec, contents.tensors, names, str(directory))
    weights = assemble(spec, tensors, names, str(directory), contents.dropped)
    if spec.state is not None:
        weights = map_weights(weights, lambda role, weight: negative_exponential(weight) if role == "decay" else weight)
    if spec.family in ONE_PLUS:
        weights = map_weights(weights, lambda role, weight: _one_plus(weight) if role.endswith("norm") else weight)
    has_tokenizer = (directory / "tokenizer.json").exists()
    return LoadedModel(
        spec, weights, directory,
        sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        _directory_template(directory), False, contents.notes,
        functools.cache(lambda: Tokenizer.from_directory(directory, eos=spec.eos) if has_tokenizer else None),
    )  # fmt: skip


def _tensors(
    spec: ModelSpec, tensors: Mapping[str, StoredWeight], names: Mapping[str, str], source: str
) -> Mapping[str, StoredWeight]:
    """As the roles have them, however the file folds them."""
    if spec.state is not None:
        return flatten_vectors(tensors, names, spec.layers)
    return tensors if spec.experts is None else stacked(tensors, spec.experts.routing.experts, source)


def _directory_template(directory: Path) -> str | None:
    """chat_template.jinja, else the one in tokenizer_config.json (of several, "default")."""
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}. Fetch it again.") from error
    template = read_config(directory).get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = entries[-1].get("template") if entries else None
    return template if isinstance(template, str) else None


def _random(name: str, weights: str) -> LoadedModel:
    """Descriptors of a catalogue shape or of a config.json."""
    path = _path(name)
    if path.suffix == ".json":
        config = read_json(path)
        if config.get("quantization_config") is not None:
            raise UserError(f"{path}: quantization_config is set, which random weights do not follow. Remove it there.")
        spec = spec_from_config(config, f"{RANDOM}{path.parent.name or path.stem}", str(path))
    else:
        spec = replace(shape(name), name=RANDOM + name)

    def make(role: str, size: Shape, layer: int | None) -> StoredWeight:
        format = FORMATS.get(RANDOM_NATIVE) if weights == "native" else _format_for(role, weights)
        is_tied_head = role == "embed" and spec.tied
        if is_tied_head and weights != "native":
            format = _format_for("head", weights)
        return StoredWeight(role if layer is None else f"layers.{layer}.{role}", *size, format)

    return LoadedModel(spec, build(spec, make), random=True)


def _path(text: str) -> Path:
    """A path a person typed. UserError for what no file system takes."""
    if not text or "\0" in text or len(text) > 4096:
        raise UserError(f"{text[:80]!r} is not the name of a model or file.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{text!r}: {error}.") from error


def check_weights(name: str) -> None:
    """UserError unless `name` is in WEIGHTS, perhaps with options that its format takes."""
    if name.partition(":")[0] not in WEIGHTS or (name.startswith("native") and name != "native"):
        raise UserError(f"unknown weights {name!r}. Known: {', '.join(WEIGHTS)}.")
    if ":" in name:
        FORMATS.get(name)


def _format_for(role: str, weights: str) -> Format:
    """The format of a tensor by its role when a person asks for `weights`."""
    if role.endswith(("norm", "bias", "router")) or role in SMALL_ROLES:  # a router's choice must not hang on rounding
        return FORMATS.get("f32")
    return FORMATS.get(SMALL.get(weights.partition(":")[0], weights) if role == "head" else weights)


def _converted(weights: ModelWeights, name: str) -> ModelWeights:
    return map_weights(weights, lambda role, weight: convert(weight, _format_for(role, name)))


def _one_plus(weight: StoredWeight) -> StoredWeight:
    """The gain 1 + weight, in f32 as transformers computes it."""
    plain = FORMATS.get("f32")
    if weight.data is None:
        return StoredWeight(weight.name, weight.rows, weight.columns, plain)
    stored = plain.pack(1 + weight.unpack())
    return StoredWeight(weight.name, weight.rows, weight.columns, plain, stored)


def _filled(weights: ModelWeights, seed: int) -> ModelWeights:
    places = itertools.count()
    return map_weights(weights, lambda role, weight: filled(weight, role, seed, next(places)))
