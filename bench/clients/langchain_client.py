"""langchain-openai against a served model: whole, streamed with usage, async broken off, a tool called."""

import asyncio
import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, key, model = sys.argv[1:4]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, stream_usage=True, max_tokens=24)
assert chat.invoke("Say hi.").content
merged = None
for chunk in chat.stream("Say hi."):
    merged = chunk if merged is None else merged + chunk
assert merged.content and merged.usage_metadata["output_tokens"] > 0, merged


async def broken_off() -> None:
    async for _ in chat.astream("Tell a long story."):
        break


asyncio.run(broken_off())


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


asking = ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=model, max_tokens=80).bind_tools([add], tool_choice="add")
(call,) = asking.invoke("What is 2 + 3?").tool_calls
assert call["name"] == "add" and isinstance(add.invoke(call["args"]), int), call
merged = None
for chunk in asking.stream("What is 2 + 3?"):
    merged = chunk if merged is None else merged + chunk
(call,) = merged.tool_calls
assert call["name"] == "add" and isinstance(add.invoke(call["args"]), int), merged
print("langchain-openai: completes, streams with usage, breaks off, calls a tool whole and streamed")
