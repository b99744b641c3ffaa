"""Let an instruct model write stories for `lowbit train`, many at once, and keep those that a child could be told.

    python tools/sample_stories.py SmolLM2-135M-Instruct.gguf --like corpus.jsonl --texts 4000 -o sampled.jsonl

Each story is asked for by two nouns of the corpus. Kept is what ends by itself, is without the faults that
`story_corpus.py` looks for, uses the words of the corpus, tells of both nouns, repeats no sentence, and does not
surprise the judge (a model trained on such stories) too much. Prompt, seed and reason are counted in
OUTPUT.counts.json. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from story_check import mentions, repeats_a_sentence
from story_corpus import clean, fault, find_nouns, words

PROMPTS = (
    "Write a short story for a three year old child about {} and {}. Use only simple words and short sentences.",
    "Tell a very short bedtime story with {} and {} in it. Use easy words. Give the hero a name.",
    "Write a short story for small children in which somebody finds {} and meets {}. It should end well.",
    "Write a short story for small children about {} and {}. In the end somebody learns something.",
)
REQUEST = "Tell me a story about {} and {}."
STRANGE_SHARE = 0.02
"""Of the words; a story with more that the corpus has not is not for this model."""
COMMON_NOUN = 40
"""Stories of the corpus that a noun must be in to be asked for."""


def corpus_stories(path: Path) -> list[str]:
    """Return the stories of a corpus that `story_corpus.py` has made."""
    entries = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [entry["messages"][-1]["content"] if "messages" in entry else entry["text"] for entry in entries]


class Judge:
    """Says what is wrong with a story that a model has written.

    Parameters
    ----------
    stories : the corpus that it is to be like
    model : measures how surprising a story is, or None
    most_bits : bits per byte that are not too surprising
    """

    def __init__(self, stories: Sequence[str], model: Any = None, most_bits: float = 1.2) -> None:
        in_stories = Counter(word for story in stories for word in set(words(story)))
        self.known = {word for word, n in in_stories.items() if n > 1}
        self.nouns = {noun: asked for noun, asked in find_nouns(stories).items() if in_stories[noun] >= COMMON_NOUN}
        """Each as one asks for it."""
        self.model, self.most_bits = model, most_bits
        self.seen: set[str] = set()

    def __call__(self, story: str, ended: bool, wanted: Sequence[str]) -> str | None:
        """Return the reason to drop a story, or None."""
        if not ended:
            return "does not end"
        reason = fault(story)
        if reason:
            return reason
        if repeats_a_sentence(story):
            return "repeats itself"
        said = words(story)
        if sum(word not in self.known for word in said) > STRANGE_SHARE * len(said):
            return "strange words"
        if not all(mentions(story, noun) for noun in wanted):
            return "does not tell of what was asked for"
        if story in self.seen:
            return "a duplicate"
        self.seen.add(story)
        if self.model is not None and self.model.perplexity(story).bits_per_byte > self.most_bits:
            return "surprising"
        return None


def sample(
    model: Any, judge: Judge, seeds: Sequence[int], together: int
) -> Iterator[tuple[int, str, list[str], str | None]]:
    """Yield seed, story, the nouns asked for, and the reason to drop it or None."""
    from lowbit.chat import find_template, render

    template = find_template({"tokenizer.chat_template": model.info()["chat_template"]}, model.tokenizer)
    for begin in range(0, len(seeds), together):
        group = seeds[begin : begin + together]
        asked = [random.Random(seed).sample(sorted(judge.nouns), 2) for seed in group]
        prompts = [
            render(
                [{"role": "user", "content": PROMPTS[seed % len(PROMPTS)].format(*map(judge.nouns.get, nouns))}],
                {}, model.tokenizer, template,
            )
            for seed, nouns in zip(group, asked, strict=True)
        ]  # fmt: skip
        told = model.generate(prompts, max_tokens=400, temperature=0.8, top_p=0.95, seed=group[0])
        for seed, nouns, out in zip(group, asked, told, strict=True):
            story = clean(out.text)
            yield seed, story, nouns, judge(story, out.finish_reason == "stop", nouns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="FILE", help="instruct model")
    parser.add_argument("--like", type=Path, required=True, metavar="FILE", help="corpus of story_corpus.py")
    parser.add_argument("--judge", metavar="FILE", help="model whose surprise is measured (default: none)")
    parser.add_argument("--most-bits", type=float, default=1.2, metavar="F", help="per byte (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=1000, metavar="N", help="to sample (default: %(default)s)")
    parser.add_argument("--together", type=int, default=8, metavar="N", help="texts at once (default: %(default)s)")
    parser.add_argument("-t", "--threads", type=int, metavar="N")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="JSONL file to write")
    args = parser.parse_args()

    import lowbit

    notes = Path(f"{args.output}.counts.json")
    counts = (
        json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {"next seed": 0, "kept": 0, "dropped": {}}
    )
    judge = Judge(
        corpus_stories(args.like), lowbit.load(args.judge, threads=args.threads) if args.judge else None, args.most_bits
    )
    if args.output.exists():
        judge.seen = set(corpus_stories(args.output))
    seeds = range(counts["next seed"], args.texts)
    with open(args.output, "a", encoding="utf-8") as out:
        for seed, story, nouns, reason in sample(
            lowbit.load(args.model, threads=args.threads), judge, seeds, args.together
        ):
            if reason is None:
                request = REQUEST.format(*map(judge.nouns.get, nouns))
                messages = [{"role": "user", "content": request}, {"role": "assistant", "content": story}]
                out.write(json.dumps({"messages": messages, "seed": seed}, ensure_ascii=False) + "\n")
                counts["kept"] += 1
            else:
                counts["dropped"][reason] = counts["dropped"].get(reason, 0) + 1
            if (seed + 1) % args.together == 0 or seed + 1 == args.texts:
                out.flush()
                notes.write_text(json.dumps({**counts, "next seed": seed + 1}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(counts, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
