"""The live page: its files come from here only, need no key and run nothing inline; its numbers need one."""

from __future__ import annotations

import json
import re

import numpy as np

from ridgeline.llm import LLM
from ridgeline.memory.pool import BlockPool
from ridgeline.serve.live_page import FILES
from ridgeline.state.messages import MAP_CELLS

from .live import Live, live
from .test_life import until


def test_the_page_is_whole_and_comes_from_nowhere_else(keyed: Live) -> None:
    texts = {}
    for path, (_, kind) in FILES.items():
        reply = keyed("GET", path, headers={"Authorization": ""})
        assert reply.status == 200 and reply.headers["content-type"] == kind
        assert "script-src 'self'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        texts[path] = reply.body.decode()
        assert not re.search(r"https?://|//cdn|innerHTML|eval\(", texts[path])
    page = texts["/"]
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=", page)
    asked = set(re.findall(r'(?:src|href|from) ?=? ?"(/[^"]+)"', "".join(texts.values())))
    assert asked == set(FILES) - {"/"}
    named = set(re.findall(r'at\("(\w+)"\)', "".join(texts.values())))
    assert named <= set(re.findall(r'id="(\w+)"', page))
    assert keyed("HEAD", "/").status == 200 and keyed("POST", "/", {}).status == 405


def test_its_numbers_need_a_key_and_add_up(keyed: Live, llm: LLM) -> None:
    assert keyed("GET", "/live", headers={"Authorization": ""}).status == 401
    keyed.chat(max_tokens=6)
    until(lambda: len(keyed("GET", "/live").json["map"]) > 0)
    now = keyed("GET", "/live").json
    assert now["status"] == "ok" and now["model"] == "tiny" and now["tokens"] >= 6 and now["latencies"] >= 1
    assert now["held"] + now["cached"] + now["free"] == now["blocks"] > 0
    assert len(now["map"]) == 2 * min(MAP_CELLS, now["blocks"]) and all(value > 0 for value in now["ttft_s"])
    with live(llm) as fresh:
        empty = fresh("GET", "/live").json
        assert empty["ttft_s"] == [None] * 3 and empty["latencies"] == 0 and json.dumps(empty)


def test_a_pools_picture_shows_what_is_held_and_cached() -> None:
    pool = BlockPool(40)
    assert pool.picture(8) == bytes(8)
    held = pool.allocate(20)
    cells = np.frombuffer(pool.picture(8), np.uint8)
    assert (cells >> 4).tolist() == [15] * 4 + [0] * 4 and not (cells & 15).any()
    assert pool.picture(100) == bytes([0xF0] * 20 + [0] * 20)
    pool.free(held[2:])
    assert pool.picture(8)[0] >> 4 == 6 and pool.picture(8)[1] == 0
