"""What `ridgeline learn` does: answers from the engine, a network from the answers, errors of both."""

from __future__ import annotations

import queue
from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path

import msgspec

from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.llm import LLM
from ridgeline.models.load import describe
from ridgeline.models.pull import TABLE, pull
from ridgeline.run.noise import CpuWatch
from ridgeline.schedule.predict.answers import Answers, Seen, gather, read_answers
from ridgeline.schedule.predict.fit import LONG, Course, Errors, fit, judge
from ridgeline.schedule.predict.mlp import lengths_file, save_predictor
from ridgeline.schedule.predict.prompts import Prompt, made_prompts
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request, Sampling

from .screen import Screen

LEAST_ANSWERS = 20
COURSE = Course()


class Lesson(msgspec.Struct, frozen=True):
    """What `learn` was asked."""

    model: str
    answers: int
    max_tokens: int
    every: int
    temperature: float
    prompts: str | None
    again: bool
    weights: str
    threads: int | None

    def check(self) -> None:
        """UserError for what no answers can be made with."""
        if self.answers < LEAST_ANSWERS:
            raise UserError(f"--answers is {self.answers}; it must be at least {LEAST_ANSWERS}.")
        if self.max_tokens < 2 or self.every < 1:
            raise UserError("--max-tokens must be at least 2, and --every at least 1.")


def learn(asked: Lesson, *, json: bool) -> None:
    """Answer, learn, print, keep. UserError for too few prompts, and a model without chat template."""
    asked.check()
    screen = Screen(json)
    watch = CpuWatch()
    if asked.model in TABLE:
        with screen.fetching(asked.model) as progress:
            pull(asked.model, progress)
    spec = describe(asked.model, weights=asked.weights).spec
    kept, target = lengths_file(spec.name, "answers"), lengths_file(spec.name)
    if not asked.again:
        prompts = _prompts(asked)
        llm = LLM(asked.model, weights=asked.weights, threads=asked.threads)
        with llm, screen.counting("answers", asked.answers) as done:
            answer(llm, prompts, asked, done).save(kept)
    answers = read_answers(kept)
    with screen.counting("epochs", COURSE.epochs) as done:
        network = fit(answers, COURSE, done)
    judged = judge(answers, network)
    about = {"model": spec.name, "width": str(spec.width), "every": str(asked.every), "answers": str(answers.total)}
    save_predictor(network, target, about)
    screen.say(
        f"{answers.total} answers, {len(answers.at)} looks at them; {int(answers.is_cut.sum())} were cut short, and "
        f"would have had more. Mean absolute errors in tokens, over {judged.answers} answers it did not learn from:"
    )
    columns = ("tokens so far", "looks", "predictor", "the median", "by position", "from the prompt only")
    screen.table(columns, [_row(judged.all, "all"), *map(_row, judged.by_tokens)])
    if judged.long:
        screen.table(columns, [*map(_row, judged.long)], f"the same, over answers of {LONG} tokens and more only")
    screen.say(f"kept in {target}")
    screen.finish(
        "learn", asked=asked, judged=judged, parameters=network.parameters, file=str(target),
        foreign_cpu_share=watch.foreign_cpu_share(),
    )  # fmt: skip


def answer(llm: LLM, prompts: Many[Prompt], asked: Lesson, done: Callable[[int], None]) -> Answers:
    """Every prompt's answer, sampled with the end-of-sequence honoured, watched every asked.every tokens."""
    inbox: queue.SimpleQueue[tuple[int, TokenEvent | RidgelineError]] = queue.SimpleQueue()
    seen: list[Seen] = []

    def deliver(index: int) -> Callable[[TokenEvent | RidgelineError], None]:
        return lambda event: inbox.put((index, event))

    for index, prompt in enumerate(prompts):
        ids = llm.render([{"role": "user", "content": prompt.text}])
        seen.append(Seen(prompt.text, prompt.kind, len(ids), [], asked.max_tokens))
        sampling = Sampling(temperature=asked.temperature, top_p=0.95, seed=index)
        stops = llm.facts.eos
        request = Request(f"answer-{index}", ids, asked.max_tokens, sampling, stops, hidden_every=asked.every)
        llm.submit_to(request, deliver(index))
    left = len(seen)
    while left:
        index, event = inbox.get()
        if isinstance(event, RidgelineError):
            raise event
        one = seen[index]
        if event.hidden:
            one.looks.append((one.length, event.hidden))
        one.length += len(event.tokens)
        if event.finish is not None:
            one.is_cut = event.finish != "stop"
            left -= 1
            done(1)
    return gather(seen)


def _prompts(asked: Lesson) -> list[Prompt]:
    if asked.prompts is None:
        prompts = made_prompts(asked.answers)
    else:
        try:
            lines = Path(asked.prompts).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the prompts {asked.prompts!r}: {error}. Give a UTF-8 file.") from error
        prompts = [Prompt(line.strip(), 0) for line in lines if line.strip()][: asked.answers]
    if len(prompts) < asked.answers:
        raise UserError(f"there are {len(prompts)} prompts for {asked.answers} answers; ask for fewer (--answers).")
    return prompts


def _row(errors: Errors, name: str = "") -> tuple[str, ...]:
    span = f"{errors.first}" if errors.last == errors.first + 1 else f"{errors.first} to {(errors.last or 1) - 1}"
    span = f"{errors.first} and more" if errors.last is None else span
    means = (errors.mlp, errors.median, errors.position, errors.prompt)
    return (name or span, f"{errors.n}", *(f"{mean:.1f}" for mean in means))
