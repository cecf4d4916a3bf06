"""The rules of verdicts, as data: one row a cause of EXPLAIN §2, to be read and disputed. No learned model.

A rule holds when all its conditions hold; of those that hold the lowest `order` comes first, then the largest share.
Quantities are named in evidence.py. Adding a cause needs a row here, a plant in bench/plants.py and both confusion
numbers in docs/findings/explain.md.
"""

from __future__ import annotations

import msgspec

HEALTHY, UNDETERMINED = "healthy", "undetermined"
NOT_HERE = "not plantable here yet"


class Condition(msgspec.Struct, frozen=True):
    """quantity >= least, and <= most. A quantity that was not measured fulfils nothing."""

    quantity: str
    least: float = float("-inf")
    most: float = float("inf")

    def holds(self, values: dict[str, float]) -> bool:
        value = values.get(self.quantity)
        return value is not None and self.least <= value <= self.most


class Rule(msgspec.Struct, frozen=True):
    """share: the quantity that says how much of `of` the cause takes. words: what it means for the reader.

    order: 1 what falsifies the run from outside, 2 what requests wait for, 3 what is not the model, 4 the model itself.
    roof: the ceiling to print. plant: how a test makes it happen.
    """

    cause: str
    order: int
    share: str
    conditions: tuple[Condition, ...]
    words: str
    of: str = "wall time"
    roof: str = ""
    plant: str = ""


def _at_least(quantity: str, least: float) -> Condition:
    return Condition(quantity, least=least)


def _at_most(quantity: str, most: float) -> Condition:
    return Condition(quantity, most=most)


PREDICTED = 1.1  # how far calibrated predictions of tuned runs are off (docs/findings/verdict.md)
TOLD = _at_least("is timed", 1)  # the recorder was on
RULES = (
    Rule("memory_system", 1, "excess share",
         (TOLD, _at_least("major faults a second", 20), _at_least("excess share", 0.2)),
         "pages come from a disk while operators wait for them",
         plant="weights on a mapped file whose pages are dropped between steps"),
    Rule("threads", 1, "run-queue share", (_at_least("run-queue share", 0.15),),
         "more threads want a core than there are cores", of="the time its threads wanted a core",
         plant="4 x cores; other processes on every core; all threads on one core"),
    Rule("threads", 1, "excess share", (TOLD, _at_least("threads per core", 1.5), _at_least("excess share", 0.15)),
         "the engine runs more threads than it has cores", plant="4 x cores; all threads on one core"),
    Rule("threads", 1, "throttled share", (_at_least("throttled share", 0.1),),
         "the control group's quota stops the engine", plant="a CPU quota (needs root over the control group)"),
    Rule("threads", 1, "foreign share", (TOLD, _at_least("foreign share", 0.3), _at_least("excess share", 0.2)),
         "other processes take the cores and their caches", of="this machine's processor time",
         plant="other processes on every core"),
    Rule("clock", 1, "slower now", (_at_most("arithmetic now", 0.7), _at_most("foreign share", 0.25),
                                    _at_most("run-queue share", 0.1)),
         "the machine is slower now than when its ceilings were measured", of="the arithmetic it once reached",
         plant="ceilings catalogued higher than they are"),
    Rule("kernel", 1, "reference share", (TOLD, _at_least("reference share", 0.2)),
         "operators run their slow reference although a faster body is here",
         plant="one operator forced to its reference body"),
    Rule("client", 2, "client share", (_at_least("client share", 0.4),),
         "answers wait for whoever reads them", of="requests' time", plant="a reader that sleeps between pieces"),
    Rule("kv_capacity", 2, "capacity share", (_at_least("capacity share", 0.2), _at_least("preemptions", 1)),
         "requests give their memory back and start over", of="requests' time", plant="pool cut to 1/8"),
    Rule("kv_capacity", 2, "capacity share", (_at_least("capacity share", 0.4), _at_least("kv occupancy", 0.6)),
         "requests wait for memory that others hold", of="requests' time", plant="pool cut to 1/8"),
    Rule("kv_capacity", 2, "starved share",
         (_at_least("starved share", 0.3), _at_least("kv occupancy", 0.6), _at_least("slots free", 0.05)),
         "requests wait although slots are free: the memory is not", of="requests' time", plant="pool cut to 1/8"),
    Rule("queue", 2, "queue share", (_at_least("queue share", 0.4), _at_least("busy share", 0.7)),
         "requests wait untried while the engine is busy with others", of="requests' time",
         plant="arrivals at 2 x capacity"),
    Rule("tokenizer", 3, "tokenize share", (_at_least("tokenize share", 0.25),),
         "text is turned into tokens, or back, while the engine waits", plant="slowed tokenizer"),
    Rule("sampling", 3, "sampling share", (_at_least("sampling share", 0.25),),
         "choosing tokens from the logits", plant="a large vocabulary with penalties and log-probabilities"),
    Rule("dispatch", 3, "between share", (TOLD, _at_least("between share", 0.25)),
         "gaps between operators, whatever their size", plant="every operator its own call; a fixed wait before each"),
    Rule("host", 3, "host share", (_at_least("host share", 0.2),),
         "planning and book-keeping between steps", plant="busy loop in a policy"),
    Rule("underload", 3, "idle share", (_at_least("idle share", 0.4),),
         "nobody asks: nothing is wrong", plant="one user in a closed loop, with think time"),
    Rule("link", 3, "link share", (_at_least("link share", 0.2),),
         "moving state between ranks or tiers while nothing else runs", plant="swap over a throttled path"),
    Rule("imbalance", 3, "imbalance", (_at_least("imbalance", 0.2),),
         "ranks, experts or stages wait for the slowest", plant=NOT_HERE),
    Rule("kernel", 4, "excess share", (TOLD, _at_least("is slower isa", 1), _at_least("excess share", 0.2)),
         "kernels use an older instruction set than this machine has", plant="--isa plain or avx2"),
    Rule("kernel", 4, "excess share", (TOLD, _at_least("excess share", 0.5)),
         "operators are far under both roofs", plant="see above"),
    Rule(HEALTHY, 5, "nearness share", (TOLD, _at_most("nearness", 1.15 * PREDICTED), _at_most("best gain", 1.25)),
         "within 15 % of the nearest roof or of what can be predicted, and no setting is predicted to gain 25 %",
         plant="tuned runs"),
    Rule("weight_bandwidth", 6, "weight share", (TOLD, _at_least("weight share", 0.35)),
         "reading the weights", roof="weight bandwidth", plant="f32 weights, batch 1"),
    Rule("kv_bandwidth", 6, "kv share", (TOLD, _at_least("kv share", 0.35)),
         "reading kept keys and values", roof="KV bandwidth", plant="long contexts, many sequences"),
    Rule("compute", 6, "compute share", (TOLD, _at_least("compute share", 0.35)),
         "arithmetic", roof="compute", plant="long prompts, large chunks"),
)  # fmt: skip
CAUSES = (*dict.fromkeys(rule.cause for rule in RULES), UNDETERMINED)


class Remedy(msgspec.Struct, frozen=True):
    """What to try where no setting could be priced on the steps: `quantity` is the share that would go, at most."""

    cause: str
    option: str
    words: str
    quantity: str


REMEDIES = (
    Remedy("kernel", "--body cpp", "bind the faster body; leave --isa and --body to their defaults", "excess share"),
    Remedy("dispatch", "--body cpp", "one native call a step (ridgeline doctor MODEL names the lines that break it)",
           "between share"),
    Remedy("host", "--policy fcfs", "a policy that does not look at every step; fewer sequences a step", "host share"),
    Remedy("tokenizer", "prompt ids", "send token ids, or turn text into tokens on other threads", "tokenize share"),
    Remedy("sampling", "--top-k 64", "few candidates first; no log-probabilities", "sampling share"),
    Remedy("queue", "--max-sequences", "more sequences at a time while steps stay at a memory roof; else admit fewer, "
           "or serve from more machines", "queue share"),
    Remedy("kv_capacity", "--kv-bytes", "a larger pool, --kv int8, or fewer --max-sequences", "capacity share"),
    Remedy("threads", "--threads", "as many threads as cores that are free; end what else runs, or pin it elsewhere",
           "run-queue share"),
    Remedy("memory_system", "more memory", "keep the model's pages resident: lock them, or end what takes memory",
           "excess share"),
    Remedy("client", "fewer events", "send several tokens at a time; look at proxies' buffers", "client share"),
    Remedy("clock", "wait", "look at power caps, cooling and neighbours; then `ridgeline doctor --measure`",
           "slower now"),
    Remedy("link", "fewer ranks", "fewer ranks, another split, or overlap transfers with work", "link share"),
    Remedy("imbalance", "another split", "give the slowest rank less", "imbalance"),
    Remedy("weight_bandwidth", "more requests at a time", "one reading of the weights serves a whole batch",
           "weight share"),
    Remedy("compute", "a shared beginning", "prompts that begin alike are computed once; else a faster machine",
           "recompute share"),
)  # fmt: skip
