"""Chat without a terminal: one question, commands, JSON, and conversations that outgrow the context."""

from __future__ import annotations

import json

import lowbit as package


def test_one_question_is_answered_as_from_python_and_that_is_all(lowbit):
    done = lowbit("chat", "Tell me a story", "-n", 20, "-s", 5, stdin="never read\n")
    want = package.load().chat([{"role": "user", "content": "Tell me a story"}], max_tokens=20, seed=5)
    assert (done.returncode, done.stdout) == (0, want.text + "\n")
    assert done.stderr == "(The answer was cut at 20 tokens; -n takes more.)\n"


def test_one_question_as_json_has_the_keys_of_generate(lowbit):
    done = lowbit("chat", "--json", "-n", 5, "-s", 5, "-p", "Tell me a story")
    answer, text = json.loads(done.stdout), json.loads(lowbit("generate", "--json", "-n", 5, "Once").stdout)
    assert answer.keys() == text.keys()
    assert (answer["seed"], answer["finish_reason"], len(answer["tokens"])) == (5, "length", 5)


def test_each_answer_of_a_conversation_is_one_line_of_json(lowbit):
    done = lowbit("chat", "--json", "-n", 5, "-s", 5, stdin="Hi\n/nothing\nBye\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["seed"] for answer in answers] == [5, 6]


def test_a_question_that_does_not_fit_is_an_error(lowbit):
    done = lowbit("chat", "word " * 1000)
    assert (done.returncode, done.stdout) == (2, "")
    assert "do not fit into a context of 512" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_conversation_outgrows_the_context_and_goes_on(lowbit, tmp_path):
    questions = [f"Tell me a story about a dog and number {i}." for i in range(8)]
    lines = [*questions, "/tokens", f"/save {tmp_path}/all.json"]
    done = lowbit("chat", "--system", "Be kind.", "-n", 100, "-s", 1, stdin="\n".join(lines))
    assert (done.returncode, done.stdout.count("\n") >= len(questions)) == (0, True)
    assert done.stderr.count("the oldest messages are left out") == 1
    assert "lowbit:" not in done.stderr
    saved = json.loads((tmp_path / "all.json").read_text())
    assert [m["content"] for m in saved if m["role"] == "user"] == questions, "nothing is forgotten by the file"
    assert saved[0] == {"role": "system", "content": "Be kind."}


def test_commands_load_regenerate_and_end(lowbit, tmp_path):
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]))
    (tmp_path / "no.json").write_text('{"role": "user"}')
    lines = [
        f"/load {talk}", "/regenerate", f"/save {tmp_path}/again.json", f"/load {tmp_path}/no.json", "/load",
        "/load gone", "/reset", "/regenerate", "/exit", "never said",
    ]  # fmt: skip
    done = lowbit("chat", "-n", 6, "-s", 3, stdin="\n".join(lines))
    for told in ("Loaded 2 messages", "Saved 2 messages", "not a conversation", "needs the name", "gone: No such file",
                 "nothing to answer"):  # fmt: skip
        assert told in done.stderr
    again = json.loads((tmp_path / "again.json").read_text())
    assert again[0]["content"] == "Hi"
    assert again[1]["content"] == done.stdout.strip("\n") != "Hello."


def test_a_message_may_have_several_lines_in_a_pipe_too(lowbit, tmp_path):
    done = lowbit("chat", "-n", 1, stdin=f'"""\none\n/two\n"""\n/save {tmp_path}/talk.json\n"""open to the end')
    assert done.returncode == 0
    assert json.loads((tmp_path / "talk.json").read_text())[0]["content"] == "one\n/two"
