"""Finding the names of special tokens in text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# Unicode's White_Space, which is not quite what Python's str.strip takes for it.
_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACE_RUN = re.compile(f"[{_SPACES}]*")


class NameSplitter:
    """Split text at names; where several fit, the longest one is taken.

    Parameters
    ----------
    names : mapping of str to int or None
        Tokens by name. The name of None is text: it is not split out, but hides names inside of it.
    strips : mapping of int to (bool, bool), optional
        Tokens that swallow the white space to their left and right.
    """

    def __init__(self, names: Mapping[str, int | None], strips: Mapping[int, tuple[bool, bool]] | None = None) -> None:
        self._names = {name: token for name, token in names.items() if name}
        self._strips = dict(strips or {})
        lengths: dict[str, set[int]] = {}
        for name in self._names:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {letter: sorted(found, reverse=True) for letter, found in lengths.items()}
        self._start = re.compile("[" + "".join(map(re.escape, lengths)) + "]") if lengths else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield text, which may be empty, and tokens in turn."""
        if self._start is None:
            yield text
            return
        done = at = 0
        while candidate := self._start.search(text, at):
            at = candidate.start()
            for length in self._lengths[text[at]]:
                name = text[at : at + length]
                if name in self._names:
                    token = self._names[name]
                    if token is not None:
                        left, right = self._strips.get(token, (False, False))
                        yield text[done:at].rstrip(_SPACES) if left else text[done:at]
                        yield token
                        done = at = at + length
                        if right and (run := _SPACE_RUN.match(text, at)):
                            done = at = run.end()
                    else:
                        at += length
                    break
            else:
                at += 1
        yield text[done:]
