"""Make a corpus for `lowbit train` from files of stories: clean, without duplicates, some of them with a request.

    python tools/story_corpus.py train.txt extra.jsonl --held-out valid.txt --requests 0.5 -o corpus.jsonl

A line of the output is {"text": STORY}, or {"messages": [REQUEST, STORY]}: "Tell me a story about a dragon and a
cake. It should have a happy end.", with nouns, a name and an end that are found in the story. Nothing is left to
chance but what --seed decides. What was dropped, and why, is counted on standard error and in OUTPUT.counts.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

STORY_BREAK = re.compile(r"<\|endoftext\|>|\n\s*\n(?=Once upon a time|Once there|There once)")
RUN = 12
"""Words; a story that shares so many in a row with held-out text is not trained on."""
STOCK = 5
"""A run of words in so many stories is a stock phrase ("there was a little girl named Lily") and no leak."""
NEAR_RUN, NEAR_SHARE = 6, 0.4
"""A story is a near duplicate if so large a share of its runs of so many words is in an earlier story."""
SHORTEST, LONGEST = 40, 400
"""Words of a story."""
RARE_SHARE = 0.03
"""A story with a larger share of words that no other story has is not for children, or misspelt."""

TYPOGRAPHY = str.maketrans(
    {"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "\u00a0": " ", "\u200b": ""}
)
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
SENTENCE_START = re.compile(r'(?:^|[.!?]\s+|\n\s*)["\']?([A-Za-z])')
NAMED = re.compile(r"\b(?:named|called|name was) ([A-Z][a-z]+)\b")
MID_SENTENCE_NAME = re.compile(r"(?<=[a-z,] )([A-Z][a-z]{2,})\b")

HERO = re.compile(
    r"\b(girl|boy|dog|cat|bird|bear|rabbit|bunny|mouse|fish|fox|frog|duck|lion) (?:named|called) ([A-Z][a-z]+)"
)
HAPPY = re.compile(
    r"\b(happy|happily|smil\w+|laugh\w*|proud|hugg?\w*|friends|fun|loved?|joy\w*|glad|cheer\w*|thank\w*)\b"
)
SAD = re.compile(r"\b(sad|sadly|cri(?:ed|es)|cry\w*|tears|sorry|never|lost|lonely|hurt|regret\w*|died|gone)\b")
LESSON = re.compile(r"\b(learn\w*|lesson|moral|remember\w*|from that day on|from then on)\b", re.IGNORECASE)
DETERMINERS = {"a", "an", "the", "his", "her", "their", "my", "your", "some"}
AFTER_NOUN = {
    "was", "were", "is", "had", "has", "and", "to", "in", "on", "at", "with", "that", "said", "saw", "went",
    "came", "who", "from", "for", "of", "wanted", "could", "would", "did", "but",
}  # fmt: skip
NO_TOPIC = {
    "day", "time", "way", "one", "thing", "things", "lot", "bit", "end", "moment", "side", "top", "back",
    "rest", "story", "part", "morning", "night", "evening", "afternoon", "week", "while", "place", "idea",
    "name", "others", "boy", "girl", "man", "woman", "kid", "child", "children", "people", "everyone",
    "something", "mom", "mommy", "mum", "mama", "dad", "daddy", "papa", "friend", "friends", "family", "other",
    "head", "hand", "hands", "eyes", "face", "home", "house", "world", "look", "help", "fun", "smile",
}  # fmt: skip

OPENINGS = (
    "Tell me a story about {}.", "Tell me a story about {}.", "Tell me a story about {}.", "Tell a story about {}.",
    "Write a story about {}.", "Write a short story about {}.", "Can you tell me a story about {}?",
    "Please tell me a story about {}.", "I want to hear a story about {}.", "tell me a story about {}",
    "A story about {}, please.", "Tell me a bedtime story about {}.", "Make up a story about {}.",
)  # fmt: skip
COUNTS = (1, 2, 2, 2, 2, 2, 3, 3, 4)
"""Of things in a request, equally often each."""
EARLY = 0.35
"""Part of a story, from its beginning, in which a noun may be said once only to be asked for."""
KINDS = (
    ("dog", "cat", "rabbit", "bunny", "lion", "tiger", "fox", "monkey", "elephant", "horse", "cow", "pig",
     "squirrel", "goat", "puppy", "kitten", "dinosaur", "dragon", "giraffe", "zebra", "panda", "hedgehog"),
    ("bird", "owl", "parrot", "bee", "butterfly", "ladybug", "dragon", "eagle", "crow"),
    ("turtle", "frog", "crab", "whale", "shark", "penguin", "crocodile", "snail", "worm", "ant", "spider"),
    ("cake", "cookie", "apple", "pie", "sandwich", "banana", "pizza", "carrot", "muffin", "pancake", "cupcake",
     "pear", "lemon", "pumpkin", "donut"),
    ("ball", "doll", "kite", "balloon", "robot", "drum", "puzzle", "puppet"),
    ("car", "truck", "boat", "bike", "bus", "plane", "train", "rocket", "helicopter", "ship", "tractor"),
    ("hat", "scarf", "coat", "shirt", "sweater", "jacket", "crown", "necklace", "dress", "ribbon", "cape"),
    ("flower", "stick", "rock", "stone", "shell", "coin", "feather", "key", "bell", "diamond", "gem", "seed"),
    ("box", "bag", "basket", "bucket", "bottle", "cup", "bowl", "jar"),
    ("book", "camera", "clock", "lamp", "mirror", "umbrella", "guitar", "phone", "pencil", "crayon"),
    ("king", "wizard", "pirate", "knight", "prince"), ("princess", "queen", "fairy", "witch", "mermaid"),
)  # fmt: skip
"""Things of which one may stand for another in a story; their plurals are regular."""
OPEN_REQUESTS = ("Tell me a story.", "Tell me a bedtime story.", "Write a story for children.", "tell me a story")
ENDS = {
    "happy": ("It should have a happy end.", "It should end well.", "I want a happy end."),
    "sad": ("It should have a sad end.", "It should end badly.", "I want a sad end."),
    "lesson": ("It should teach a lesson.", "It should have a moral.", "Somebody should learn something in it."),
}


def clean(story: str) -> str:
    """Return a story in plain typography, its paragraphs parted by one empty line."""
    story = re.sub(r"[ \t]+", " ", story.translate(TYPOGRAPHY))
    story = re.sub(r" ?\n\s*", "\n\n", story.strip())
    return re.sub(r" +([.,!?])", r"\1", story)


def words(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return [word.lower() for word in WORD.findall(text)]


def runs(text: str, length: int) -> set[int]:
    """Return the hashes of all runs of `length` words."""
    found = words(text)
    return {hash(tuple(found[i : i + length])) for i in range(len(found) - length + 1)}


def fault(story: str) -> str | None:
    """Tell why a story is not fit to learn from, or None."""
    count = len(words(story))
    if not SHORTEST <= count <= LONGEST:
        return "too short" if count < SHORTEST else "too long"
    if not story.isascii():
        return "foreign characters"
    if re.search(r"[<>{}\[\]\\|@#_*=/]|http", story):
        return "markup"
    if not re.search(r'[.!?]["\')]?$', story):
        return "has no end"
    if story.count('"') % 2:
        return "an open quotation"
    if not story[0].isupper() and story[0] != '"':
        return "begins in the middle"
    sentences = re.split(r"(?<=[.!?])\s+", story)
    if len(set(sentences)) < 0.8 * len(sentences):
        return "repeats itself"
    return None


def badly_cased(story: str) -> bool:
    """Tell whether capitals are missing: at starts of sentences, in "I", or in a name that has them elsewhere."""
    starts = SENTENCE_START.findall(story)
    if sum(letter.islower() for letter in starts) > 0.1 * len(starts) or re.search(r"\bi\b", story):
        return True
    names = set(NAMED.findall(story)) | {name for name, n in Counter(MID_SENTENCE_NAME.findall(story)).items() if n > 1}
    lower = Counter(re.findall(r"\b[a-z]+\b", story))
    after_article = set(re.findall(r"\b(?:a|an|the|her|his|my|your|their|little|big) ([a-z]+)\b", story))
    return any(lower[name.lower()] and name.lower() not in after_article for name in names)


def find_nouns(stories: Iterable[str]) -> dict[str, str]:
    """Return the words that mostly stand where a noun does, each as one asks for it: a dragon, the moon, water, shoes.

    That is after a determiner, and before the end of a sentence or a word that no noun follows.
    """
    total: Counter[str] = Counter()
    as_noun: Counter[str] = Counter()
    after: dict[str, Counter[str]] = {"a": Counter(), "the": Counter()}
    for story in stories:
        tokens = re.findall(r"[A-Za-z']+|[.,!?\"]", story)
        for before, word, behind in zip(tokens, tokens[1:], tokens[2:]):
            if word.islower() and word.isalpha() and len(word) > 2:
                total[word] += 1
                as_noun[word] += before.lower() in DETERMINERS and (not behind[0].isalpha() or behind in AFTER_NOUN)
                article = {"an": "a"}.get(before.lower(), before.lower())
                if article in after:
                    after[article][word] += 1
    nouns = {}
    for word, n in total.items():
        if n >= 10 and as_noun[word] > 0.3 * n and word not in NO_TOPIC:
            one = after["a"][word] > 0.01 * n
            nouns[word] = with_article(word) if one else "the " + word if after["the"][word] > 0.6 * n else word
    return nouns


def topics(
    story: str, nouns: Collection[str], in_stories: Mapping[str, int], count: int, draw: random.Random, sure: str = ""
) -> list[str]:
    """Draw `count` nouns that a story is about: said twice or near its beginning; often, early, and seldom in others.

    Where a story is asked for two things, it must not tell of one and forget the other. That is learned from nouns
    that are told of soon, rather than from those that turn up at the end.
    """
    found = re.findall(r"\b[a-z]+\b", story)  # a name is no topic
    said = Counter(word for word in found if word in nouns)
    weights = {}
    for word, n in said.items():
        place = found.index(word) / len(found)
        if n >= 2 or place < EARLY:
            weights[word] = min(n, 4) * (2.0 - place) * (2 if place < EARLY else 1) / in_stories[word] ** 0.25
    chosen = [sure] if sure in weights else []
    # the largest keys are a draw by weight, each at most once
    keys = {word: draw.random() ** (1 / weight) for word, weight in weights.items() if word != sure}
    return (chosen + sorted(keys, key=lambda word: -keys[word]))[:count]


def exchanged(story: str, draw: random.Random) -> tuple[str, str]:
    """Put another thing of its kind in the place of one that a story is about; return the story and the new noun.

    What is asked for then decides what comes in the story, and not what mostly comes there.
    """
    said = Counter(re.findall(r"\b[a-z]+\b", story.lower()))
    things = [(old, kind) for kind in KINDS for old in kind if said[old] >= 2 and f"teddy {old}" not in story]
    if not things:
        return story, ""
    old, kind = draw.choice(things)
    new = draw.choice([other for other in kind if not said[other] and not said[plural(other)]] or [old])
    article = with_article(new).split()[0]
    story = re.sub(rf"\b([Aa])n? (?=(?i:{old})\b)", lambda match: match[1] + article[1:] + " ", story)
    for was, becomes in ((old, new), (plural(old), plural(new))):
        story = re.sub(rf"\b{was}\b", becomes, story)
        story = re.sub(rf"\b{was.capitalize()}\b", becomes.capitalize(), story)
    return story, new


def plural(noun: str) -> str:
    """Return the plural of a regular noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def ending(story: str) -> str | None:
    """Tell how a story ends: ``lesson``, ``happy``, ``sad``, or None where it is not clear."""
    last = " ".join(re.split(r"(?<=[.!?])\s+", story)[-3:])
    if LESSON.search(last):
        return "lesson"
    happy, sad = len(HAPPY.findall(last.lower())), len(SAD.findall(last.lower()))
    return "happy" if happy > sad else "sad" if sad > happy + 1 else None


def request(
    story: str, nouns: Mapping[str, str], in_stories: Mapping[str, int], draw: random.Random, sure: str = ""
) -> str:
    """Make up a request that the story fulfils; it asks for the noun `sure`, if one is given."""
    about = [nouns[noun] for noun in topics(story, nouns, in_stories, draw.choice(COUNTS), draw, sure)]
    draw.shuffle(about)
    hero = HERO.search(story)
    if hero and draw.random() < 0.15 and not sure:
        kind = f"a {hero[1]} named {hero[2]}"
        about = [kind, *(a for a in about if a.split()[-1] != hero[1])][: max(1, len(about))]
    if not about or draw.random() < 0.03:
        asked = draw.choice(OPEN_REQUESTS)
    else:
        listed = about[0] if len(about) == 1 else ", ".join(about[:-1]) + " and " + about[-1]
        asked = draw.choice(OPENINGS).format(listed)
    end = ending(story)
    if end and draw.random() < 0.2:
        asked += (" " if asked[-1] in ".?" else ". ") + draw.choice(ENDS[end])
    return asked


def read(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each story of a text or JSONL file, and whether its capitals were put back by a program."""
    if path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            yield entry["text"], bool(entry.get("recased"))
    else:
        for story in STORY_BREAK.split(path.read_text(encoding="utf-8")):
            if story.strip():
                yield story, False


class Filter:
    """Keeps what is fit to learn from, and counts what is not.

    Parameters
    ----------
    held_out : texts that no story may share `RUN` words in a row with, unless these are a stock phrase
    """

    def __init__(self, held_out: Sequence[str]) -> None:
        self.held_out = set().union(*(runs(text, RUN) for text in held_out))
        self.dropped: Counter[str] = Counter()

    def __call__(self, stories: Iterable[tuple[str, bool]]) -> list[str]:
        """Return the stories that are kept, clean, in their order."""
        kept: list[str] = []
        seen: set[int] = set()
        for raw, recased in stories:
            story = clean(raw)
            reason = fault(story) or ("capitals" if recased and badly_cased(story) else None)
            if reason is None:
                found = runs(story, NEAR_RUN)
                if len(found & seen) > NEAR_SHARE * len(found):
                    reason = "a duplicate"
                else:
                    seen |= found
            if reason:
                self.dropped[reason] += 1
            else:
                kept.append(story)
        return self._without_rare_words(self._without_leaks(kept))

    def _without_leaks(self, stories: list[str]) -> list[str]:
        shared = [runs(story, RUN) & self.held_out for story in stories]
        common = Counter(run for found in shared for run in found)
        clean_ones = [s for s, found in zip(stories, shared) if all(common[run] >= STOCK for run in found)]
        self.dropped["shares text with the held-out stories"] += len(stories) - len(clean_ones)
        return clean_ones

    def _without_rare_words(self, stories: list[str]) -> list[str]:
        in_stories = Counter(word for story in stories for word in set(words(story)))
        kept = []
        for story in stories:
            found = words(story)
            if sum(in_stories[word] == 1 for word in found) <= RARE_SHARE * len(found):
                kept.append(story)
        self.dropped["rare words"] += len(stories) - len(kept)
        return kept


def compose(
    stories: Sequence[str], share: float, seed: int, tails: float = 0.0, swaps: float = 0.0, rounds: int = 1
) -> Iterator[dict[str, Any]]:
    """Give the share of the stories a request, and leave the others as they are; or begin at their "One day".

    With `rounds` each story comes so often, with requests of its own. In the share `swaps` of those with a request one
    thing is exchanged for another of its kind.
    """
    nouns = find_nouns(stories)
    nouns.update((noun, with_article(noun)) for kind in KINDS for noun in kind)
    in_stories = defaultdict(lambda: 1, Counter(word for story in stories for word in set(words(story))))
    draw = random.Random(seed)
    for story in [*stories] * rounds:
        if draw.random() < share:
            told, sure = exchanged(story, draw) if draw.random() < swaps else (story, "")
            asked = request(told, nouns, in_stories, draw, sure)
            yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        else:
            at = story.find("\n\nOne day")
            yield {"text": story[at:].strip() if at > 0 and draw.random() < tails else story}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="text or JSONL")
    parser.add_argument("--held-out", action="append", type=Path, default=[], metavar="FILE", help="never trained on")
    parser.add_argument(
        "--requests", type=float, default=0.5, metavar="F", help="share that gets a request (%(default)s)"
    )
    parser.add_argument(
        "--tails", type=float, default=0.2, metavar="F", help='share of the others cut to their "One day" (%(default)s)'
    )
    parser.add_argument(
        "--swaps", type=float, default=0.0, metavar="F",
        help="share of those with a request in which one thing is exchanged for another (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="each story N times (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="JSONL file to write")
    args = parser.parse_args()
    choose = Filter([path.read_text(encoding="utf-8") for path in args.held_out])
    stories = choose(story for path in args.files for story in read(path))
    kinds: dict[str, int] = defaultdict(int)
    with open(args.output, "w", encoding="utf-8") as out:
        for entry in compose(stories, args.requests, args.seed, args.tails, args.swaps, args.rounds):
            kinds["with a request" if "messages" in entry else "stories alone"] += 1
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    counts = {**kinds, "bytes": sum(len(s.encode()) for s in stories), "dropped": dict(choose.dropped.most_common())}
    Path(f"{args.output}.counts.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(counts, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
