"""Workloads: read strictly, made reproducibly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.perf.workload import Job, named_workload, read_workload

VOCABULARY = 49152


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_a_file_of_both_kinds_of_prompts(tmp_path):
    path = tmp_path / "work.jsonl"
    path.write_text(
        '{"prompt": "ab", "output_tokens": 3}\n\n'
        '{"prompt_ids": [7, 8], "output_tokens": 1, "arrival_s": 0.5, "priority": 2}\n'
    )
    assert read_workload(path, encode) == [Job((97, 98), 3), Job((7, 8), 1, 0.5, 2)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "a", "output_token": 3}, "output_token`"),
        ({"prompt": "a"}, "output_tokens`"),
        ({"output_tokens": 3}, "either"),
        ({"prompt": "a", "prompt_ids": [1], "output_tokens": 3}, "either"),
        ({"prompt": "", "output_tokens": 3}, "empty"),
        ({"prompt_ids": [], "output_tokens": 3}, "empty"),
        ({"prompt": "a", "output_tokens": 0}, "output_tokens is 0"),
        ({"prompt": "a", "output_tokens": 1.5}, "int"),
        ({"prompt": "a", "output_tokens": 3, "arrival_s": -1}, "arrival_s is -1"),
        ({"prompt_ids": ["x"], "output_tokens": 3}, "int"),
        ([], "object"),
        ("not JSON", "malformed"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, line, words):
    path = tmp_path / "work.jsonl"
    wrong = line if isinstance(line, str) else json.dumps(line)
    path.write_text('{"prompt": "fine", "output_tokens": 1}\n' + wrong + "\n")
    with pytest.raises(UserError, match="line 2") as error:
        read_workload(path, encode)
    assert words in str(error.value)


def test_no_file_and_an_empty_one(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_workload(tmp_path / "nowhere", encode)
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(UserError, match="no request"):
        read_workload(tmp_path / "empty", encode)


def test_named_workloads_are_what_peers_says():
    assert [(len(j.prompt), j.output_tokens) for j in named_workload("W1", VOCABULARY)] == [(128, 128)]
    assert [(len(j.prompt), j.output_tokens) for j in named_workload("W2-2048", VOCABULARY)] == [(2048, 1)]
    burst = named_workload("W3", VOCABULARY)
    prompts, outputs = [len(job.prompt) for job in burst], [job.output_tokens for job in burst]
    assert len(burst) == 64 and all(job.arrival_s == 0 for job in burst)
    assert min(prompts) >= 16 and max(prompts) <= 1024 and min(outputs) >= 8 and max(outputs) <= 256
    # a mean of 64 lognormal draws scatters by sqrt(exp(sigma^2) - 1) / 8: 12 % for prompts, 10 % for outputs
    assert np.mean(prompts) == pytest.approx(200, rel=0.36) and np.mean(outputs) == pytest.approx(100, rel=0.30)
    shared = named_workload("W4", VOCABULARY)
    assert {job.prompt[:512] for job in shared} == {shared[0].prompt[:512]}
    assert len({job.prompt for job in shared}) == 64 and {job.output_tokens for job in shared} == {32}


def test_repetitions_have_the_same_lengths_and_other_tokens():
    first, again, second = (named_workload("W3", VOCABULARY, repetition) for repetition in (0, 0, 1))
    assert first == again
    assert [len(job.prompt) for job in first] == [len(job.prompt) for job in second]
    assert first[0].prompt != second[0].prompt
    assert all(1000 <= token < 30_000 for job in first for token in job.prompt)


def test_ids_stay_inside_a_small_vocabulary():
    assert all(token < 300 for token in named_workload("W1", 300)[0].prompt)


@pytest.mark.parametrize("name", ["W2-", "W2-x", "W2-0", "W5", "requests.jsonl", ""])
def test_other_names_are_no_workloads(name):
    assert named_workload(name, VOCABULARY) is None
