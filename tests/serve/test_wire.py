"""The wire: shapes, order of chunks, usage, log-probabilities, errors (SERVING §3)."""

from __future__ import annotations

import math

import pytest

from .live import Live


def text_of(events: list) -> str:
    return "".join(one["choices"][0]["delta"].get("content", "") for one in events[:-1] if one["choices"])


def test_a_chat_answer_has_the_shape_clients_know(server: Live) -> None:
    reply = server.chat()
    body = reply.json
    assert reply.status == 200 and body["object"] == "chat.completion" and body["model"] == "tiny"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant" and isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length") and choice["logprobs"] is None
    usage = body["usage"]
    assert usage["completion_tokens"] == 8 and usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_chunks_come_in_the_promised_order(server: Live) -> None:
    reply = server.chat(n=3, stream=True, seed=5, temperature=1, stream_options={"include_usage": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"
    *events, done = reply.events
    assert done == "[DONE]"
    assert [one["choices"][0]["index"] for one in events[:3]] == [0, 1, 2]
    assert all(one["choices"][0]["delta"] == {"role": "assistant", "content": ""} for one in events[:3])
    assert len({(one["id"], one["created"], one["model"], one["system_fingerprint"]) for one in events}) == 1
    *chunks, last = events
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 24
    assert all(one["usage"] is None for one in chunks)
    finished = [one["choices"][0] for one in chunks if one["choices"][0]["finish_reason"]]
    assert sorted(one["index"] for one in finished) == [0, 1, 2] and all(one["delta"] == {} for one in finished)
    assert all("finish_reason" in one["choices"][0] for one in chunks)


def test_no_usage_unless_asked_for(server: Live) -> None:
    events = server.chat(stream=True).events
    assert all("usage" not in one for one in events[:-1])
    assert server.chat(stream_options={"include_usage": True}).code == "invalid_value"


def test_running_usage_is_exact(server: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *events, _ = server.complete(
        [65, 66], stream=True, max_tokens=6, stream_options=options, return_token_ids=True
    ).events
    seen = 0
    for one in events[:-1]:
        seen += len(one["choices"][0].get("token_ids", []))
        assert one["usage"]["completion_tokens"] == seen
    assert events[-1]["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 3}, {"temperature": 1, "seed": 3}])
def test_streamed_or_not_the_same_is_said(server: Live, fields: dict) -> None:
    whole = server.chat(**fields).json["choices"]
    events = server.chat(stream=True, **fields).events[:-1]
    for choice in whole:
        mine = [c for one in events for c in one["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        if choice["logprobs"] is not None:
            assert [e for c in mine if c["logprobs"] for e in c["logprobs"]["content"]] == choice["logprobs"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_or_not_the_same_text_and_offsets(server: Live, echo: bool) -> None:
    fields = {"echo": echo, "logprobs": 2, "max_tokens": 5}
    (whole,) = server.complete("hello", **fields).json["choices"]
    parts = [one["choices"][0] for one in server.complete("hello", stream=True, **fields).events[:-1]]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [x for part in parts if part["logprobs"] for x in part["logprobs"][name]] == whole["logprobs"][name]
    assert parts[-1]["text"] == "" and parts[-1]["finish_reason"] == "length"


def test_echo_scores_as_the_library_does(server: Live, llm) -> None:
    ids = [72, 69, 76, 76, 79]
    (choice,) = server.complete([ids], echo=True, logprobs=1, max_tokens=1, seed=1).json["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:-1] == list(llm.score(ids)[0].logprobs)
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 6
    for value, best in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert value in best.values() and max(best.values()) <= 0
    scored = server.complete([ids], echo=True, logprobs=1, max_tokens=0).json
    assert scored["choices"][0]["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][:-1]
    assert scored["usage"]["completion_tokens"] == 0


def test_prompts_times_n_are_in_order(server: Live) -> None:
    body = server.complete([[65, 66], [67]], n=2, max_tokens=3).json
    assert [one["index"] for one in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["completion_tokens"] == 12 and body["usage"]["prompt_tokens"] == 3


def test_a_stop_string_ends_and_never_leaks(server: Live) -> None:
    said = server.complete("hi", max_tokens=32).json["choices"][0]["text"]
    stop = said[len(said) // 2 :][:2]
    whole = server.complete("hi", max_tokens=32, stop=[stop]).json["choices"][0]
    assert whole["finish_reason"] == "stop" and stop not in whole["text"] and said.startswith(whole["text"])
    parts = server.complete("hi", max_tokens=32, stop=stop, stream=True).events[:-1]
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["text"]


def test_a_seed_repeats_and_none_does_not(server: Live) -> None:
    def said(**fields):
        return server.chat(temperature=1, max_tokens=24, **fields).json["choices"][0]["message"]["content"]

    assert said(seed=11) == said(seed=11) == said(seed=11, stop=None)
    assert len({said() for _ in range(3)}) > 1


def test_logit_bias_penalties_and_limits_are_obeyed(server: Live) -> None:
    reply = server.complete("hi", logit_bias={"65": 100}, max_tokens=4, return_token_ids=True).json
    assert reply["choices"][0]["token_ids"] == [65] * 4
    ended = server.complete("hi", logit_bias={"65": 100}, stop_token_ids=[65], ignore_eos=False).json
    assert ended["choices"][0]["finish_reason"] == "stop" and ended["usage"]["completion_tokens"] == 1


def test_what_was_computed_before_is_counted_as_cached(server: Live) -> None:
    ids = [60 + i % 20 for i in range(70)]
    first, again = (server.complete([ids], max_tokens=1).json["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["prompt_tokens_details"]["cached_tokens"] >= 64


def test_too_long_says_so_in_known_words(server: Live) -> None:
    reply = server.complete([[65] * 1020], max_tokens=10)
    assert reply.status == 400 and reply.code == "context_length_exceeded"
    message = reply.json["error"]["message"]
    assert message.startswith("This model's maximum context length is 1024 tokens. However, you requested 1030 tokens ")
    assert "(1020 in the prompt, 10 in the completion)." in message
    assert server.chat("x" * 3000).code == server.complete("x" * 3000).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"web_search_options": {}}, "unsupported_parameter", "web_search_options"),
        ({"audio": {}}, "unsupported_parameter", "audio"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "unknown_parameter", "messages[0].colour"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"store": True}, "unsupported_parameter", "store"),
        ({"model": 3}, "invalid_value", "model"),
        ({"n": 2**63}, "invalid_value", "n"),
        ({"n": True}, "invalid_value", "n"),
        ({"n": 1.0}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"seed": 2**70}, "invalid_value", "seed"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"logit_bias": {"400": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "invalid_value", "logit_bias"),
        ({"stop_token_ids": [320]}, "invalid_value", "stop_token_ids"),
        ({"chat_template_kwargs": {"messages": "x"}}, "invalid_value", "chat_template_kwargs"),
    ],
)
def test_what_is_wrong_is_named(server: Live, fields: dict, code: str, param: str) -> None:
    reply = server.chat(**fields)
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (400, code, param)
    assert reply.json["error"]["type"] == "invalid_request_error"


def test_an_unknown_field_names_the_nearest(server: Live) -> None:
    assert "Did you mean `temperature`?" in server.chat(temprature=1).json["error"]["message"]


def test_null_is_the_same_as_absent(server: Live) -> None:
    nulls = dict.fromkeys(("stop", "n", "tools", "logprobs", "top_p", "seed", "stream", "user", "response_format"))
    assert server.chat(**nulls).json["choices"][0]["message"] == server.chat().json["choices"][0]["message"]


def test_parts_and_developer_are_text_and_system(server: Live) -> None:
    def said(role, content):
        return server.chat(messages=[{"role": role, "content": content}]).json["choices"][0]["message"]

    assert said("user", [{"type": "text", "text": "hi"}]) == said("user", "hi")
    assert said("developer", "hi") == said("system", "hi")
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    assert server.chat(messages=[{"role": "user", "content": [part]}]).status == 400


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [[], [65]], [-1], [320], [2**40], [True], [1.5], ["a", 3], ["a", [3]], [[65], "a"], None]
)
def test_prompts_that_are_none(server: Live, prompt) -> None:
    reply = server.complete(prompt)
    assert reply.status == 400 and reply.json["error"]["param"].startswith("prompt")


def test_other_paths_and_methods(server: Live) -> None:
    assert server("GET", "/v1/models/").json["data"][0]["id"] == "tiny"
    assert server("GET", "/v1/models/tiny").json["max_model_len"] == 1024
    missing = server("GET", "/v1/models/a/b")
    assert missing.status == 404 and missing.code == "model_not_found"
    assert server.chat(model="other").code == "model_not_found"
    assert "/v1/chat/completions" in server("POST", "/chat/completions", {}).json["error"]["message"]
    assert "/v1/models" in server("GET", "/v1/v1/models").json["error"]["message"]
    wrong = server("DELETE", "/v1/models")
    assert wrong.status == 405 and wrong.headers["allow"] == "GET, HEAD" and wrong.code == "method_not_allowed"
    assert server("HEAD", "/health").body == b""
    options = server("OPTIONS", "/v1/completions")
    assert options.status == 204 and options.headers["allow"] == "POST"


def test_every_response_carries_its_id(server: Live) -> None:
    assert server("GET", "/health", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert len(server("GET", "/nothing").headers["x-request-id"]) == 24
    assert len(server("GET", "/health", headers={"x-request-id": "x" * 129}).headers["x-request-id"]) == 24


def test_the_account_in_the_response_sums_to_its_time(server: Live) -> None:
    account = server.chat(account=True, n=2, temperature=1).json["account"]
    assert len(account["choices"]) == 2
    for one in account["choices"]:
        assert sum(one["wall_ns"].values()) == one["e2e_ns"] and one["output_tokens"] == 8
    assert account["cost_ns"]["decode"] == sum(one["cost_ns"]["decode"] for one in account["choices"])
    *_, last, done = server.chat(account=True, stream=True).events
    assert done == "[DONE]" and last["account"]["choices"] and last["usage"]


def test_tokenizer_routes(server: Live) -> None:
    info = server("GET", "/tokenizer_info").json
    assert info["eos_token"] == "<|end|>"
    spelled = server("POST", "/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False}).json
    assert spelled["tokens"] == [257] and spelled["count"] == 1 and spelled["max_model_len"] == 1024
    plain = server("POST", "/tokenize", {"prompt": "<|end|>", "parse_special": False, "return_token_strs": True}).json
    assert len(plain["tokens"]) == 7 and "".join(plain["token_strs"]) == "<|end|>"
    assert server("POST", "/detokenize", {"tokens": spelled["tokens"]}).json == {"prompt": "<|end|>"}
    long = server("POST", "/tokenize", {"prompt": "a " * 4096})  # counted, though no engine would take it
    assert long.json["count"] == 8192 > long.json["max_model_len"]
    for body in ({"prompt": "a" * ((1 << 20) + 1)}, {"messages": [{"role": "user", "content": "a" * (1 << 20)}]}):
        assert server("POST", "/tokenize", body).json["error"]["code"] == "invalid_value"
    assert server("POST", "/tokenize", {}).status == 400


def test_log_probabilities_are_of_the_raw_logits(server: Live) -> None:
    plain = server.chat(logprobs=True, top_logprobs=5).json["choices"][0]["logprobs"]["content"]
    bent = server.chat(logprobs=True, top_logprobs=5, temperature=0.1, top_k=1).json["choices"][0]["logprobs"][
        "content"
    ]
    assert plain == bent and math.isclose(plain[0]["logprob"], max(t["logprob"] for t in plain[0]["top_logprobs"]))


def test_the_document_states_what_is_refused(server: Live) -> None:
    schemas = server("GET", "/openapi.json").json["components"]["schemas"]
    for name, field in (("ChatRequest", "max_completion_tokens"), ("CompletionRequest", "max_tokens"),
                        ("ResponsesRequest", "max_output_tokens")):  # fmt: skip
        assert schemas[name]["properties"][field]["anyOf"][0]["maximum"] == server.served.context - 1
    needs = [one.get("required") for one in schemas["ChatRequest"]["anyOf"]]
    assert needs == [None, ["tools"], None, ["functions"]] and server.chat(tool_choice="required").status == 400
    assert server.chat(tool_choice="auto").status == server.chat(function_call="none").status == 200
