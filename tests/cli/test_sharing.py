"""Several models of one `serve`: what they are called, and how threads and memory are split between them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ridgeline.cli.sharing import named, pools, shares
from ridgeline.engine.bill import RESERVE_BYTES
from ridgeline.kit.errors import CapacityError, UserError

MIB = 1 << 20


def test_names(tmp_path) -> None:
    assert named(["smollm2-135m"], None) == {"smollm2-135m": "smollm2-135m"}
    assert named(["smollm2-135m"], "m") == {"m": "smollm2-135m"}
    assert named(["a/b=some/path", "x=random:tiny=1"], None) == {"a/b": "some/path", "x": "random:tiny=1"}
    odd = tmp_path / "n=1"
    odd.mkdir()
    assert named([str(odd), "random:a=b"], None) == {str(odd): str(odd), "random:a=b": "random:a=b"}
    with pytest.raises(UserError, match="called 'a'"):
        named(["a=x", "a=y"], None)
    with pytest.raises(UserError, match="NAME=MODEL"):
        named(["x", "y"], "m")


def test_threads_and_sizes_are_split(tiny) -> None:
    alone = shares({"m": tiny}, {"kv_bytes": 5})
    assert alone[0].options == {"kv_bytes": 5}
    made = shares({"a": tiny, "b": tiny, "c": tiny}, {"threads": 8, "kv_bytes": 9 * MIB, "spec": "ngram:k=4"})
    assert [share.options["threads"] for share in made] == [3, 3, 2]
    assert {share.options["kv_bytes"] for share in made} == {3 * MIB} and made[2].options["spec"] == "ngram:k=4"
    assert str(made[2]).startswith("c: 2 threads, 3")
    assert [share.options["threads"] for share in shares({"a": tiny, "b": tiny}, {"threads": 1, "kv_bytes": 9})] == [
        1,
        1,
    ]
    free = shares({"a": tiny, "b": tiny}, {"max_sequences": 4})
    assert all(share.options["kv_bytes"] > 0 for share in free)


def test_what_one_pool_does_not_need_is_the_others() -> None:
    def bill(weights: int, kv: int) -> SimpleNamespace:
        return SimpleNamespace(weight_bytes=weights, activation_bytes=1, reserve_bytes=10, kv_bytes=kv)

    left = 1000 + RESERVE_BYTES
    assert pools([bill(99, 5000), bill(199, 50)], left) == [640, 50]
    assert pools([bill(99, 5000), bill(199, 5000)], left) == [345, 345]
    with pytest.raises(CapacityError, match="Serve fewer"):
        pools([bill(990, 5), bill(199, 5)], left)
