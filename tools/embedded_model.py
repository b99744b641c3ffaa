"""Make the corpus of the embedded model: real stories, and stories sampled from a model that was trained on such.

    python tools/embedded_model.py --stories train.txt --teacher tinystories-3m.TQ2_0.gguf -o corpus.jsonl

`train.txt` holds TinyStories, and the teacher is HKUSTGZ-MICS-LYU/bitllama2.c's 3M model as GGUF. The teacher writes
from nothing but BOS, at temperatures from 0.7 to 1.0; texts that do not end, short ones and repeated ones are dropped.
The real stories count five times. What `lowbit train` then does with the corpus is in the model card.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

import lowbit

STORY_BREAK = re.compile(r"<\|endoftext\|>|\n\s*\n(?=Once upon a time|One day|Once there|There once|In a |A long)")
TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
REPEAT_REAL = 5
SHORTEST_REAL, SHORTEST_SAMPLED = 50, 150


def one_empty_line(story: str) -> str:
    """Part paragraphs by one empty line, however they were parted."""
    return re.sub(r"[ \t]*\n\s*", "\n\n", story.strip())


def real_stories(path: Path) -> list[str]:
    """Read the stories of a file in which blank lines or <|endoftext|> part them."""
    stories = (story.strip() for story in STORY_BREAK.split(path.read_text(encoding="utf-8")))
    return [one_empty_line(story) for story in stories if len(story) > SHORTEST_REAL]


def sampled_stories(teacher: lowbit.Model, n: int) -> Iterator[str]:
    """Let the teacher write n texts; give those that are whole, long enough and new."""
    bos = teacher.tokenizer.bos_id
    assert bos is not None
    seen: set[str] = set()
    for seed in tqdm(range(n), unit="text"):
        out = teacher.generate(
            [bos], max_tokens=teacher.context - 1, temperature=TEMPERATURES[seed % 4], top_k=0, top_p=1.0, seed=seed
        )
        story = one_empty_line(out.text)
        if out.finish_reason == "stop" and len(story) > SHORTEST_SAMPLED and story not in seen:
            seen.add(story)
            yield story


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, required=True, metavar="FILE", help="text of real stories")
    parser.add_argument("--teacher", required=True, metavar="FILE", help="model that writes more of them")
    parser.add_argument("--texts", type=int, default=13_777, metavar="N", help="texts to sample (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="JSONL file to write")
    args = parser.parse_args()
    real = real_stories(args.stories)
    sampled = sampled_stories(lowbit.load(args.teacher), args.texts)
    with open(args.output, "w", encoding="utf-8") as out:
        for story in real * REPEAT_REAL:
            out.write(json.dumps({"text": story}, ensure_ascii=False) + "\n")
        for story in sampled:
            out.write(json.dumps({"text": story}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
