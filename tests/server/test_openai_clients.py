"""The openai package against the server: what it asks for is what it gets, and it is what `Model` gives."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

openai = pytest.importorskip("openai", reason="this test needs the extra 'test-server'")


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_chat_is_what_the_model_answers(client, model, story):
    answer = client.chat.completions.create(model="lowbit-tiny", messages=story, seed=3, max_tokens=30)
    want = model.chat(story, seed=3, max_tokens=30)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (want.text, "assistant", "length")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (want.prompt_tokens, 30)
    assert usage.total_tokens == want.prompt_tokens + 30
    assert answer.model == "lowbit-tiny"


def test_streamed_chat_is_the_same_in_pieces(client, story):
    options = {"model": "lowbit-tiny", "messages": story, "seed": 3, "max_tokens": 30}
    answer = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content is None
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == answer.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 30)
    assert len({c.id for c in chunks}) == 1


def test_eight_clients_at_once_get_what_each_gets_alone(server, model):
    prompts = [f"Once upon a time there was a {name}" for name in ("cat", "dog", "bird", "fish")] * 2

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(seed, prompt):
                options = {"model": "lowbit-tiny", "prompt": prompt, "seed": seed, "max_tokens": 60}
                if seed % 2:
                    return (await client.completions.create(**options)).choices[0].text
                stream = await client.completions.create(**options, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(seed, prompt) for seed, prompt in enumerate(prompts)))

    want = [model.generate(prompt, seed=seed, max_tokens=60).text for seed, prompt in enumerate(prompts)]
    assert asyncio.run(ask()) == want


def test_several_prompts_and_several_choices(client, model):
    answer = client.completions.create(
        model="lowbit-tiny", prompt=["Once upon a time", "One day"], n=3, seed=5, max_tokens=12
    )
    want = [model.generate(p, seed=5 + i, max_tokens=12) for p in ("Once upon a time", "One day") for i in range(3)]
    assert [c.text for c in answer.choices] == [w.text for w in want]
    assert [c.index for c in answer.choices] == list(range(6))
    assert answer.usage.prompt_tokens == want[0].prompt_tokens + want[3].prompt_tokens
    streamed = [""] * 6
    for chunk in client.completions.create(
        model="lowbit-tiny", prompt=["Once upon a time", "One day"], n=3, seed=5, max_tokens=12, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [w.text for w in want]


def test_token_ids_are_prompts_too(client, model):
    ids = model.tokenizer.encode("Once upon a time")
    for prompt, n in ((ids, 1), ([ids, ids], 2)):
        answer = client.completions.create(model="lowbit-tiny", prompt=prompt, seed=5, max_tokens=12)
        assert [c.text for c in answer.choices] == [model.generate(ids, seed=5, max_tokens=12).text] * n


def test_chat_with_several_choices_streams_each_to_its_end(client, story):
    options = {"model": "lowbit-tiny", "messages": story, "seed": 3, "max_tokens": 10, "n": 2}
    whole = client.chat.completions.create(**options)
    texts, reasons = ["", ""], [None, None]
    for chunk in client.chat.completions.create(**options, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [c.message.content for c in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == ["length", "length"]


def test_logprobs_are_those_of_the_model_and_their_tokens_are_the_answer(client, model, story):
    options = {"model": "lowbit-tiny", "messages": story, "temperature": 0, "max_tokens": 8, "logprobs": True}
    answer = client.chat.completions.create(**options, top_logprobs=3).choices[0]
    want = model.chat(story, temperature=0, max_tokens=8, logprobs=3)
    assert [t.logprob for t in answer.logprobs.content] == [one.logprob for one in want.logprobs]
    assert [t.top_logprobs[0].logprob for t in answer.logprobs.content] == [one.top[0][2] for one in want.logprobs]
    assert "".join(t.token for t in answer.logprobs.content) == answer.message.content
    assert b"".join(bytes(t.bytes) for t in answer.logprobs.content).decode() == answer.message.content
    tokens = []
    for chunk in client.chat.completions.create(**options, top_logprobs=3, stream=True):
        if chunk.choices[0].logprobs is not None:
            tokens += chunk.choices[0].logprobs.content
    assert [t.model_dump() for t in tokens] == [t.model_dump() for t in answer.logprobs.content]


def test_settings_reach_the_sampler(client, model):
    prompt = "Once upon a time"
    alone = model.generate(prompt, seed=8, max_tokens=40)
    unwanted = alone.tokens[5]
    cases = [
        {"temperature": 0.3}, {"top_p": 0.2}, {"presence_penalty": 1.5}, {"frequency_penalty": 1.5},
        {"stop": ["girl", "boy"]}, {"logit_bias": {str(unwanted): -100}},
        {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 0.9}}, {"extra_body": {"repeat_penalty": 1.9}},
    ]  # fmt: skip
    for case in cases:
        found = client.completions.create(model="lowbit-tiny", prompt=prompt, seed=8, max_tokens=40, **case)
        options = {**case, **case.get("extra_body", {})}
        options.pop("extra_body", None)
        if "logit_bias" in options:
            options["logit_bias"] = {unwanted: -100}
        want = model.generate(prompt, seed=8, max_tokens=40, **options)
        assert (found.choices[0].text, found.choices[0].finish_reason) == (want.text, want.finish_reason)
        assert want.text != alone.text, case


def test_embeddings_in_base64_and_in_floats_are_those_of_the_model(client, model, server):
    texts = ["Once upon a time", "One day, a dog"]
    vectors = np.array([e.embedding for e in client.embeddings.create(model="lowbit-tiny", input=texts).data])
    floats = server.post("/v1/embeddings", {"input": texts, "encoding_format": "float"}).json()["data"]
    assert (vectors == np.array([e["embedding"] for e in floats])).all()
    want = model.embed(texts)
    norm = np.linalg.norm(want.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, want / norm, rtol=1e-6)
    one = client.embeddings.create(model="lowbit-tiny", input=model.tokenizer.encode(texts[0]))
    assert one.data[0].embedding == pytest.approx(vectors[0].tolist())
    assert one.usage.prompt_tokens == len(model.tokenizer.encode(texts[0]))
    many = client.embeddings.create(model="lowbit-tiny", input=["cat"] * 40)
    assert len({tuple(e.embedding) for e in many.data}) == 1


def test_responses(client, model, story):
    want = model.chat(story, seed=3, max_tokens=20).text
    options = {"model": "lowbit-tiny", "input": story[0]["content"], "max_output_tokens": 20, "extra_body": {"seed": 3}}
    answer = client.responses.create(**options)
    assert (answer.output_text, answer.status) == (want, "incomplete")
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(**options, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events if e.type != "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == want
    assert events[-1].response.output_text == want


def test_instructions_are_the_first_message(client, model):
    answer = client.responses.create(
        model="lowbit-tiny", input=[{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        instructions="Be kind.", max_output_tokens=10, temperature=0,
    )  # fmt: skip
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert answer.output_text == model.chat(messages, temperature=0, max_tokens=10).text


def test_parts_of_a_content_are_paragraphs_and_a_last_answer_is_gone_on_with(client, server):
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]
    messages = [{"role": "developer", "content": "A"}, {"role": "user", "content": parts},
                {"role": "assistant", "content": "Once upon"}]  # fmt: skip
    answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, "temperature": 0,
                                                  "verbose": True}).json()  # fmt: skip
    assert answer["__verbose"]["prompt"] == (
        "<s><|im_start|> system\nA<|im_end|> \n<|im_start|> user\nHi\n\nyou<|im_end|> \n"
        "<|im_start|> assistant\nOnce upon"
    ), "with the spaces that this tokenizer puts before texts"
    assert answer["choices"][0]["message"]["content"][0] == " ", "what goes on keeps its space"


def test_models(client):
    assert [m.id for m in client.models.list()] == ["lowbit-tiny"]
    assert client.models.retrieve("lowbit-tiny").id == "lowbit-tiny"


def test_errors_are_the_classes_of_the_client(client, story):
    def ask(**changes):
        return client.chat.completions.create(**{"model": "lowbit-tiny", "messages": story, "max_tokens": 3, **changes})

    with pytest.raises(openai.BadRequestError) as caught:
        ask(temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        ask(model="gpt-9")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(messages=[{"role": "user", "content": "cat " * 2000}])
    assert caught.value.code == "context_length_exceeded"
    assert json.loads(caught.value.response.text)["error"]["n_ctx"] == 512
    with pytest.raises(openai.BadRequestError):
        list(ask(messages=[{"role": "user", "content": "cat " * 2000}], stream=True))


def test_langchain(server, model, story):
    langchain = pytest.importorskip("langchain_openai", reason="this test needs the extra 'test-server'")
    options = {"base_url": f"{server.url}/v1", "api_key": "none", "model": "lowbit-tiny"}
    chat = langchain.ChatOpenAI(**options, temperature=0, max_tokens=16)
    want = model.chat(story, temperature=0, max_tokens=16)
    answer = chat.invoke(story[0]["content"])
    assert (answer.content, answer.usage_metadata["output_tokens"]) == (want.text, 16)
    assert "".join(chunk.text for chunk in chat.stream(story[0]["content"])) == want.text
    embeddings = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    assert len(embeddings.embed_query("cat")) == model.config.hidden_size
