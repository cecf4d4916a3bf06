"""litellm against a served model: whole, streamed, a tool called, over-long. litellm_client.py URL KEY MODEL."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

NUMBER = {"type": "integer"}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add two numbers.", "parameters": {
    "type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}}}  # fmt: skip

url, key, model = sys.argv[1:4]
messages = [{"role": "user", "content": "Say hi."}]
for provider in ("openai", "hosted_vllm"):
    common = {"model": f"{provider}/{model}", "api_base": f"{url}/v1", "api_key": key, "max_tokens": 12}
    whole = litellm.completion(messages=messages, **common)
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 0, whole
    for options in ({}, {"stream_options": {"include_usage": True}}):
        parts = list(litellm.completion(messages=messages, stream=True, **options, **common))
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text, parts
    asked = {
        "messages": [{"role": "user", "content": "What is 2 + 3?"}],
        "tools": [TOOL],
        **common,
        "max_tokens": 80,
        "temperature": 0,
    }
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        call = litellm.completion(tool_choice=choice, **asked).choices[0].message.tool_calls[0]
        assert call.function.name == "add" and set(json.loads(call.function.arguments)) == {"a", "b"}, call
    merged = litellm.stream_chunk_builder(list(litellm.completion(tool_choice="required", stream=True, **asked)))
    call = merged.choices[0].message.tool_calls[0]
    assert call.function.name == "add" and set(json.loads(call.function.arguments)) == {"a", "b"}, merged
    try:
        litellm.completion(messages=[{"role": "user", "content": "long " * 200_000}], **common)
        raise SystemExit("an over-long prompt was answered")
    except litellm.ContextWindowExceededError:
        pass
print("litellm: completes, streams, calls a tool whole and streamed, ContextWindowExceededError")
