"""h2o: behind the window the tokens stay that attention has used most, for every layer and kv head apart (C10).

Chosen anew at fixed positions, so that no schedule changes what is kept; a token that has gone does not come back.
"""

from __future__ import annotations

from dataclasses import replace

from ridgeline.ops.kv import Reach

from .retention import RetentionPart


class H2oRetention:
    name = "h2o"
    takes_number = True
    prefix_stable = False
    needs = frozenset({"recent tokens", "attention mass", "tokens that stay where they are"})
    gives: frozenset[str] = frozenset()

    def limit(self, reach: Reach, tokens: int) -> Reach:
        return replace(reach, heavy=tokens)


RETENTION: RetentionPart = H2oRetention()
