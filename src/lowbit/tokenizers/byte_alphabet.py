"""GPT-2's alphabet, in which byte-level vocabularies write bytes as printable characters."""

from __future__ import annotations


def _alphabet() -> dict[int, str]:
    # Printable bytes of Latin-1 stand for themselves, the others for U+0100, U+0101, ... in their order.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)}


BYTE_TO_LETTER = _alphabet()
TEXT_LETTERS = frozenset(letter for byte, letter in BYTE_TO_LETTER.items() if byte not in (0xC0, 0xC1) and byte < 0xF5)
"""Letters of the bytes that occur in UTF-8."""

_LETTER_TO_BYTE = {letter: byte for byte, letter in BYTE_TO_LETTER.items()}
_LATIN_1_TO_LETTER = str.maketrans({chr(byte): letter for byte, letter in BYTE_TO_LETTER.items()})


def to_bytes(token: str) -> bytes | None:
    """Return the bytes that a token stands for; None if not all of its characters are letters of the alphabet."""
    try:
        return bytes([_LETTER_TO_BYTE[letter] for letter in token])
    except KeyError:
        return None


def to_letters(data: bytes) -> str:
    """Write bytes in the alphabet."""
    return data.decode("latin-1").translate(_LATIN_1_TO_LETTER)
