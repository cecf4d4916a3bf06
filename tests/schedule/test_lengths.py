"""The length predictor: split by request, gradients, what it learns, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.schedule.predict.answers import Answers, Seen, gather, part_of, read_answers
from ridgeline.schedule.predict.fit import Course, Learner, fit, judge
from ridgeline.schedule.predict.mlp import Mlp, lengths_file, load_predictor, save_predictor
from ridgeline.schedule.predict.prompts import TASKS, TOPICS, made_prompts

WIDTH = 24


def made_up(requests: int = 300) -> Answers:
    """States that tell the length only in part, and the position a little."""
    random = np.random.default_rng(3)
    direction = random.standard_normal(WIDTH)
    seen = []
    for number in range(requests):
        length = int(random.integers(20, 400))
        one = Seen(f"prompt {number}", number % 5, 9, [], 500, length)
        for at in range(0, length, 10):
            state = direction * np.log(length - at + 10) + random.standard_normal(WIDTH) * 0.3
            one.looks.append((at, state.astype("<f4").tobytes()))
        seen.append(one)
    return gather(seen)


def test_prompts_are_different_and_fixed() -> None:
    prompts = made_prompts(500)
    assert len({one.text for one in prompts}) == 500 and prompts == made_prompts(500)
    assert len(made_prompts(10**6)) == len(TASKS) * len(TOPICS) == 3000


def test_whole_requests_belong_to_one_part() -> None:
    answers = made_up()
    parts = [set(answers.request[answers.looks(part)]) for part in ("train", "validation", "test")]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    shares = np.bincount([part_of(one.text) for one in made_prompts(3000)]) / 3000
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.03)


def test_looks_after_the_end_do_not_count() -> None:
    answers = gather([Seen("a", 0, 3, [(0, bytes(8)), (10, bytes(8)), (20, bytes(8))], 15, 15, True)])
    assert answers.at.tolist() == [0, 10] and answers.remaining.tolist() == [15, 5] and answers.is_cut.tolist() == [1]
    assert answers.room.tolist() == [15, 5]


def test_gradients_are_those_of_the_loss() -> None:
    random = np.random.default_rng(1)
    learner = Learner((6, 5, 4, 1), random, Course())
    x, y = random.standard_normal((9, 6)).astype(np.float32), random.standard_normal(9).astype(np.float32) + 5
    y[:2], is_cut = -9, np.arange(9) % 2 == 0  # of two that are surely guessed too long, one was cut short

    def loss() -> float:
        inputs = x.astype(np.float64)
        layers = learner.layers()
        for weight, bias in layers[:-1]:
            inputs = np.maximum(inputs @ weight + bias, 0)
        errors = (inputs @ layers[-1][0] + layers[-1][1])[:, 0] - y
        return float(np.abs(np.where(is_cut, np.minimum(errors, 0), errors)).mean())

    for place, gradient in enumerate(learner.gradients(x, y, is_cut)):
        weight = learner._weights[place]
        at = np.unravel_index(int(np.abs(gradient).argmax()), weight.shape)
        before, losses = weight[at], []
        for sign in (1, -1):
            weight[at] = before + sign * np.float32(1e-2)
            losses.append(loss())
        weight[at] = before
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(gradient[at]), rel=0.02)


def test_it_learns_what_states_tell() -> None:
    answers = made_up()
    judged = judge(answers, fit(answers, Course(epochs=15)))
    assert judged.all.mlp < 0.5 * judged.all.median and judged.all.mlp < 0.7 * judged.all.position
    assert judged.all.n == int(answers.looks("test").sum()) and judged.long[0].prompt == judged.long[0].mlp
    assert [row.first for row in judged.by_tokens] == [0, 1, 20, 50, 100, 200]


def test_too_few_answers_are_refused() -> None:
    with pytest.raises(UserError, match="too few"):
        fit(made_up(2))


def test_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIDGELINE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="ridgeline learn"):
        load_predictor("Some Model", WIDTH)
    random = np.random.default_rng(2)
    layers = ((random.standard_normal((WIDTH, 8)), np.zeros(8)), (random.standard_normal((8, 1)), np.ones(1)))
    network = Mlp(tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in layers), 50.0)
    path = lengths_file("Some Model")
    assert path == tmp_path / "lengths" / "some-model.predictor.safetensors"
    save_predictor(network, path, {"model": "Some Model", "width": str(WIDTH), "every": "10"})
    read = load_predictor("Some Model", WIDTH)
    states = random.standard_normal((5, WIDTH)).astype(np.float32)
    np.testing.assert_array_equal(read.network.remaining(states), network.remaining(states))
    assert read.every == 10 and network.parameters == WIDTH * 8 + 8 + 8 + 1
    with pytest.raises(UserError, match="was made for Some Model"):
        load_predictor("some model", WIDTH)
    with pytest.raises(UserError, match="was made for Some Model"):
        load_predictor("Some Model", WIDTH + 1)
    save_predictor(network, path, {"model": "Some Model", "width": "23", "every": "10"})
    with pytest.raises(UserError, match="do not follow"):
        load_predictor("Some Model", 23)
    path.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="is no length predictor"):
        load_predictor("Some Model", WIDTH)
    answers = made_up(12)
    answers.save(lengths_file("Some Model", "answers"))
    assert read_answers(lengths_file("Some Model", "answers")).remaining.tolist() == answers.remaining.tolist()
    with pytest.raises(UserError, match="holds no answers"):
        read_answers(path)
