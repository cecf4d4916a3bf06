"""The mechanism, one rule at a time, through the scripted runner (which refuses plans that break the contract)."""

from __future__ import annotations

import pytest

from ridgeline.kit.errors import CapacityError, InvariantError, UserError
from ridgeline.schedule.options import ScheduleOptions
from ridgeline.state.event import TokenEvent
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.request import Request, Sampling
from tests.engine.scripted import (
    BLOCK_TOKENS,
    CONTEXT,
    VOCABULARY,
    alone,
    ids_of,
    prompt_scores,
    run_to_end,
    scripted_engine,
)


def request(name: str, prompt: int = 5, max_tokens: int = 4, **fields: object) -> Request:
    ids = tuple((7 * i + len(name) + sum(map(ord, name))) % VOCABULARY for i in range(prompt))
    return Request(name, ids, max_tokens, **fields)  # type: ignore[arg-type]


def last(events: list[TokenEvent], name: str) -> TokenEvent:
    return [event for event in events if event.request == name][-1]


def test_one_request_alone() -> None:
    engine = scripted_engine()
    asked = request("a", 20, 30)
    engine.add(asked)
    events = run_to_end(engine)
    assert (ids_of(events)["a"], events[-1].finish) == alone(asked)
    assert len(events) == 30
    assert engine.scheduler.memory.pool.held_blocks == 0


def test_everybody_running_gets_a_token_while_a_long_prompt_is_read() -> None:
    engine = scripted_engine(step_tokens=16, step_logit_rows=8, sequences=8)
    engine.runner.keep_plans = True
    for name in "abc":
        engine.add(request(name, 2, 40))
    engine.step()
    engine.add(request("long", 100, 5))
    events = run_to_end(engine)
    shares = [[len(entry.tokens) for entry in plan.entries] for plan in engine.runner.plans[1:9]]
    assert shares == [[1, 1, 1, 13]] * 7 + [[1, 1, 1, 100 - 7 * 13]]
    assert last(events, "long").finish == "length"


def test_chunk_limits_one_sequence_not_the_step() -> None:
    engine = scripted_engine(step_tokens=64, chunk=8)
    engine.runner.keep_plans = True
    engine.add(request("a", 20))
    engine.add(request("b", 20))
    run_to_end(engine)
    assert [[len(entry.tokens) for entry in plan.entries] for plan in engine.runner.plans[:3]] == [
        [8, 8],
        [8, 8],
        [4, 4],
    ]


def test_nobody_is_admitted_without_tokens_left_for_it() -> None:
    engine = scripted_engine(step_tokens=64)
    for name in "abc":
        engine.add(request(name, 64))
    engine.step()
    assert (engine.scheduler.running, engine.scheduler.waiting) == (1, 2)


def test_stop_ids_end_a_sequence_and_are_its_last_token() -> None:
    asked = request("a", 5, 50)
    ids = alone(asked)[0]
    stop = ids[7]
    engine = scripted_engine()
    engine.add(request("a", 5, 50, stop_ids=(stop,)))
    engine.add(request("b", 5, 50, stop_ids=tuple(range(VOCABULARY)), ignore_stop=True))
    events = run_to_end(engine)
    assert last(events, "a").finish == "stop"
    assert ids_of(events)["a"] == ids[: ids.index(stop) + 1]
    assert len(ids_of(events)["b"]) == 50


def test_a_sequence_ends_with_the_context() -> None:
    engine = scripted_engine()
    engine.add(request("a", CONTEXT - 3, 50))
    events = run_to_end(engine)
    assert len(ids_of(events)["a"]) == 3 and events[-1].finish == "length"


def test_tokens_of_the_sampling_travel_into_the_row() -> None:
    engine = scripted_engine()
    engine.runner.keep_plans = True
    sampling = Sampling(temperature=0.7, repetition_penalty=1.1, logprobs=2)
    engine.add(request("a", 5, 3, sampling=sampling, choice=4))
    engine.add(request("plain", 5, 3))
    events = run_to_end(engine)
    rows = [plan.entries[0].rows[0] for plan in engine.runner.plans]
    assert [row.position for row in rows] == [5, 6, 7]  # of the token being chosen
    assert [len(row.history[0]) for row in rows] == [5, 6, 7] and rows[0].history[1] == 5
    assert all(row.choice == 4 and row.logprobs == 2 and row.sampling is sampling for row in rows)
    assert all(plan.entries[1].rows[0].history is None for plan in engine.runner.plans)
    scored = [event.scored for event in events if event.request == "a"]
    assert all(len(one) == 1 and len(one[0].top) == 2 for one in scored)


@pytest.mark.parametrize("rows", [2, 3, 7, 64])
def test_prompt_scores_need_rows_so_the_chunk_shrinks(rows: int) -> None:
    engine = scripted_engine(step_logit_rows=rows, sequences=2)
    scored = request("score", 30, 0, prompt_logprobs=1)
    both = request("both", 25, 4, prompt_logprobs=0)
    engine.add(scored)
    engine.add(both)
    events = run_to_end(engine)
    for asked in (scored, both):
        found = [s for event in events if event.request == asked.id for s in event.prompt_scored]
        assert [s.token for s in found] == list(asked.prompt[1:])
        assert [s.logprob for s in found] == prompt_scores(asked)
    only = [event for event in events if event.request == "score"]
    assert len(only) == 1 and only[0].tokens == () and only[0].finish == "length"
    assert ids_of(events)["both"] == alone(both)[0]


def test_scores_of_one_token_are_none() -> None:
    engine = scripted_engine()
    engine.add(request("a", 1, 0, prompt_logprobs=0))
    (event,) = run_to_end(engine)
    assert event.prompt_scored == () and event.finish == "length"


def test_preemption_starts_over_and_changes_no_token() -> None:
    engine = scripted_engine(blocks=6)
    asked = [request(name, 16, 40) for name in "abc"]
    for one in asked:
        engine.add(one)
    events = run_to_end(engine)
    assert engine.scheduler.preemptions > 0
    assert {one.id: alone(one)[0] for one in asked} == ids_of(events)
    assert last(events, "a").preemptions == 0  # first come, always served
    lost = sum(last(events, one.id).tokens_recomputed for one in asked)
    assert lost == engine.scheduler.tokens_recomputed > 0


def test_prompt_scores_survive_preemption() -> None:
    engine = scripted_engine(blocks=5, step_logit_rows=4, sequences=4)
    asked = [request(name, 20, 30, prompt_logprobs=0) for name in "abc"]
    for one in asked:
        engine.add(one)
    events = run_to_end(engine)
    assert engine.scheduler.preemptions > 0
    for one in asked:
        found = [s.logprob for event in events if event.request == one.id for s in event.prompt_scored]
        assert found == prompt_scores(one)


def test_what_can_never_fit_is_refused_at_once() -> None:
    engine = scripted_engine(blocks=4)
    with pytest.raises(CapacityError, match="more than the whole pool"):
        engine.add(request("big", 10, 60))
    engine.add(request("fits", 10, 55))  # 64 computed tokens: the last is never run
    assert len(ids_of(run_to_end(engine))["fits"]) == 55


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    engine = scripted_engine()
    engine.add(request("a"))
    with pytest.raises(UserError, match="already in use"):
        engine.add(request("a"))
    run_to_end(engine)
    engine.add(request("a"))
    run_to_end(engine)


def test_cancel_frees_blocks_in_every_stage() -> None:
    engine = scripted_engine(sequences=1)
    for name in "ab":
        engine.add(request(name, 40, 20))
    waiting = engine.cancel("b")
    assert waiting is not None and waiting.finish == "cancelled"
    engine.step()
    assert engine.scheduler.memory.pool.held_blocks == 3
    running = engine.cancel("a")
    assert running is not None and running.finish == "cancelled"
    assert engine.scheduler.memory.pool.held_blocks == 0 and not engine.has_work
    assert engine.cancel("a") is None and engine.cancel("never seen") is None
    engine.check()


def test_cancel_in_flight_waits_for_commit() -> None:
    engine = scripted_engine()
    scheduler = engine.scheduler
    engine.add(request("a"))
    engine.add(request("b"))
    plan = scheduler.plan(0.0)
    assert scheduler.cancel("a", 0.0) is None
    assert scheduler.memory.pool.held_blocks == 2
    result = engine.runner.collect(engine.runner.submit(plan))
    events = scheduler.commit(plan, result)
    assert last(events, "a").finish == "cancelled" and last(events, "a").tokens == ()
    assert scheduler.memory.pool.held_blocks == 1
    assert ids_of(events + run_to_end(engine))["b"] == alone(request("b"))[0]


def test_released_sequences_are_told_to_the_runner_once() -> None:
    engine = scripted_engine()
    engine.runner.keep_plans = True
    engine.add(request("a", max_tokens=1))
    engine.step()
    engine.add(request("b", max_tokens=2))
    run_to_end(engine)
    assert [plan.released for plan in engine.runner.plans] == [(), (0,), ()]


def test_plan_and_commit_alternate() -> None:
    engine = scripted_engine()
    scheduler = engine.scheduler
    assert scheduler.plan(0.0).is_empty
    engine.add(request("a"))
    plan = scheduler.plan(0.0)
    with pytest.raises(InvariantError):
        scheduler.plan(0.0)
    with pytest.raises(InvariantError):
        scheduler.commit(StepPlan(plan.entries), StepResult(((),), 0.0, 0.0))
    with pytest.raises(InvariantError):
        scheduler.commit(plan, StepResult((), 0.0, 0.0))


def test_first_come_first_served() -> None:
    engine = scripted_engine(sequences=3)
    for number in range(12):
        engine.add(request(f"r{number:02}", 10, 6))
    events = run_to_end(engine)
    finished = [event.request for event in events if event.finish]
    assert finished == sorted(finished)


def test_arrival_decides_not_the_order_of_adding() -> None:
    engine = scripted_engine(sequences=1)
    engine.add(request("later", arrival_s=2.0))
    engine.add(request("sooner", arrival_s=1.0))
    finished = [event.request for event in run_to_end(engine) if event.finish]
    assert finished == ["sooner", "later"]


def test_static_batches_wait_and_waste_one_minus_mean_over_max() -> None:
    """B3: the share of slots that hold a finished sequence is 1 - mean / max output length."""
    lengths = [4, 9, 30, 17, 2, 50, 8, 8]
    engine = scripted_engine(sequences=len(lengths), step_tokens=512, batching="static")
    for number, length in enumerate(lengths):
        engine.add(request(f"r{number}", 6, length))
    engine.add(request("next batch", 6, 3))
    used = held = 0
    while engine.scheduler.waiting or not used:
        held_before = engine.scheduler.slots_held
        events = engine.step()
        if len(events) == 1 and events[0].request == "next batch":
            break
        used += len(events)
        held += held_before or len(lengths)
    assert 1 - used / held == pytest.approx(1 - (sum(lengths) / len(lengths)) / max(lengths))
    run_to_end(engine)


def test_continuous_batching_wastes_no_slot() -> None:
    engine = scripted_engine(sequences=2)
    for number, length in enumerate([20, 3, 3, 3]):
        engine.add(request(f"r{number}", 6, length))
    finished = [event.request for event in run_to_end(engine) if event.finish]
    assert finished == ["r1", "r2", "r3", "r0"]  # nobody waits for the end of another


def test_without_cache_everything_is_computed_for_every_token() -> None:
    engine = scripted_engine(cache=False, sequences=1)
    engine.runner.keep_plans = True
    asked = request("a", 10, 5)
    engine.add(asked)
    assert ids_of(run_to_end(engine))["a"] == alone(asked)[0]
    assert [plan.tokens for plan in engine.runner.plans] == [10, 11, 12, 13, 14]


def test_without_paging_the_longest_output_is_held_from_the_start() -> None:
    paged, contiguous = scripted_engine(), scripted_engine(contiguous=True)
    for engine in (paged, contiguous):
        engine.add(request("a", 10, 100))
        engine.step()
    assert paged.scheduler.memory.pool.held_blocks == 1
    assert contiguous.scheduler.memory.pool.held_blocks == -(-109 // BLOCK_TOKENS)
    assert ids_of(run_to_end(paged)) == ids_of(run_to_end(contiguous))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sequences": 0}, "at least one"),
        ({"step_tokens": 3, "sequences": 4}, "owed"),
        ({"step_logit_rows": 3, "sequences": 4}, "owed"),
        ({"chunk": 0}, "chunk"),
        ({"batching": "magic"}, "continuous"),
    ],
)
def test_options_under_which_somebody_gets_nothing_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ScheduleOptions(**options).check()  # type: ignore[arg-type]
