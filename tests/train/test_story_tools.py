"""The tools that make a corpus of stories, and that count what is wrong with those a model tells."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest


def tool(name):
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    if not path.exists():
        pytest.skip("the tools are not part of this installation", allow_module_level=True)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


corpus, check = tool("story_corpus"), tool("story_check")
sampling = tool("sample_stories")

STORY = (
    "Once upon a time, there was a little dragon named Fizz. Fizz loved cake more than anything.\n\n"
    'One day, Fizz saw a big cake in the window of the old baker. "May I have some cake?" asked the dragon. '
    "The baker was scared at first, but then she laughed and gave the dragon the cake.\n\n"
    "Fizz shared it with all the children in the street. They were happy and they all became friends."
)


def variant(number, story=STORY):
    """A story of other words."""
    draw = random.Random(number)
    return " ".join(draw.sample(story.split(), len(story.split()) - 1)).capitalize().rstrip(",.") + "."


def test_cleaning_keeps_the_words_and_unifies_the_rest():
    raw = "  “Hi,” said Tom — he’d come .\nThey  ran…\n\n\n \nThe end.\t"
    assert corpus.clean(raw) == '"Hi," said Tom - he\'d come.\n\nThey ran...\n\nThe end.'
    assert corpus.clean(corpus.clean(raw)) == corpus.clean(raw)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s, None),
        (lambda s: "Short. Too short.", "too short"),
        (lambda s: s + " Then they went home again and slept well." * 60, "too long"),
        (lambda s: s.removesuffix("friends."), "has no end"),
        (lambda s: s.replace('cake?"', "cake?"), "an open quotation"),
        (lambda s: s[0].lower() + s[1:], "begins in the middle"),
        (lambda s: s + " <b>The end</b>.", "markup"),
        (lambda s: s.replace("Fizz", "Fîzz"), "foreign characters"),
        (lambda s: s + " The dragon ran away from here." * 5, "repeats itself"),
    ],
)
def test_a_story_is_dropped_for_its_fault(change, reason):
    assert corpus.fault(change(STORY)) == reason


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        (STORY, False),
        (STORY.replace("Fizz loved", "fizz loved"), True),
        ("Tom had a dog. he was glad. they ran home. Then Tom slept.", True),
        ("Tom said that i am glad. Tom slept.", True),
        ("There was a girl named Rose. Rose picked a rose and gave the rose to Tom.", False),
    ],
)
def test_missing_capitals_are_seen(text, bad):
    assert corpus.badly_cased(text) == bad


def test_duplicates_and_held_out_text_are_left_out_and_stock_phrases_are_not():
    unlike = [variant(i) for i in range(8)]
    near = STORY.replace("big cake", "huge cake")
    held = "The mouse went home. Fizz shared it with all the children in the street. They were happy and they sang."
    choose = corpus.Filter([held])
    kept = choose((story, False) for story in [*unlike, STORY, near])
    assert kept == unlike
    assert choose.dropped["a duplicate"] == 1
    assert choose.dropped["shares text with the held-out stories"] == 1
    opening = "Once upon a time there was a little girl named Lily who loved to play outside. "
    stock = [opening + variant(i) for i in range(corpus.STOCK)]
    assert corpus.Filter([opening])((story, False) for story in stock) == stock
    assert corpus.Filter([opening])((story, False) for story in stock[1:]) == []


def test_a_request_asks_for_what_is_in_the_story():
    filler = [
        f"The {noun} was big. He saw the {noun} and liked it. Then the {noun} had a cake. She wanted a dragon to sing."
        for noun in ("tree", "boat", "house", "ball")
        for _ in range(12)
    ]
    nouns = corpus.find_nouns([STORY, *filler])
    assert {"tree", "boat", "cake", "dragon"} <= nouns.keys()
    assert not nouns.keys() & {"was", "big", "saw", "then", "liked"}
    assert nouns["cake"] == "a cake"
    assert nouns["tree"] == "the tree"  # the only one there is
    in_stories = Counter({"dragon": 1, "cake": 1})
    for seed in range(40):
        asked = corpus.request(STORY, {"dragon": "a dragon", "cake": "a cake"}, in_stories, random.Random(seed))
        assert "sad" not in asked
        assert any(noun in asked for noun in ("dragon", "cake")) or asked.startswith(corpus.OPEN_REQUESTS)
        assert asked == corpus.request(STORY, {"dragon": "a dragon", "cake": "a cake"}, in_stories, random.Random(seed))


def test_topics_come_early_or_often_and_what_is_wanted_surely():
    nouns = {"dragon", "cake", "baker", "street", "window"}
    in_stories = Counter(dict.fromkeys(nouns, 1))
    drawn = [corpus.topics(STORY, nouns, in_stories, 2, random.Random(seed)) for seed in range(200)]
    assert {noun for pair in drawn for noun in pair} == nouns - {"street"}  # once, at the end
    assert all(len(set(pair)) == 2 for pair in drawn)
    assert sum("cake" in pair for pair in drawn) > sum("window" in pair for pair in drawn)
    sure = [corpus.topics(STORY, nouns, in_stories, 1, random.Random(seed), "dragon") for seed in range(20)]
    assert sure == [["dragon"]] * 20


def test_an_exchanged_thing_is_gone_from_the_story_in_every_form():
    story = "An Apple lay there. He saw an apple, and two apples. Apples are good, said the pineapple."
    told, new = corpus.exchanged(story, random.Random(3))
    assert new not in ("", "apple")
    assert "apple" not in corpus.words(told)
    assert "apples" not in corpus.words(told)
    assert "pineapple" in told
    article = corpus.with_article(new)
    assert told == (
        f"{article.capitalize().split()[0]} {new.capitalize()} lay there. He saw {article}, "
        f"and two {corpus.plural(new)}. {corpus.plural(new).capitalize()} are good, said the pineapple."
    )
    assert corpus.exchanged("He saw one apple.", random.Random(0)) == ("He saw one apple.", "")


@pytest.mark.parametrize(("noun", "several"), [("fox", "foxes"), ("puppy", "puppies"), ("monkey", "monkeys")])
def test_plurals_are_regular(noun, several):
    assert corpus.plural(noun) == several


def test_each_round_gives_a_story_a_request_of_its_own():
    told = [
        [entry["messages"] for entry in corpus.compose([STORY] * 20, 1.0, 0, swaps=swaps, rounds=2)]
        for swaps in (0.0, 1.0)
    ]
    for entries in told:
        assert len(entries) == 40
        assert len({request["content"] for request, _ in entries}) > 5
    assert {answer["content"] for _, answer in told[0]} == {STORY}
    assert STORY not in {answer["content"] for _, answer in told[1]}
    for request, answer in told[1]:
        asked = {word for word in corpus.words(request["content"]) if any(word in kind for kind in corpus.KINDS)}
        if not request["content"].startswith(corpus.OPEN_REQUESTS):
            assert asked & set(corpus.words(answer["content"])) - {"dragon", "cake"}


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ("They were happy and laughed.", "happy"),
        ("He was sad and cried, and it was lost and gone.", "sad"),
        ("From that day on, Tom learned to share.", "lesson"),
        ("Then Tom went home.", None),
    ],
)
def test_the_end_of_a_story_is_told_by_its_last_sentences(last, kind):
    assert corpus.ending("Tom ran. Tom ate. Tom slept. " + last) == kind


def test_nouns_are_asked_for_as_the_stories_say_them():
    stories = ["He saw an apple. She saw a dog. The sun was up. He put on shoes. She had some water. Rain fell."] * 9
    stories += [
        "Look at the sun. Look at the apple. Her shoes were new. They took some water. My dog and the water ran."
    ] * 9
    nouns = corpus.find_nouns(stories)
    assert {noun: nouns.get(noun) for noun in ("apple", "dog", "sun", "shoes", "water")} == {
        "apple": "an apple", "dog": "a dog", "sun": "the sun", "shoes": "shoes", "water": "water",
    }  # fmt: skip


def test_the_corpus_tool_writes_stories_and_conversations(tmp_path, monkeypatch, capsys):
    texts = [f"{STORY} The number was {['one', 'two', 'three'][i]}." for i in range(3)]
    source, held, out = tmp_path / "a.jsonl", tmp_path / "held.txt", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts[:1], variant(3)]), encoding="utf-8")
    held.write_text("Nothing of this is in there.", encoding="utf-8")
    monkeypatch.setattr(corpus, "RARE_SHARE", 1.0)
    for share, key in (("1", "messages"), ("0", "text")):
        arguments = [str(source), "--held-out", str(held), "--requests", share, "--tails", "0", "-o", str(out)]
        monkeypatch.setattr(sys, "argv", ["story_corpus.py", *arguments])
        corpus.main()
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [set(line) for line in lines] == [{key}, {key}]
        told = lines[0][key] if key == "text" else lines[0][key][1]["content"]
        assert told == texts[0]
    counts = json.loads((tmp_path / "out.jsonl.counts.json").read_text())
    assert counts["stories alone"] == 2
    assert "dropped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("The dog ran away. It was gone. The dog ran away!", True),
        ('"The dog ran away," said Tom. The dog ran far away.', False),
        ("Yes! Yes! Yes!", False),
        ('They ran to the tree.\n\n"Yes!" They ran to the tree."', True),
    ],
)
def test_a_sentence_that_comes_twice_is_seen(text, twice):
    assert check.repeats_a_sentence(text) == twice


HALF = "There was a girl named Lily. Lily liked to play in the park. She saw that Lily had a ball and it was red. "


@pytest.mark.parametrize(
    ("later", "changes"),
    [
        ("Then the ball fell and Lily cried. But soon after that Lily laughed again and went to bed at home.", False),
        ("Then the ball fell and Sara cried. But soon after that Sara laughed again and went to bed at home.", True),
        ("Then she met a dog named Max. Max ran. Max ate. In the end Max was glad and Max slept in his new bed.", True),
        (
            "Then it fell and rolled away. Sara cried. She ran home with Lily and went to bed and had a good dream.",
            True,
        ),
        ("Then she met a boy named Tom. In the end, Tom and Lily were good friends and they all went home.", False),
        ("Then she met her friend Tom. In the end, Tom and Lily were good friends and they all went home.", False),
        (
            "Then everyone came. Lily ran home. They laughed and Suddenly it rained on Lily and the park for days.",
            False,
        ),
    ],
)
def test_a_name_that_was_never_introduced_is_a_change(later, changes):
    assert check.a_name_changes(HALF + later) == changes


@pytest.mark.parametrize(
    ("text", "noun", "found"),
    [
        ("Two dogs ran.", "dog", True),
        ("The puppies ran.", "puppy", True),
        ("A doghouse stood there.", "dog", False),
        ("The Dragon flew.", "dragon", True),
        ("He ate the boxes.", "box", True),
    ],
)
def test_a_noun_is_found_in_singular_and_plural_only(text, noun, found):
    assert check.mentions(text, noun) == found


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(sampling, "COMMON_NOUN", 5)
    nouns = ("tree", "boat", "kite", "ball")
    filler = [f"He saw the {noun} and ran. Then the {noun} fell. The {noun} was big. {STORY}" for noun in nouns] * 6
    made = sampling.Judge(filler)
    assert set(nouns) <= set(made.nouns)
    return made


def test_the_judge_drops_a_sampled_story_for_its_fault(judge):
    assert judge(STORY, True, ["dragon", "cake"]) is None
    assert judge(STORY, True, ["dragon", "cake"]) == "a duplicate"
    assert judge(STORY, False, []) == "does not end"
    assert judge("Short.", True, []) == "too short"
    assert judge(STORY, True, ["dragon", "boat"]) == "does not tell of what was asked for"
    assert judge(STORY.replace("laughed", "capitulated unconditionally"), True, []) == "strange words"
    assert judge(STORY + "\n\nFizz loved cake more than anything.", True, []) == "repeats itself"


def test_the_judge_drops_what_surprises_its_model(judge):
    class Model:
        def perplexity(self, story):
            return type("Score", (), {"bits_per_byte": 0.9 if "happy" in story else 1.5})

    judge.model = Model()
    assert judge(STORY.replace("happy", "big"), True, []) == "surprising"
    assert judge(STORY, True, []) is None


def test_sampling_asks_for_two_nouns_and_gives_each_seed_once(judge, monkeypatch):
    pytest.importorskip("lowbit._kernels.decoder", reason="kernels are not compiled", exc_type=ImportError)
    monkeypatch.setattr("lowbit.chat.find_template", lambda metadata, tokenizer: None)
    monkeypatch.setattr("lowbit.chat.render", lambda messages, *rest: messages[0]["content"])
    asked = []

    class Model:
        tokenizer = None

        def info(self):
            return {"chat_template": ""}

        def generate(self, prompts, **settings):
            asked.extend(prompts)
            return [type("Out", (), {"text": STORY + " " + p, "finish_reason": "stop"}) for p in prompts]

    told = list(sampling.sample(Model(), judge, range(3, 10), 4))
    assert [seed for seed, *_ in told] == list(range(3, 10))
    assert len(asked) == 7
    for prompt, (_, _, nouns, _) in zip(asked, told, strict=True):
        assert len(set(nouns)) == 2
        assert all(judge.nouns[noun] in prompt for noun in nouns)
    again = list(sampling.sample(Model(), judge, [5], 4))
    assert again[0][:3] == told[2][:3]


def test_the_report_counts_faults_only_in_texts_that_end():
    bad = HALF + "Then the ball fell and Sara cried. Then the ball fell and Sara cried."
    texts = [
        check.Told("x", bad, True, ("ball", "dog")),
        check.Told("x", bad, False, ("ball",)),
        check.Told("x", HALF, True, ("ball", "park")),
    ]
    assert check.report(texts) == {
        "texts": 3, "end by themselves": 2, "a name changes": 1, "a sentence comes twice": 1,
        "tell of all that was asked for": 2,
    }  # fmt: skip
    assert "tell of all that was asked for" not in check.report([check.Told("x", HALF, True)])
