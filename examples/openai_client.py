"""Talk to a running `lowbit serve` with the package `openai`: a stream, JSON by a schema, a call of a tool."""

import json
import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "Tell me a story about a cat."}]

for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=40, seed=1, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

schema = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 2, "maximum": 4}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}
answer = client.chat.completions.create(
    model=model,
    messages=messages,
    seed=1,
    response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}},
)
print(json.loads(answer.choices[0].message.content))

tool = {"type": "function", "function": {"name": "feed", "description": "Feed an animal.", "parameters": schema}}
answer = client.chat.completions.create(model=model, messages=messages, seed=1, tools=[tool], tool_choice="required")
for call in answer.choices[0].message.tool_calls:
    print("the model calls", call.function.name, json.loads(call.function.arguments))
