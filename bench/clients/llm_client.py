"""llm's own library against a served model: a tool called, run and answered with. llm_client.py URL KEY MODEL.

LLM_USER_PATH holds an extra-openai-models.yaml that calls the model `ridgeline`.
"""

import sys

import llm


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


key = sys.argv[2]
for stream in (False, True):
    response = llm.get_model("ridgeline").prompt(
        "What is 2 + 3? Call the tool add.", tools=[add], stream=stream, key=key, max_tokens=60, temperature=0
    )
    (call,) = response.tool_calls()
    (result,) = response.execute_tool_calls()
    assert call.name == "add" and result.output == "5", (call, result)
print("calls a tool whole and streamed")
