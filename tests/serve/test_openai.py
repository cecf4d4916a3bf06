"""openai-python against a real server, with strict validation: what it cannot parse, it raises."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest

from ridgeline.llm import LLM
from ridgeline.serve.served import Limits

from .live import KEY, Live, live

openai = pytest.importorskip("openai", reason="needs openai-python: pip install 'ridgeline[dev]'")
pydantic = pytest.importorskip("pydantic", reason="comes with openai-python")
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(keyed: Live) -> Any:
    with openai.OpenAI(
        base_url=f"{keyed.url}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def chat(client: Any, **fields: Any) -> Any:
    whole = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    return client.chat.completions.create(**whole | fields)


def test_models(client: Any) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "ridgeline"


def test_chat(client: Any) -> None:
    answer = chat(client, n=2, seed=1, logprobs=True, top_logprobs=2, stop=["\n"], presence_penalty=0.5)
    assert len(answer.choices) == 2 and answer.usage.total_tokens > 8
    content = answer.choices[0].logprobs.content
    assert len(content) and all(len(one.top_logprobs) == 2 for one in content)
    again = chat(client, messages=[*MESSAGES, answer.choices[0].message, {"role": "user", "content": "more"}])
    assert again.choices[0].message.role == "assistant"


def test_chat_streams(client: Any) -> None:
    whole = chat(client, temperature=0).choices[0].message.content
    chunks = list(chat(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == whole
    assert chunks[-1].usage.completion_tokens == 8


def test_the_stream_helper(client: Any) -> None:
    fields = {"n": 3, "logprobs": True, "logit_bias": {"65": 100}, "extra_body": {"stop_token_ids": [65]}}
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, **fields) as stream:
        final = [event for event in stream] and stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1, 2]


def test_completions(client: Any) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["a", "b"], max_tokens=4, logprobs=2, extra_body={"ignore_eos": True}
    )
    assert [one.index for one in answer.choices] == [0, 1] and len(answer.choices[0].logprobs.tokens) == 4
    lenient = client.with_options()  # its types do not allow the null that OpenAI's own chunks have
    lenient._strict_response_validation = False
    parts = lenient.completions.create(model="tiny", prompt="a", max_tokens=4, stream=True)
    assert {part.object for part in parts} == {"text_completion"}


def test_headers_are_there_to_read(client: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, max_tokens=1, extra_headers={"x-request-id": "abc"}
    )
    assert raw.headers["x-request-id"] == "abc" and raw.parse().object == "chat.completion"


def test_fields_of_ours_pass_through(client: Any) -> None:
    answer = chat(client, extra_body={"top_k": 1, "account": True, "return_token_ids": True, "ignore_eos": True})
    assert answer.account["choices"][0]["output_tokens"] == 8


def test_errors_have_their_classes(client: Any, keyed: Live) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(client, extra_body={"temprature": 1})
    assert wrong.value.code == "unknown_parameter" and wrong.value.param == "temprature"
    with pytest.raises(openai.NotFoundError):
        chat(client, model="other")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024"):
        chat(client, max_tokens=5000)
    with (
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_a_full_queue_is_a_rate_limit(llm: LLM) -> None:
    with (
        live(llm, limits=Limits(queue_requests=1)) as small,
        openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.RateLimitError) as full:
            chat(client, n=2)
        assert int(full.value.response.headers["retry-after"]) >= 1


def test_a_cancelled_task_ends_the_request(keyed: Live) -> None:
    async def leave() -> int:
        async with openai.AsyncOpenAI(base_url=f"{keyed.url}/v1", api_key=KEY, max_retries=0) as client:
            task = asyncio.create_task(
                client.completions.create(
                    model="tiny", prompt="a", max_tokens=900, n=16, extra_body={"ignore_eos": True}
                )
            )
            while not keyed.served.jobs:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(1000):
                if not keyed.served.jobs:
                    break
                await asyncio.sleep(0.02)
            return len(keyed.served.jobs)

    assert asyncio.run(leave()) == 0


class Fig(pydantic.BaseModel):
    colour: Literal["green", "brown"]
    ripe: bool


WEATHER = {"name": "weather", "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}, "required": ["city"],
    "additionalProperties": False}}  # fmt: skip


def test_parse_with_a_pydantic_model(client: Any) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Fig, max_tokens=300, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Fig)
    with client.chat.completions.stream(
        model="tiny", messages=MESSAGES, response_format=Fig, max_tokens=300, temperature=0
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


def test_tools(client: Any) -> None:
    fields = {"model": "tiny", "messages": MESSAGES, "tools": [{"type": "function", "function": WEATHER}],
              "tool_choice": "required", "max_tokens": 300, "parallel_tool_calls": False}  # fmt: skip
    answer = client.chat.completions.create(**fields)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls" and json.loads(call.function.arguments)["city"]
    with client.chat.completions.stream(**fields) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert call.function.parsed_arguments["city"] in ("Rome", "Oslo")
    followed = [*MESSAGES, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert chat(client, messages=followed).choices[0].message.content


def test_delete_cancels_a_request_of_the_same_key(client: Any, keyed: Live) -> None:
    stream = chat(client, max_tokens=900, stream=True)
    name = next(iter(stream)).id
    stranger = keyed("DELETE", f"/v1/requests/{name}", headers={"Authorization": "Bearer sk-other"})
    assert (stranger.status, stranger.code) == (404, "request_not_found")
    assert keyed("DELETE", f"/v1/requests/{name}").json == {
        "id": name,
        "object": "request.cancelled",
        "cancelled": True,
    }
    with pytest.raises(openai.APIError, match="cancelled by its caller"):
        list(stream)
    assert keyed("DELETE", f"/v1/requests/{name}").status == 404


def test_responses(client: Any) -> None:
    fields = {"model": "tiny", "input": "hi", "max_output_tokens": 8, "temperature": 0}
    answer = client.responses.create(**fields, instructions="be kind", metadata={"a": "b"})
    assert (answer.object, answer.store, answer.metadata) == ("response", False, {"a": "b"})
    assert answer.usage.output_tokens == 8 or answer.status == "completed"
    again = [{"role": "user", "content": "hi"}, *[one.model_dump() for one in answer.output],
             {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "more"}]}]  # fmt: skip
    assert client.responses.create(**fields | {"input": again}).output_text
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**fields, previous_response_id="resp_1")
    assert refused.value.code == "unsupported_parameter"


def test_responses_stream(client: Any) -> None:
    fields = {"model": "tiny", "input": "hi", "max_output_tokens": 8, "temperature": 0, "top_logprobs": 2}
    whole = client.responses.create(**fields)
    events = list(client.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    assert events[-1].type == f"response.{whole.status}"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage == whole.usage
    assert len(whole.output[0].content[0].logprobs) == whole.usage.output_tokens


def test_responses_call_tools_and_parse(client: Any) -> None:
    tool = {"type": "function", **WEATHER}
    fields = {"model": "tiny", "input": "hi", "tools": [tool], "tool_choice": "required", "max_output_tokens": 300,
              "parallel_tool_calls": False}  # fmt: skip
    answer = client.responses.create(**fields)
    (call,) = answer.output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    back = [{"role": "user", "content": "hi"}, call.model_dump(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]  # fmt: skip
    assert client.responses.create(model="tiny", input=back, max_output_tokens=4).status in ("completed", "incomplete")
    with client.responses.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output[0].parsed_arguments["city"] in ("Rome", "Oslo")
    assert "response.function_call_arguments.done" in kinds
    parsed = client.responses.parse(model="tiny", input="hi", text_format=Fig, max_output_tokens=300, temperature=0)
    assert isinstance(parsed.output_parsed, Fig)


def test_embeddings(client: Any) -> None:
    lenient = client.with_options()  # asks for base64, which its own types do not allow
    lenient._strict_response_validation = False
    both = lenient.embeddings.create(model="tiny", input=["one", "two words"])
    assert [one.index for one in both.data] == [0, 1] and both.usage.prompt_tokens == both.usage.total_tokens == 12
    assert all(abs(sum(value**2 for value in one.embedding) - 1) < 1e-5 for one in both.data)
    (alone,) = client.embeddings.create(model="tiny", input="two words", encoding_format="float").data
    assert alone.embedding == pytest.approx(both.data[1].embedding, abs=1e-7)
    (last,) = client.embeddings.create(
        model="tiny",
        input="two words",
        encoding_format="float",
        extra_body={"pooling": "last"},
    ).data
    assert last.embedding != alone.embedding
    with pytest.raises(openai.BadRequestError, match="leave it out"):
        client.embeddings.create(model="tiny", input="a", dimensions=3)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
