"""A template from a file can neither run code nor take much time, memory or text."""

from __future__ import annotations

import errno
import sys

import pytest

from lowbit.chat import sandbox
from lowbit.chat.sandbox import render_jinja
from lowbit.errors import FormatError, UnsupportedModelError

TALK = [{"role": "user", "content": "Hi {{ 7 * 7 }}"}]


@pytest.fixture(autouse=True)
def _jinja():
    pytest.importorskip("jinja2", minversion="3.1.6")


def test_a_template_sees_the_messages_and_never_runs_what_they_say():
    source = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m.content | trim }}{% endfor %}{{ eos_token }}"
    assert render_jinja(source, TALK, "<s>", "</s>") == "<s>user: Hi {{ 7 * 7 }}</s>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ ('%s' | attr('format'))(1).__class__.__mro__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception.__globals__.json }}",
        "{% for %}",
        "{{ missing.attribute.of.nothing }}",
        "{{ raise_exception('no system role') }}",
    ],
)
def test_what_is_forbidden_or_wrong_is_a_format_error(source):
    with pytest.raises(FormatError, match="template fails"):
        render_jinja(source, TALK, "", "")


@pytest.mark.parametrize("source", ["{{ '{0.__class__}'.format(messages) }}", "{{ raise_exception.__globals__ }}"])
def test_what_is_hidden_shows_as_nothing(source):
    assert render_jinja(source, TALK, "", "") == ""


def test_an_endless_template_is_stopped():
    nested = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(FormatError, match="longer than 1 seconds"):  # it would take years
        render_jinja(nested, TALK, "", "", seconds=1.0)


@pytest.mark.parametrize("source", ["{{ 'x' * 9000000 }}", "{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}"])
def test_a_long_text_is_cut_off_by_an_error(source):
    with pytest.raises(FormatError, match="longer than"):
        render_jinja(source, TALK, "", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux only")
def test_a_template_cannot_take_much_memory():
    # Twice what the process may have, and a length that a string of a 32-bit Python can have.
    with pytest.raises(FormatError, match=r"MemoryError|too much memory"):
        render_jinja("{% set x = 'a' * 1000000000 %}{{ x | length }}", TALK, "", "")


def test_a_huge_template_is_refused_before_it_is_parsed():
    with pytest.raises(FormatError, match="characters"):
        render_jinja("x" * (sandbox.MAX_TEMPLATE + 1), TALK, "", "")


def test_without_a_safe_jinja2_the_template_is_refused(monkeypatch, tmp_path):
    (tmp_path / "jinja2").mkdir()
    (tmp_path / "jinja2" / "__init__.py").write_text("raise ImportError('gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UnsupportedModelError, match=r"3\.1\.6"):
        render_jinja("x", TALK, "", "")


def test_the_process_sees_no_secrets_of_the_environment(monkeypatch):
    seen = {}
    original = sandbox.subprocess.Popen

    def spy(*args, **options):
        seen.update(options["env"])
        return original(*args, **options)

    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setattr(sandbox.subprocess, "Popen", spy)
    render_jinja("x", TALK, "", "")
    assert "SECRET_TOKEN" not in seen


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOMEM, MemoryError), (errno.EAGAIN, UnsupportedModelError)])
def test_a_process_that_cannot_start_is_one_of_our_errors(monkeypatch, number, raised):
    def refuse(*args, **options):
        raise OSError(number, "no")

    monkeypatch.setattr(sandbox.subprocess, "Popen", refuse)
    with pytest.raises(raised):
        render_jinja("x", TALK, "", "")
