"""What each policy promises: order, classes, deadlines, shares; and of all: nobody starves, no token changes."""

from __future__ import annotations

import random

import pytest

from ridgeline.engine.engine import Engine
from ridgeline.kit.errors import UserError
from ridgeline.schedule.fair import FairOptions, FairPolicy
from ridgeline.schedule.policy import POLICIES, Policy, least_lost, make_policy
from ridgeline.schedule.predict.oracle import OraclePredictor
from ridgeline.schedule.predict.predictor import PREDICTORS
from ridgeline.schedule.predict.prompt import PromptPredictor
from ridgeline.schedule.shortest import ShortestOptions, ShortestPolicy
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence
from tests.engine.scripted import VOCABULARY, alone, ids_of, run_to_end, scripted_engine

STEP_S = 0.001  # of the scripted runner


def request(name: str, prompt: int = 5, output: int = 4, **fields: object) -> Request:
    ids = tuple((7 * i + len(name) + sum(map(ord, name))) % VOCABULARY for i in range(prompt))
    return Request(name, ids, output, ignore_stop=True, **fields)  # type: ignore[arg-type]


def sequence(number: int, output: int = 0, **fields: object) -> Sequence:
    asked = request(f"r{number}", **fields)  # type: ignore[arg-type]
    return Sequence(number, asked, 0.0, [*asked.prompt, *range(output)])


def order(engine: Engine) -> list[str]:
    """Names in the order of finishing."""
    return [event.request for event in run_to_end(engine) if event.finish]


# -- all of them


def mixed(count: int, seed: int) -> list[Request]:
    draw = random.Random(seed)
    return [
        request(
            f"r{number}", draw.choice((1, 5, 16, 40, 70)), draw.choice((1, 3, 9, 30)), priority=draw.randrange(3),
            tenant=draw.choice("abc"), deadline_s=draw.choice((None, 0.01, 0.1)),
            ttft_deadline_s=draw.choice((None, 0.005, 0.05)),
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(POLICIES))
def test_tokens_do_not_depend_on_the_policy(name: str) -> None:
    engine = scripted_engine(12, policy=name, sequences=5, step_tokens=32, step_logit_rows=5)
    asked = mixed(60, 3)
    events = []
    for one in asked:
        engine.add(one)
        events += engine.step()
        engine.check()
    events += run_to_end(engine)
    assert ids_of(events) == {one.id: alone(one)[0] for one in asked}
    pool = engine.scheduler.memory.pool
    assert pool.free_blocks == pool.blocks
    assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("name", ["priority", "deadline", "shortest", "shortest:predict=oracle", "fair"])
def test_nobody_starves_under_endless_arrivals_that_pass_it(name: str) -> None:
    """The disfavoured request: lowest class, no deadline, longest, of the tenant that has had most."""
    patience_s = 50 * STEP_S
    written = name if name == "fair" else f"{name}{',' if ':' in name else ':'}patience_s={patience_s}"
    engine = scripted_engine(16, policy=written, sequences=4, step_tokens=16, step_logit_rows=4)
    for number in range(3):
        engine.add(request(f"before{number}", 5, 30, tenant="greedy"))
    for _ in range(40):
        engine.step()
    engine.add(request("poor", 30, 40, priority=9, tenant="greedy"))
    ended = None
    for step in range(1000):
        engine.add(request(f"rich{step}", 4, 6, priority=0, tenant=f"t{step % 3}", deadline_s=0.02))
        if any(event.finish for event in engine.step() if event.request == "poor"):
            ended = step
            break
    assert ended is not None
    # It waits its patience, then for a place (the longest of those running), then runs alone in front.
    assert ended <= 50 + 6 + 30 + 40 + 20


@pytest.mark.parametrize("predict", list(PREDICTORS))
def test_wrong_predictions_change_no_token(predict: str) -> None:
    asked = mixed(30, 5)
    wrong = OraclePredictor({one.id: 1 + 7919 * index % 40 for index, one in enumerate(asked)})
    policies: list[Policy | str] = [f"shortest:predict={predict}", ShortestPolicy(predictor=wrong)]
    for policy in policies:
        engine = scripted_engine(10, policy=policy, sequences=4, step_tokens=24, step_logit_rows=4)
        for one in asked:
            engine.add(one)
        assert ids_of(run_to_end(engine)) == {one.id: alone(one)[0] for one in asked}


def test_the_victim_is_the_one_that_loses_least() -> None:
    running = [sequence(number) for number in range(4)]
    for one, computed in zip(running, (9, 3, 3, 5), strict=True):
        one.tokens_computed = computed
    assert least_lost(running) is running[2]  # of equals the last
    classes = [sequence(number, priority=number // 2) for number in range(4)]
    for one, computed in zip(classes, (1, 1, 7, 9), strict=True):
        one.tokens_computed = computed
    assert make_policy("priority").victim(classes) is classes[2]  # of the lowest class only


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("luck", "Known: deadline, fair, fcfs, priority, remaining, shortest"),
        ("fcfs:patience_s=3", "fcfs has no option 'patience_s'; it has no options"),
        ("priority:patience=3", "its options are patience_s"),
        ("priority:patience_s=soon", "float"),
        ("shortest:predict=stars", "Known: none, oracle, prompt"),
        ("fair:weights=a=none", "no positive number"),
        ("fair:weights=a=0", "no positive number"),
    ],
)
def test_what_there_is_not_is_refused(written: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_policy(written)


# -- one by one


def test_priority_serves_the_higher_class_first_and_takes_a_place_for_it() -> None:
    engine = scripted_engine(policy="priority", sequences=2)
    for name, priority in (("low1", 2), ("low2", 2), ("middle", 1), ("high", 0)):
        engine.add(request(name, 5, 10, priority=priority))
        engine.step()
    assert engine.scheduler.preemptions == 2  # middle and high each took the place of a low one
    assert order(engine) == ["middle", "high", "low1", "low2"]


def test_priority_takes_blocks_for_the_higher_class() -> None:
    engine = scripted_engine(6, policy="priority", sequences=8)
    engine.add(request("low", 60, 20, priority=1))
    engine.step()
    engine.add(request("high", 60, 20, priority=0))
    assert order(engine) == ["high", "low"]
    assert engine.scheduler.preemptions == 1


def test_an_equal_class_takes_nothing() -> None:
    engine = scripted_engine(policy="priority", sequences=1)
    for name in "abc":
        engine.add(request(name))
        engine.step()
    assert order(engine) == ["a", "b", "c"] and engine.scheduler.preemptions == 0


def test_deadline_serves_least_slack_first_and_the_hopeless_last() -> None:
    engine = scripted_engine(policy="deadline", sequences=1)
    engine.add(request("first", 5, 20))
    for _ in range(10):
        engine.step()  # learns that a step takes 1 ms
    engine.add(request("never", 5, 4))
    engine.add(request("relaxed", 5, 4, deadline_s=1.0))
    engine.add(request("hopeless", 5, 30, deadline_s=0.001))
    engine.add(request("tight", 5, 4, deadline_s=0.1))
    engine.add(request("first token", 5, 4, ttft_deadline_s=0.05))
    assert order(engine) == ["first", "first token", "tight", "relaxed", "never", "hopeless"]


@pytest.mark.parametrize("fields", [{"deadline_s": 0.0}, {"ttft_deadline_s": float("nan")}, {"deadline_s": -1.0}])
def test_a_deadline_is_a_positive_number(fields: dict[str, float]) -> None:
    with pytest.raises(UserError, match="positive number of seconds"):
        request("a", **fields).check(VOCABULARY, 256)


def test_shortest_goes_by_what_is_predicted() -> None:
    engine = scripted_engine(policy="shortest:predict=oracle", sequences=1)
    for name, output in (("long", 30), ("short", 3), ("middle", 9)):
        engine.add(request(name, 5, output))
    assert order(engine) == ["short", "middle", "long"]
    known = ShortestPolicy(ShortestOptions(), OraclePredictor({"a": 9, "b": 2}))
    engine = scripted_engine(policy=known, sequences=1)
    for name in "ab":
        engine.add(request(name, 5, 9))
    assert order(engine) == ["b", "a"]


def test_the_prompt_predictor_learns_by_prompt_length() -> None:
    predictor = PromptPredictor()
    assert predictor.predict(sequence(0, prompt=5)) == 0  # cannot say
    predictor.finished(sequence(0, output=10, prompt=5), "length")
    predictor.finished(sequence(1, output=20, prompt=6), "stop")
    predictor.finished(sequence(2, output=90, prompt=40), "stop")
    predictor.finished(sequence(3, output=0, prompt=40), "cancelled")  # says nothing
    assert predictor.predict(_asks(5, prompt=7)) == 15
    assert predictor.predict(_asks(6, prompt=50)) == 90
    assert predictor.predict(_asks(7, prompt=1)) == 40  # the mean of all
    assert predictor.predict(_asks(8, prompt=50, made=30)) == 60
    assert predictor.predict(_asks(9, prompt=50, made=95)) == 1  # longer than any before: soon, presumably


def _asks(number: int, prompt: int, made: int = 0) -> Sequence:
    asked = request(f"r{number}", prompt, 200)
    return Sequence(number, asked, 0.0, [*asked.prompt, *range(made)])


def fair_run(weights: str, steps: int, arrivals: dict[str, int]) -> tuple[FairPolicy, dict[str, int]]:
    """Tenants that always wait, each with its requests in flight; output tokens by tenant."""
    policy = FairPolicy(FairOptions(weights))
    engine = scripted_engine(64, policy=policy, sequences=6, step_tokens=48, step_logit_rows=6)
    tokens = dict.fromkeys(arrivals, 0)
    number = 0
    for _ in range(steps):
        waiting = [one.request.tenant for one in engine.scheduler._waiting]
        for tenant, queued in arrivals.items():
            for _ in range(queued - waiting.count(tenant)):
                engine.add(request(f"{tenant}-{number}", 3 + number % 20, 2 + number % 17, tenant=tenant))
                number += 1
        for event in engine.step():
            tokens[event.request.partition("-")[0]] += len(event.tokens)
    return policy, tokens


# The largest difference: a full batch of the longest request, all of one tenant, prompt 22 and output 18.
WORST = 6 * (22 + 2 * 18)


@pytest.mark.parametrize("arrivals", [{"a": 2, "b": 2}, {"a": 60, "b": 1, "c": 3}])
def test_fair_shares_do_not_depend_on_how_much_is_asked(arrivals: dict[str, int]) -> None:
    for steps in (100, 400):
        policy, _ = fair_run("", steps, arrivals)
        got = [policy.service(tenant) for tenant in arrivals]
        assert max(got) - min(got) <= WORST  # a constant: it does not grow with time


def test_fair_weights_are_shares() -> None:
    policy, tokens = fair_run("a=3", 600, {"a": 9, "b": 9})
    assert abs(policy.service("a") - policy.service("b")) <= WORST
    assert tokens["a"] / tokens["b"] == pytest.approx(3, rel=0.1)


def test_a_tenant_that_was_away_is_owed_nothing() -> None:
    policy = FairPolicy()
    engine = scripted_engine(64, policy=policy, sequences=2, step_tokens=32, step_logit_rows=2)
    for number in range(40):
        engine.add(request(f"a{number}", 5, 8, tenant="a"))
    for _ in range(60):
        engine.step()
    before = policy.service("a")
    for number in range(40):
        engine.add(request(f"b{number}", 5, 8, tenant="b"))
    engine.step()
    assert policy.service("b") >= before - 2 * (5 + 2 * 8)
    for _ in range(60):
        engine.step()
    assert abs(policy.service("a") - policy.service("b")) <= 2 * (5 + 2 * 8)


def test_work_thrown_away_is_not_counted_twice() -> None:
    policy = FairPolicy()
    engine = scripted_engine(6, policy=policy, sequences=4, step_tokens=32, step_logit_rows=4)
    asked = [request(name, 20, 30, tenant=name) for name in "abc"]
    for one in asked:
        engine.add(one)
    run_to_end(engine)
    assert engine.scheduler.preemptions > 0
    lifted = min(policy.service(name) for name in "abc")
    assert lifted == 20 + 2 * 29  # the last token is chosen and never computed
