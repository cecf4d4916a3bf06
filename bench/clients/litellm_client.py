"""litellm against a served model: whole, streamed, over-long; own environment. litellm_client.py URL KEY MODEL."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

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
    try:
        litellm.completion(messages=[{"role": "user", "content": "long " * 200_000}], **common)
        raise SystemExit("an over-long prompt was answered")
    except litellm.ContextWindowExceededError:
        pass
print("litellm: completes, streams, ContextWindowExceededError")
