"""Ridgeline as a worker of the peer table (see protocol.py): LLM(), and the roofline seconds of what each job ran."""

from __future__ import annotations

import argparse

import msgspec
from protocol import Engine, Json, serve

from ridgeline.llm import LLM
from ridgeline.perf.replay import replay
from ridgeline.perf.workload import Job
from ridgeline.run.machine import Machine


class Ridgeline:
    def __init__(self, options: argparse.Namespace) -> None:
        weights, *chosen_in_order = options.precision.split("/")
        chosen = dict(zip(("activations", "kv"), chosen_in_order, strict=False))
        self._llm = LLM(str(options.model), weights=weights, threads=options.threads, **chosen)
        facts = self._llm.facts
        self.facts: Json = {
            "build": f"{facts.body} kernels for {facts.isa}, {facts.kv} KV, "
            f"{self._llm.config.activations} activations in integer products",
            "weight_bytes": facts.resident_weight_bytes,
            "kv_pool_bytes": facts.kv_bytes, "arena_bytes": facts.arena_bytes, "file_bytes": facts.file_bytes,
        }  # fmt: skip

    def run(self, job: Json) -> Json:
        self._llm.account(reset=True)
        done = replay(self._llm, [Job(tuple(one["prompt_ids"]), one["output_tokens"]) for one in job["requests"]])
        if failed := [request.error for request in done.requests if request.error]:
            raise RuntimeError(failed[0])
        answer: Json = {
            "wall_s": done.summary.wall_s,
            "requests": [{"ids": one.ids, "ttft_s": one.ttft_s, "e2e_s": one.e2e_s} for one in done.requests],
        }
        if "machine" in job:
            account = self._llm.account(machine=msgspec.convert(job["machine"], Machine))
            answer["bound_s"] = {phase.name: phase.roof_s for phase in account.phases}
            answer["step_s"], answer["host_s"] = account.step_s, account.host_s
            answer["tokens_cached"] = account.tokens_cached
        return answer


def load(options: argparse.Namespace) -> Engine:
    return Ridgeline(options)


if __name__ == "__main__":
    serve(load)
