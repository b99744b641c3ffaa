"""Characters that stand for those of a message while names of control tokens are looked for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Unicode's private use planes: characters without a meaning, enough for every character that has one."""


class Disguise:
    """A character of its own for each one that messages hold, as far as it can be part of a name.

    White space stays what it is, since templates strip it, unless a name holds white space too.

    Parameters
    ----------
    names : str
        All names of control tokens, in any order: none of their characters stands for another.
    source : str
        The same for a template.
    """

    def __init__(self, names: str, source: str = "") -> None:
        self.names = names
        self._in_names = frozenset(names)
        taken = self._in_names.union(source)
        self._hide: dict[int, int] = {}
        self.shown: dict[int, str] = {}
        """What code points stand for, for `str.translate`."""
        self._free = (code for code in chain(*_PRIVATE) if chr(code) not in taken and code not in self.shown)

    def hide(self, text: str) -> str:
        """Disguise all characters of a text."""
        for character in set(text):
            if ord(character) not in self._hide and (not character.isspace() or character in self._in_names):
                code = next(self._free, None)
                if code is None:
                    raise ValueError(f"more than {sum(map(len, _PRIVATE))} different characters")
                self._hide[ord(character)] = code
                self.shown[code] = character
        return text.translate(self._hide)

    def show(self, text: str) -> str:
        """Undo `hide`; other characters stay what they are."""
        return text.translate(self.shown)

    def load(self, shown: Iterable[tuple[int, str]]) -> None:
        """Take over what another process gave out, and give none of it out again."""
        for code, character in shown:
            self.shown[code] = character
            self._hide.setdefault(ord(character), code)
