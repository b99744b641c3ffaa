"""What a batch leaves does not depend on what stopped it, nor on the order in which its lines are answered."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batches import answers_of, chat, completion, embedding, write_lines

SAID = "the same command goes on from there"


def start(folder, *arguments):
    """Start a batch; return it when the first answers are in the file."""
    before = folder.output.read_bytes().count(b"\n") if folder.output.exists() else 0
    process = subprocess.Popen(folder.command(*arguments), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (
        folder.output.exists() and folder.output.read_bytes().count(b"\n") > max(before, 1)
    ):
        time.sleep(0.005)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_again_and_again_it_leaves_what_it_leaves_in_one_go(folder, whole):
    shutil.copy(whole.input, folder.input)
    rng, kills, process = random.Random(3), 0, None
    while kills < 3:
        process = start(folder, "--order", "random")
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        kills += 1
        with open(folder.output, "ab") as file:  # as if it had been killed in the middle of a line
            file.write(b'{"id":"batch_req_00112233')
    status, said = folder.run()
    assert status == 3, said
    assert answers_of(folder.output) == answers_of(whole.output)
    assert answers_of(folder.failed) == answers_of(whole.failed)
    again = folder.run()
    assert again[0] == 3, "what failed is not tried again"
    assert answers_of(folder.output) == answers_of(whole.output)


def test_answers_do_not_depend_on_order_width_or_threads(folder, whole):
    shutil.copy(whole.input, folder.input)
    assert folder.run("--order", "random", "--parallel", 3, "-q")[0] == 3
    assert answers_of(folder.output) == answers_of(whole.output)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_answered_and_says_how_to_go_on(folder, number):
    write_lines(folder.input, 1000, 40, 2, wrong=False)
    process = start(folder)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    n = len(answers_of(folder.output))
    assert said == f"lowbit: stopped; {n:,} of 1,000 lines are done; {SAID}\n"
    assert folder.output.read_bytes().endswith(b"}\n")
    assert 0 < n < 1000


def test_a_line_that_was_added_is_answered_and_nothing_else(folder):
    folder.write(completion("a"), completion("b"))
    assert folder.run()[0] == 0
    before = folder.output.read_bytes()
    folder.write(completion("c"), completion("a"), completion("b"))
    status, said = folder.run()
    assert status == 0
    assert "2 of 3 lines are done already" in said
    assert folder.output.read_bytes().startswith(before)
    assert set(folder.answers()) == {"a", "b", "c"}


def test_a_line_that_was_changed_is_refused(folder):
    folder.write(completion("a"), completion("b"))
    assert folder.run()[0] == 0
    before = folder.output.read_bytes()
    folder.write(completion("a"), completion("b", "Other"))
    status, said = folder.run()
    assert status == 2
    assert "1 answers, the first in line " in said
    assert folder.output.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "reason"),
    [(("--seed", 2), "settings seed was 0, and is 2"), (("--temperature", 0.5), "settings sampling temperature was"),
     (("--context", 256), "settings context was 512, and is 256"),
     (("--kv-type", "f16"), 'settings kv_type was "f32", and is "f16"')],
)  # fmt: skip
def test_answers_of_another_run_are_not_mixed_in(folder, more, reason):
    folder.write(completion("a"))
    assert folder.run()[0] == 0
    before = folder.output.read_bytes()
    folder.write(completion("a"), completion("b"))
    status, said = folder.run(*more)
    assert status == 2
    assert reason in said
    assert said.count("\n") == 1
    assert folder.output.read_bytes() == before


def test_another_model_is_told_from_a_copy(folder, tmp_path):
    from lowbit.assets import EMBEDDED_MODEL

    folder.write(completion("a"))
    assert folder.run()[0] == 0
    data = bytearray(Path(EMBEDDED_MODEL).read_bytes())
    (tmp_path / "copy.gguf").write_bytes(data)
    assert folder.run("-m", tmp_path / "copy.gguf")[0] == 0
    data[-100] ^= 1
    (tmp_path / "other.gguf").write_bytes(data)
    status, said = folder.run("-m", tmp_path / "other.gguf")
    assert status == 2
    assert "model digest was" in said


@pytest.mark.parametrize("content", [b"hello", b"hello\n", b'{"custom_id": "a"}\n', b"{}\n", b"[]\n", b"1\n"])
def test_a_file_of_something_else_is_left_alone(folder, content):
    folder.write(completion("a"))
    folder.output.write_bytes(content)
    status, said = folder.run()
    assert status == 2
    assert "is no output of lowbit batch" in said
    assert folder.output.read_bytes() == content


def test_two_at_a_time_do_not_write_to_one_file(folder):
    write_lines(folder.input, 1000, 40, 2, wrong=False)
    process = start(folder)
    try:
        status, said = folder.run()
        assert status == 2
        assert "another process writes to it" in said
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of file sizes on Windows")
def test_a_full_disk_loses_no_answer(folder, whole):
    shutil.copy(whole.input, folder.input)

    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        status, said = folder.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert "File too large; " in said
    assert SAID in said
    assert folder.output.stat().st_size <= 200_000
    assert folder.output.read_bytes().endswith(b"\n"), "what was written in part is cut off"
    assert folder.run()[0] == 3
    assert answers_of(folder.output) == answers_of(whole.output)


@pytest.mark.parametrize("folder_name", ["/sys", "/nowhere"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_loaded(folder, folder_name):
    if not Path("/sys").is_dir():
        pytest.skip("this system has no folder that nobody may write to")
    folder.write(completion("a"))
    folder.output = Path(folder_name) / "out.jsonl"
    status, said = folder.run("-m", "missing.gguf")
    assert status == 2
    assert said.startswith(f"lowbit: error: {folder_name}/out.jsonl: ")
    assert said.count("\n") == 1


def test_the_input_is_not_taken_for_the_output(folder):
    folder.write(completion("a"))
    folder.output = folder.input
    status, said = folder.run()
    assert (status, said) == (2, "lowbit: error: the output is the input\n")


def test_every_line_that_cannot_be_answered_comes_with_its_reason(folder):
    good = completion("good")
    folder.write(
        good, b"{\n", b"\n", b"[1]\n", b"\xff\n", {**good, "custom_id": ""},
        {**good, "custom_id": "get", "method": "GET"},
        {**good, "custom_id": "url", "url": "/v1/models"}, {**good, "more": 1}, {**good, "body": {"prompt": 1}},
        completion("good", "Another"), completion("long", "word " * 600), completion("temp", temperature=-1),
        completion("stream", stream=True), completion("model", model="gpt-4o"), b'{"custom_id": "cut',
    )  # fmt: skip
    status, said = folder.run()
    assert status == 3, said
    assert f"{folder.failed} has 14 lines that failed, with the reason" in said
    assert set(folder.answers()) == {"good"}
    failures = folder.failures()
    said = {number: (line["custom_id"], line["error"]["message"]) for number, line in failures.items()}
    n = len("word " * 600)
    assert said.keys() == {2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
    assert said[2][0] is None
    assert said[2][1].startswith("the line is no JSON: ")
    assert said[4] == (None, "the line must be a JSON object")
    assert said[5] == (None, "the line is not UTF-8")
    assert said[6] == ("", "custom_id must be a text that is not empty, not ''")
    assert said[7] == ("get", "method must be 'POST': nothing else is supported, not 'GET'")
    assert said[8][1].startswith("url must be '/v1/chat/completions' or ")
    assert said[9] == ("good", "more is not supported")
    assert said[10] == ("good", "custom_id 'good' is that of line 1")
    assert said[11] == ("good", "custom_id 'good' is that of line 1")
    assert said[12][0] == "long"
    assert "exceeds the available context size of 512" in said[12][1]
    assert failures[12]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert said[13] == ("temp", "temperature must be between 0 and 100, not -1")
    assert said[14] == ("stream", "stream is not supported in a batch")
    assert said[15][1].startswith("there is no model of that name here, only ")
    assert said[16][1].startswith("the line is no JSON: ")
    assert n > 512


def test_a_line_longer_than_the_limit_fails_and_the_next_one_does_not(folder):
    folder.write(completion("long", "x" * 5000), completion("b"))
    assert folder.run("--max-line", "4KB")[0] == 3
    assert set(folder.answers()) == {"b"}
    assert folder.failures()[1]["error"] == {"code": "too_large", "message": "the line has more than 4096 bytes"}


def test_failures_are_tried_again_when_their_file_is_removed(folder):
    folder.write(completion("a"), completion("b", model="other"))
    assert folder.run()[0] == 3
    folder.failed.unlink()
    assert folder.run()[0] == 3
    assert folder.failures()[2]["custom_id"] == "b"
    assert set(folder.answers()) == {"a"}


def test_the_date_that_a_template_asks_for_is_that_of_the_beginning(folder):
    template = folder.path / "template.jinja"
    template.write_text("{% for m in messages %}{{ strftime_now('%Y') }} {{ m.content }}{% endfor %}")
    options = ("--chat-template", template)
    folder.write(chat("a", seed=1, max_tokens=24))
    assert folder.run(*options, "--date", "1999-12-31")[0] == 0
    folder.write(chat("a", seed=1, max_tokens=24), chat("b", seed=1, max_tokens=24))
    assert folder.run(*options)[0] == 0
    answers = folder.answers()
    assert answers["a"]["choices"] == answers["b"]["choices"]
    status, said = folder.run(*options, "--date", "2026-01-31")
    assert status == 2
    assert 'settings date was "1999-12-31", and is "2026-01-31"' in said
    status, said = folder.run("--date", "today")
    assert (status, "--date" in said) == (2, True)


def test_an_answer_is_that_of_the_server_but_for_what_depends_on_the_clock(folder):
    from lowbit import load
    from lowbit.batch.asked import seed_of

    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    called = chat("tool", tools=tools, tool_choice={"type": "function", "function": {"name": "look"}}, max_tokens=64)
    lines = [chat("chat"), completion("n", n=3, seed=5), completion("text", logprobs=1), embedding("vector")]
    folder.write(*lines, called)
    assert folder.run()[0] == 0, folder.failed.read_text()
    answers, model = folder.answers(), load(threads=1)
    text = answers["text"]
    alone = model.generate("Once upon a time", max_tokens=8, seed=seed_of(0, "text"))
    assert text["choices"][0]["text"] == alone.text
    assert (text["object"], text["created"]) == ("text_completion", 0)
    assert text["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert [one["text"] for one in answers["n"]["choices"]] == [
        model.generate("Once upon a time", max_tokens=8, seed=5 + i).text for i in range(3)
    ]
    message = answers["chat"]["choices"][0]["message"]
    said = model.chat([{"role": "user", "content": "Hello"}], max_tokens=8, seed=seed_of(0, "chat"))
    assert message["content"] == said.text
    vector = model.embed("Once upon a time")[0]
    assert abs(sum(a * b for a, b in zip(answers["vector"]["data"][0]["embedding"], vector.tolist()))) > 0
    assert answers["tool"]["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
    before = folder.output.read_bytes()
    folder.output.unlink()
    assert folder.run()[0] == 0
    assert answers_of(folder.output) == sorted(before.splitlines()[1:])


def test_progress_on_a_terminal_is_one_line_with_rate_and_time_left():
    from lowbit.batch import Progress

    class Terminal:
        said = ""

        def isatty(self):
            return True

        def write(self, text):
            self.said += text

        def flush(self):
            pass

    out = Terminal()
    progress = Progress(1000, 100, out=out)
    assert out.said == "lowbit: 100 of 1,000 lines are done already\n"
    out.said = ""
    for i in range(100):
        progress._last = 0.0
        progress.note(i == 3, 20)
    assert "\n" not in out.said
    last = out.said.rpartition("\r")[2]
    assert last.startswith("200 of 1,000 lines, 1 failed, ")
    assert " lines/s, " in last
    assert last.rstrip().endswith("left")


def test_times_are_written_for_people():
    from lowbit.batch.progress import span

    times = (12, 119, 180, 3 * 3600 + 60 * 5, 100 * 3600)
    assert [span(one) for one in times] == ["12 s", "119 s", "3 min", "3 h 5 min", "4 days 4 h"]


def test_output_of_an_earlier_header_that_was_cut_is_begun_anew(folder):
    folder.write(completion("a"))
    assert folder.run()[0] == 0
    whole = folder.output.read_bytes()
    for cut in (b"", whole[:20], b"\0" * 50):
        folder.output.write_bytes(cut)
        assert folder.run()[0] == 0
        assert folder.output.read_bytes() == whole


def test_what_follows_a_crash_of_the_machine_is_cut_and_what_lies_between_is_not(folder):
    folder.write(completion("a"), completion("b"))
    assert folder.run()[0] == 0
    whole = folder.output.read_bytes()
    folder.output.write_bytes(whole[:-40] + b"\0" * 40)
    assert folder.run()[0] == 0
    assert answers_of(folder.output) == sorted(whole.splitlines()[1:])
    header, first, second = whole.splitlines(keepends=True)
    folder.output.write_bytes(header + first[:-30] + b"\n" + second)
    status, said = folder.run()
    assert status == 2
    assert "line 2 was damaged, and whole ones follow it" in said
