"""Let a model tell stories, and count what is wrong with them.

    python tools/story_check.py lowbit-tiny.gguf [--json report.json] [--samples samples.md]

Continuations of "Once upon a time", and answers to requests for two things each, with seeds from 1 on. Of a text that
ends by itself it is counted whether a name changes, whether a sentence comes twice and, after a request, whether both
things are told of. The checks are rules that a reader can follow; what they do not see, they do not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = "Once upon a time"
TOPICS = ("dragon", "cake", "dog", "ball", "bird", "boat")
REQUEST = "Tell me a story about a {} and a {}."

SENTENCE_END = re.compile(r'(?<=[.!?])["\']?\s+|\n+')
SHORTEST_SENTENCE = 4
"""Words; "Yes!" may come twice."""
NAME = re.compile(r"\b[A-Z][a-z]{2,}\b")
INTRODUCED = re.compile(
    r"(?:named|called|name was|name is|names were|mr\.|mrs\.|miss|grandma|grandpa|aunt|uncle|king|queen|princess|prince"
    r"|friends?|sister|brother|dog|cat|puppy|kitten|bunny|rabbit|bear|bird|mouse|fish|boy|girl|neighbor|son|daughter"
    r"|twins?|toy|doll|(?-i:[A-Z][a-z]+) (?:and|or))[,:]?\s+$",
    re.IGNORECASE,
)
NO_NAMES = {
    "The", "They", "Then", "There", "This", "That", "These", "Those", "She", "Her", "His", "Him", "You", "Your",
    "Yes", "Not", "Now", "Next", "When", "While", "What", "Where", "Who", "Why", "How", "And", "But", "For",
    "From", "With", "One", "Once", "Two", "Three", "All", "Every", "Everyone", "Everything", "After", "Before",
    "Later", "Soon", "Suddenly", "Finally", "Inside", "Outside", "Mom", "Mommy", "Mum", "Mama", "Dad", "Daddy",
    "Papa", "Grandma", "Grandpa", "Mother", "Father", "Let", "Look", "Please", "Thank", "Thanks", "Sorry",
    "Can", "Could", "Will", "Would", "Did", "Does", "Maybe", "Hello", "Hey", "Goodbye", "Bye", "Wow", "Good",
    "Great", "Come", "Stop", "Help", "Don", "Are", "Was", "Were", "Have", "Has", "Had", "Its", "Our", "Their",
    "Some", "Just", "Even", "Together", "Instead", "Happy", "Sad", "Day", "Sun", "Christmas", "Monday",
    "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "End", "Always", "Never", "Here",
    "Okay", "Also", "Another", "Each", "Many", "Most", "Other", "Both", "Big", "Little", "Well", "Try", "Wait",
    "Time", "First", "Last", "Luckily", "Eventually", "Unfortunately", "Sometimes", "Today", "Tomorrow",
    "Yesterday", "Nobody", "Someone", "Something", "Nothing", "Only", "Remember", "Story", "Being", "Since",
    "Because", "Until", "Which", "Without", "Like", "Back", "Oh", "Ouch", "Hooray", "Yay", "Yum", "Boom",
    "Animals",
}  # fmt: skip
FAMILIAR = {
    "Tim", "Tom", "Lily", "Sara", "Ben", "Mia", "Max", "Sam", "Anna", "Jack", "Lucy", "Timmy", "Sue", "Bob",
    "Amy", "Spot", "Emma", "Mary", "John", "Jane", "Billy", "Jill", "Fluffy", "Kitty", "Benny", "Ella", "Jen",
    "Bella", "Leo", "Nina", "Mark", "Jimmy", "Sally", "Molly", "Rex", "Buddy", "Bobo", "Fin", "Joe", "Mike",
    "Nick", "Zoe", "Alice", "Susie", "Kate", "Rosie", "Charlie", "Annie", "Sophie", "Sarah", "Peter", "Tommy",
    "Jenny", "Johnny", "Lisa", "Olivia", "David",
}  # fmt: skip
"""Names that count wherever they stand; others only if they stand inside of a sentence once."""


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, in small letters and without punctuation."""
    found = (re.sub(r"[^a-z' ]", "", part.lower()).strip() for part in SENTENCE_END.split(text))
    return [sentence for sentence in found if sentence]


def repeats_a_sentence(text: str) -> bool:
    """Tell whether a sentence of some length comes twice."""
    long = (sentence for sentence in sentences(text) if len(sentence.split()) >= SHORTEST_SENTENCE)
    return any(n > 1 for n in Counter(long).values())


def names(text: str) -> list[tuple[int, str]]:
    """Return the names in a text with their places.

    A word with a capital is a name if it is a familiar one, or has one inside of a sentence too, and nowhere stands
    without.
    """
    inside = set(FAMILIAR)
    for match in NAME.finditer(text):
        before = text[: match.start()].rstrip(" ")
        if before and before[-1] not in '.!?":\n' and match[0] not in NO_NAMES:
            inside.add(match[0])
    small = set(re.findall(r"\b[a-z]+\b", text))
    return [(m.start(), m[0]) for m in NAME.finditer(text) if m[0] in inside and m[0].lower() not in small]


def a_name_changes(text: str) -> bool:
    """Tell whether the one whom a story begins with is no longer named in its later half though others are, or
    somebody turns up there who was never introduced.

    Introduced is who is named in the first half, or who first comes after a word such as "named" or "friend".
    """
    half = len(text) // 2
    found = names(text)
    first: dict[str, int] = {}
    for place, name in found:
        first.setdefault(name, place)
    later = {name for place, name in found if place >= half}
    if not later or min(first.values()) >= half:
        return False
    hero = min(first, key=lambda name: first[name])
    return hero not in later or any(
        first[name] >= half and not INTRODUCED.search(text[: first[name]]) for name in later
    )


def mentions(text: str, noun: str) -> bool:
    """Tell whether a text has a noun, in the singular or the plural."""
    stem = re.escape(noun[:-1] if noun.endswith("y") else noun)
    return re.search(rf"\b{stem}(?:y|ies|s|es)?\b", text, re.IGNORECASE) is not None


@dataclass
class Told:
    """A text of a model."""

    prompt: str
    text: str
    """With the prompt, if it is a continuation."""
    ended: bool
    """By itself, not for want of tokens."""
    wanted: Sequence[str] = ()
    """Nouns that were asked for."""
    seed: int = 0


def report(texts: Sequence[Told]) -> dict[str, Any]:
    """Count: of all texts those that end, of these those with each fault, of the requests those that are fulfilled."""
    ended = [told for told in texts if told.ended]
    asked = [told for told in texts if told.wanted]
    counts: dict[str, Any] = {
        "texts": len(texts),
        "end by themselves": len(ended),
        "a name changes": sum(a_name_changes(told.text) for told in ended),
        "a sentence comes twice": sum(repeats_a_sentence(told.text) for told in ended),
    }
    if asked:
        counts["tell of all that was asked for"] = sum(
            all(mentions(told.text, noun) for noun in told.wanted) for told in asked
        )
    return counts


def tell(model: Any, seeds: Sequence[int], max_tokens: int, temperature: float) -> tuple[list[Told], list[Told]]:
    """Return continuations, and answers to requests, one each per seed."""
    template = None if model.info()["chat_template"] else "plain"
    pairs = itertools.cycle(itertools.combinations(TOPICS, 2))
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    continued, answered = [], []
    for seed, pair in zip(seeds, pairs, strict=False):
        out = model.generate(PROMPT, seed=seed, **settings)
        continued.append(Told(PROMPT, PROMPT + out.text, out.finish_reason == "stop", seed=seed))
        request = REQUEST.format(*pair)
        out = model.chat([{"role": "user", "content": request}], template=template, seed=seed, **settings)
        answered.append(Told(request, out.text.strip(), out.finish_reason == "stop", pair, seed))
    return continued, answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="FILE")
    parser.add_argument("--texts", type=int, default=50, metavar="N", help="of each kind (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=300, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="F", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts and all texts")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write the first six of each kind as Markdown")
    args = parser.parse_args()

    import lowbit

    model = lowbit.load(args.model)
    kinds = dict(
        zip(("continuations", "requests"), tell(model, range(1, args.texts + 1), args.max_tokens, args.temperature))
    )
    counts = {kind: report(texts) for kind, texts in kinds.items()}
    print(json.dumps(counts, indent=1))
    if args.json:
        texts = {kind: [vars(told) for told in texts] for kind, texts in kinds.items()}
        args.json.write_text(json.dumps({"counts": counts, "texts": texts}, indent=1) + "\n", encoding="utf-8")
    if args.samples:
        quoted = (
            f"*{told.prompt}* (seed {told.seed})\n\n"
            + "\n".join(f"> {line}".rstrip() for line in told.text.split("\n"))
            for texts in kinds.values()
            for told in texts[:6]
        )
        args.samples.write_text("\n\n".join(quoted) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
