"""A session sends what was said so far, and remembers exactly what was shown."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import lowbit
from lowbit.chat import ChatSession
from lowbit.chat.session import answer
from lowbit.errors import ContextLengthError, UnsupportedModelError
from lowbit.formats.gguf_writer import GGUFWriter
from lowbit.tokenizers import from_gguf_metadata

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "<|im_start|>", "<|im_end|>"]
METADATA = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [t.encode() for t in TOKENS],
    "tokenizer.ggml.scores": np.zeros(len(TOKENS), np.float32),
    "tokenizer.ggml.token_type": np.int32([2, 3, 3] + [6] * 256 + [1, 3, 3]),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_space_prefix": False,
}


class Parrot:
    """Answers with fixed pieces, and keeps the prompts it was given."""

    def __init__(self, template=CHATML):
        self.tokenizer = from_gguf_metadata(METADATA, "test")
        self.template, self.prompts, self.sampling = template, [], None

    def info(self):
        return {"architecture": "llama", "chat_template": self.template}

    def stream(self, prompt, **sampling):
        self.prompts.append(self.tokenizer.decode(prompt))
        self.sampling = sampling
        yield from ("Good", " day", "!")
        return SimpleNamespace(text="Good day!", tokens=[1, 2, 3])

    def generate(self, prompt, **sampling):
        self.sampling = sampling
        return SimpleNamespace(text=self.tokenizer.decode(prompt))


def test_each_message_is_sent_with_all_that_was_said():
    model = Parrot()
    chat = ChatSession(model, system="Be kind.")
    assert chat.send("Hi", temperature=0.0).text == "Good day!"
    assert model.sampling == {"temperature": 0.0, "stop": ()}
    assert list(chat.stream("Bye")) == ["Good", " day", "!"]
    assert model.prompts[1] == ("system\nBe kind.\nuser\nHi\nassistant\nGood day!\nuser\nBye\nassistant\n")
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    chat.reset()
    assert chat.messages == []


def test_an_answer_cut_short_is_remembered_as_far_as_it_was_shown():
    chat = ChatSession(Parrot())
    stream = chat.stream("Hi")
    assert next(stream) == "Good"
    stream.close()
    assert chat.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good"}]


def test_a_message_that_fails_was_never_said():
    class Full(Parrot):
        def stream(self, prompt, **sampling):
            raise ContextLengthError("too long")

    chat = ChatSession(Full())
    with pytest.raises(ContextLengthError):
        chat.send("Hi")
    assert chat.messages == []


def test_a_model_without_template_is_refused_unless_one_is_named():
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        ChatSession(Parrot(None))
    with pytest.raises(UnsupportedModelError, match="'nonsense'"):
        ChatSession(Parrot(), template="nonsense")
    model = Parrot(None)
    ChatSession(model, template="plain").send("Hi", stop="x")
    assert model.prompts == ["User: Hi\nAssistant:"]
    assert model.sampling["stop"] == ("x", "\nUser:", "\nSystem:")


def test_answer_takes_a_conversation_as_it_is():
    assert answer(Parrot(), [{"role": "user", "content": "Hi"}], max_tokens=3).text == "user\nHi\nassistant\n"


def test_a_loaded_model_chats_with_the_template_of_its_file(tmp_path):
    rng = np.random.default_rng(0)
    path, hidden = tmp_path / "chat.gguf", 64
    with GGUFWriter(path, "llama") as out:
        for key, value in {
            "context_length": 256, "embedding_length": hidden, "feed_forward_length": hidden, "block_count": 1,
            "attention.head_count": 2, "vocab_size": len(TOKENS),
        }.items():  # fmt: skip
            out.add_metadata("llama." + key, value, "u32")
        out.add_metadata("llama.attention.layer_norm_rms_epsilon", 1e-5)
        out.add_metadata("tokenizer.chat_template", CHATML)
        for key, value in METADATA.items():
            out.add_metadata(key, value)
        out.add_tensor("token_embd.weight", "F32", rng.standard_normal((len(TOKENS), hidden)))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            out.add_tensor(f"blk.0.{name}.weight", "F32", rng.standard_normal((hidden, hidden)) / 8)
        for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
            out.add_tensor(name + ".weight", "F32", np.ones(hidden, np.float32))
    model = lowbit.load(path, threads=1)
    chat = ChatSession(model)
    assert chat.template.name == "chatml"
    first = chat.send("Hi", temperature=0.0, max_tokens=8)
    second = chat.send("And?", temperature=0.0, max_tokens=8)
    assert second.prompt_tokens > first.prompt_tokens
    # Only what is new is computed.
    assert second.timings.reused_tokens >= first.prompt_tokens
