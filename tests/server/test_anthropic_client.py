"""The anthropic package against the server."""

from __future__ import annotations

import pytest

anthropic = pytest.importorskip("anthropic", reason="this test needs the extra 'test-server'")

GREEDY = {"temperature": 0}
"""Newer clients have no argument for it."""


@pytest.fixture(scope="session")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_messages_are_what_the_model_answers(client, model, story):
    answer = client.messages.create(model="lowbit-tiny", messages=story, max_tokens=20, extra_body=GREEDY)
    want = model.chat(story, temperature=0, max_tokens=20)
    assert [(block.type, block.text) for block in answer.content] == [("text", want.text)]
    assert (answer.stop_reason, answer.stop_sequence, answer.role) == ("max_tokens", None, "assistant")
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == want.prompt_tokens
    assert usage.output_tokens == 20


def test_streamed_messages_are_the_same_in_pieces(client, story):
    options = {"model": "lowbit-tiny", "messages": story, "max_tokens": 20, "extra_body": GREEDY}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == whole.content[0].text == last.content[0].text
    assert (last.stop_reason, last.usage.output_tokens) == ("max_tokens", 20)


def test_events_come_in_the_order_of_the_api(server, story):
    events = server.events("/v1/messages", {"messages": story, "max_tokens": 8, "temperature": 0})
    assert all(name == data["type"] for name, data in events)
    kinds = [name for name, _ in events if name not in ("content_block_delta", "ping")]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    assert events[0][1]["message"]["usage"]["input_tokens"] > 0


def test_system_blocks_and_turns_of_one_side(client, model, server):
    body = {
        "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": [{"type": "text", "text": "you"}]}],
    }
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi\n\nyou"}]
    want = model.chat(messages, max_tokens=8, temperature=0)
    assert (
        client.messages.create(model="lowbit-tiny", max_tokens=8, extra_body=GREEDY, **body).content[0].text
        == want.text
    )
    assert client.messages.count_tokens(model="lowbit-tiny", **body).input_tokens == want.prompt_tokens


def test_the_stop_sequence_that_was_met_is_told(client, model):
    messages = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "Once upon a time, there"}]
    plain = (
        client.messages.create(model="lowbit-tiny", messages=messages, max_tokens=12, extra_body=GREEDY).content[0].text
    )
    word = plain.split()[2]
    answer = client.messages.create(
        model="lowbit-tiny", messages=messages, max_tokens=12, extra_body=GREEDY, stop_sequences=["zebra", word]
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word)
    assert answer.content[0].text == plain[: plain.index(word)]


def test_errors_are_the_classes_of_the_client(client, story):
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="lowbit-tiny", messages=story, max_tokens=0)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude-9", messages=story, max_tokens=3)
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(
            model="lowbit-tiny", max_tokens=3, messages=[{"role": "user", "content": [{"type": "image"}]}]
        )
