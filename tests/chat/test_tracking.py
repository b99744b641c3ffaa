"""Templates see what was said as it is, and whatever they make of it, none of it becomes a control token."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("jinja2", minversion="3.1.6")

from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lowbit.chat.disguise import Disguise
from lowbit.chat.tracking import TrackingEnvironment

NAMES = ["<s>", "</s>", "<|im_end|>", "[INST]", "Bos", "BOS", "<a b>", "\U000f0000"]
FINDER = re.compile("|".join(map(re.escape, sorted(NAMES, key=len, reverse=True))))


def tracked(source, messages):
    """The text, and the text in disguise."""
    disguise = Disguise("".join(NAMES), source)
    environment = TrackingEnvironment(disguise)
    environment.track_filters()
    talk = [{**m, "content": environment.said(m["content"])} for m in messages]
    made = environment.from_string(source).generate(messages=talk, bos_token="<s>")
    hidden = "".join(getattr(piece, "_hidden", piece) for piece in made)
    return disguise.show(hidden), hidden


def plain(source, messages):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    return environment.from_string(source).render(messages=messages, bos_token="<s>")


CONTENT = st.lists(
    st.sampled_from([*NAMES, "<", "/s>", "s>", "</", "|im_", "end|>", "bos", "bOS", "[", "INST]", "<<s>s>", " ", "\n",
                     "<a", "b>", "x", "é", "<think>", "</think>", "{0}", "%s", "'", '"', "&lt;"]),
    max_size=6,
).map("".join)  # fmt: skip
TALK = st.tuples(CONTENT, CONTENT).map(
    lambda pair: [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
)

# None of these holds the name of a control token.
WAYS = [
    "{{ c }}", "{{ c ~ c }}", "{{ c + c }}", "{{ c * 3 }}", "{{ '%s' % c }}", "{{ c % () }}", "{{ '<' ~ c }}",
    "{{ '<' + c + '>' }}", "{{ c | upper }}", "{{ c | lower }}", "{{ c | title }}", "{{ c.capitalize() }}",
    "{{ c.swapcase() }}", "{{ c | trim }}", "{{ c.strip('<') }}", "{{ c | replace('think', '') }}",
    "{{ c.replace('<think>', '') }}", "{{ c.split('</think>')[-1].lstrip('\\n') }}", "{{ c.partition('x') | join }}",
    "{{ c.split('x') | join('') }}", "{{ c | list | join }}", "{{ c[1:] }}{{ c[:2] }}",
    "{{ c[::-1] }}{{ c | reverse }}",
    "{% for x in c %}{{ x }}{% endfor %}", "{{ c | first }}{{ c[1:] }}", "{{ c | map('upper') | join }}",
    "{{ [c, c] | map('lower') | join('<') }}", "{{ '{}>'.format(c) }}", "{{ '{0[1]}s>'.format(c) }}",
    "{{ c.format(1) }}", "{{ c | format }}", "{{ ('{}' | attr('format'))(c) }}", "{{ '{x}'.format_map({'x': c}) }}",
    "{{ [c] }}", "{{ {'k': c} }}", "{{ (c, c) | string }}", "{{ messages }}", "{{ messages ~ '' }}",
    "{% set ns = namespace(x=c) %}{{ ns.x }}{{ ns }}", "{% set ns = namespace(x=c) %}{{ ns | string | lower }}",
    "{% macro f(x) %}{{ x }}>{% endmacro %}{{ f(c) }}", "{% macro f() %}{{ caller() }}{% endmacro %}"
    "{% call f() %}{{ c }}{% endcall %}", "{% set x %}{{ c }}{% endset %}{{ x }}",
    "{% filter lower %}{{ c }}{% endfilter %}",
    "{% filter replace('x', '') %}{{ c }}{% endfilter %}", "{{ c.encode().decode() }}", "{{ c.encode() }}",
    "{{ (c.encode() + c.encode()).decode() }}", "{{ c | e }}", "{{ c | e | upper }}", "{{ c | safe }}",
    "{{ (c | safe) ~ '>' }}", "{{ c | striptags }}",
    "{{ c | urlize }}", "{{ c | urlencode }}", "{{ c | indent }}", "{{ c | wordwrap(3, wrapstring='') }}",
    "{{ c | center(30) }}", "{{ c | truncate(4, True, '') }}", "{{ c | pprint }}", "{{ c | forceescape }}",
    "{{ c | xmlattr if c is mapping else {'a': c} | xmlattr }}", "{{ c | batch(2) | map('join') | join }}",
    "{{ c | slice(2) | map('join') | join }}", "{{ c | unique | join }}", "{{ c | sort | join }}",
    "{{ messages | map(attribute='content') | join }}", "{{ messages | groupby('content') }}",
    "{% for g in messages | groupby('content') %}{{ g.grouper }}{% for m in g.list %}{{ m.content }}{% endfor %}"
    "{% endfor %}",
    "{{ messages | selectattr('content') | map(attribute='content') | list }}", "{{ messages | tojson }}",
    "{{ messages | sum(attribute='content', start='') }}", "{{ messages | last | items | list }}",
    "{% for k, v in messages[0].items() %}{{ k ~ v }}{% endfor %}", "{{ messages[0].values() | list | join }}",
    "{{ messages[0].values() | string }}", "{{ cycler(c, c).next() }}", "{% set j = joiner(c) %}{{ j() }}{{ j() }}",
    "{{ dict(a=c).a }}", "{{ dict(a=c) | dictsort }}", "{% set a = c.split('|') %}{{ a[0] }}{{ a[-1] }}",
    "{{ '|'.join(c.split('x')) }}", "{{ c.translate({120: ''}) }}", "{{ 'y'.translate({121: c}) }}",
    "{{ c.join(['<', '>']) }}", "{{ ','.join(c) }}", "{{ c.expandtabs(1).zfill(9).ljust(12, '>') }}",
    "{{ c.removeprefix('<').removesuffix('>') }}", "{{ c | default('') }}{{ nothing | default(c) }}",
    "{{ c.casefold() | upper }}", "{% set a = (c ~ 'xx')[:2] %}{% set p, q = a %}{{ q ~ p }}",
    "{{ c | max }}{{ c | min }}",
    "{{ loop.cycle(c) }}", "{{ loop | string }}", "{% set x = c ~ '|im_end|>' %}{{ x }}",
    "{{ '<' ~ c.split('<')[-1] }}",
    "{{ c.splitlines() | join }}", "{{ c.rsplit('>', 1)[0] ~ '>' }}", "{{ (c ~ 'o') | title }}",
    "{{ 'bo' ~ c | lower }}",
    "{{ c.hidden }}{{ c._hidden }}{{ c | attr('_hidden') }}", "{{ '{0._hidden}'.format(c) }}",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=30, deadline=None)
@given(talk=TALK)
def test_nothing_that_was_said_becomes_a_control_token_whatever_is_made_of_it(way, talk):
    source = "{% for m in messages %}{% set c = m.content %}" + way + "{% endfor %}"
    try:
        expected = plain(source, talk)
    except Exception as error:
        with pytest.raises(type(error)):
            tracked(source, talk)
        return
    shown, hidden = tracked(source, talk)
    # What is printed of objects names their places in memory.
    assert re.sub("0x[0-9a-f]+", "", shown) == re.sub("0x[0-9a-f]+", "", expected)
    assert not FINDER.search(hidden), hidden


TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}<|im_end|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{% set x = '[INST]' + m['content'] | trim + ' </s>' %}{{ x }}{% endfor %}",
    "{% for m in messages %}{{ '<|im_%s|>' % ('end' if m.role == 'user' else 'x') ~ m.content }}{% endfor %}",
    "{% for m in messages %}{{ '<|im_' + {'user': 'end'}.get(m.role, '') + '|>' + m.content.strip() }}{% endfor %}",
    "{% for m in messages %}{{ '{}[INST]{}</s>'.format('<s>', m.content) | trim }}{% endfor %}",
    "{{ messages | map(attribute='content') | join('</s>') }}",
    "{% macro turn(m) %}[INST]{{ m.content }}</s>{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "{% filter trim %}{% for m in messages %}  [INST]{{ m.content | replace('\n', ' ') }}</s>\n"
    "{% endfor %}{% endfilter %}",
    "{% set ns = namespace(out='<s>') %}{% for m in messages %}{% set ns.out = ns.out ~ m.content ~ '</s>' %}"
    "{% endfor %}{{ ns.out }}",
    "{% for m in messages | selectattr('role', 'equalto', 'user') | list %}<s>{{ m.content }}"
    "{{ '</' + m.role[1] + '>' }}{% endfor %}",
    "{% for m in messages %}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}"
    "{{ m.content }}{% endif %}</s>{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES)
@settings(max_examples=50, deadline=None)
@given(talk=TALK, harmless=st.text("abxyz é.,<>\n", max_size=12))
def test_a_template_s_own_control_tokens_are_the_same_whatever_is_said(source, talk, harmless):
    shown, hidden = tracked(source, talk)
    assert shown == plain(source, talk)
    quiet = [{**m, "content": "z"} for m in talk]
    assert FINDER.findall(hidden) == FINDER.findall(plain(source, quiet))
    peace = [{**m, "content": harmless} for m in talk]
    shown, hidden = tracked(source, peace)
    assert shown == plain(source, peace)
    if len(FINDER.findall(shown)) == len(FINDER.findall(plain(source, quiet))):  # "s>" behind "<", say
        assert FINDER.findall(hidden) == FINDER.findall(shown)


def test_a_template_decides_by_what_was_said():
    source = (
        "{% for m in messages %}{% if '</s>' in m.content or m.content.startswith('<s>') or m.content == 'Bos' %}"
        "{{ m.content | length }}{% else %}no{% endif %} {% endfor %}"
    )
    talk = [{"role": "user", "content": content} for content in ("a</s>", "<s>b", "Bos", "</ s>")]
    assert tracked(source, talk) == ("5 4 3 no ",) * 2


def test_autoescape_is_refused():
    # It would make texts in a way that is not watched.
    with pytest.raises(TemplateError, match="autoescape"):
        tracked("{% autoescape true %}{{ messages[0].content }}{% endautoescape %}", [{"role": "user", "content": "x"}])


def test_characters_run_out_with_an_error():
    disguise = Disguise("")
    with pytest.raises(ValueError, match="different characters"):
        disguise.hide("".join(map(chr, [*range(0x21, 0xD800), *range(0xE000, 0x30000)])))
