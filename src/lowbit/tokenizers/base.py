"""What every tokenizer does the same way: special tokens, BOS, decoding. A kind adds its own splitting of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType

from .names import NameSplitter
from .stream import EACH_BYTE, StreamDecoder

MAX_VOCAB_SIZE = 2**20
MAX_PIECES = 3 * 2**17
"""Tokens of a SentencePiece file; published ones have up to 2**18."""
MAX_TOKEN_BYTES = 4096

FILL_IN_MARKERS = frozenset(
    {
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    }
)
"""Those of models of code that fill in: padding, the next repository, the next file."""

# Texts that end a turn, a document or a file in published models. A file often names only one of the several it uses
# as its eos token; without the others the model would talk on past its own end.
END_MARKERS = FILL_IN_MARKERS | frozenset(
    {
        *("</s>", "<eos>", "[EOS]", "[EOT]", "<EOT>", "_<EOT>", "[e~[", "<turn|>", "<|tool_response>"),
        *("<|end|>", "<|call|>", "<|calls|>", "<|flush|>", "<|return|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>"),
        *("<|endoftext|>", "<end_of_turn>", "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>"),
    }
)


def end_markers(names: Container[str]) -> set[str]:
    """Return the end markers among the names of a vocabulary's tokens.

    Two of them mean something else beside others: ``<|end|>`` ends a part of a turn in gpt-oss and Solar, and
    ``</s>`` is a tag of HTML in Gemma.
    """
    found = {marker for marker in END_MARKERS if marker in names}
    calls = found & {"<|call|>", "<|calls|>"}
    if ("<|return|>" in found and calls) or ("<|flush|>" in found and calls):
        found -= {"<|end|>"}
    return found - {"</s>"} if "<eos>" in found else found


class Tokenizer(ABC):
    """Turns text into token ids and back.

    Attributes
    ----------
    vocab_size : int
        Number of tokens; ids run from 0 to vocab_size - 1.
    bos_id, eos_id, unk_id : int or None
        Beginning of sequence, end of sequence, and the token of text that the vocabulary cannot write.
    add_bos : bool
        Whether `encode` puts BOS first unless told otherwise.
    add_eos : bool
        Whether the file asks for EOS after each text; `encode` puts it there only when told to, since a model has
        nothing to add to a text that has ended.
    eos_ids : frozenset of int
        All tokens that end a generation, `eos_id` among them.
    control_ids : frozenset of int
        Tokens that have no text and are never made from text.
    strips : mapping of int to (bool, bool)
        Special tokens whose names swallow the white space to their left and right.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    add_bos: bool
    add_eos: bool = False
    eos_ids: frozenset[int]
    control_ids: frozenset[int]
    strips: Mapping[int, tuple[bool, bool]] = MappingProxyType({})

    def encode(
        self, text: str, add_bos: bool | None = None, parse_special: bool = False, add_eos: bool = False
    ) -> list[int]:
        """Turn text into token ids.

        Parameters
        ----------
        text : str
            Unpaired surrogates count as U+FFFD.
        add_bos : bool, optional
            Begin with BOS, unless the ids begin with it already; None does what the model was trained with.
        parse_special : bool
            Read the names of control tokens, such as ``</s>``, as those tokens. For text made by a chat template;
            in text from a user the names stay ordinary characters.
        add_eos : bool
            End with EOS.

        Returns
        -------
        list of int
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        text = without_surrogates(text)
        ids = self._encode_special(text, {}) if parse_special else self._encode_text(text, True) if text else []
        if add_bos is None:
            add_bos = self.add_bos
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        if add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_template(self, text: str, show: Mapping[int, str]) -> list[int]:
        """Turn text from a chat template into token ids, without adding BOS.

        Parameters
        ----------
        text : str
            Names of control tokens become those tokens.
        show : mapping of int to str
            Code points that stand for others in text from a user, so that no name is found there, and these.
        """
        return self._encode_special(without_surrogates(text), show)

    def _encode_special(self, text: str, show: Mapping[int, str]) -> list[int]:
        """Names of control tokens become those tokens; `show` translates the text between them."""
        if not hasattr(self, "_special"):
            self._special = NameSplitter(self._special_texts(), self.strips)
        ids: list[int] = []
        for part in self._special.split(text):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += self._encode_text(without_surrogates(part.translate(show)), start=not ids)
        return ids

    def special_texts(self) -> list[str]:
        """Return the names that `parse_special` reads as control tokens."""
        return [name for name, token in self._special_texts().items() if token is not None]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn token ids into text; control tokens have none, each invalid UTF-8 byte becomes one U+FFFD."""
        data = bytearray()
        first = True
        try:
            for token in ids:
                data += self.token_bytes(token, first)
                first = first and token in self.control_ids
        except TypeError:
            raise TypeError(f"ids must be token ids (a list of int), not {ids!r:.80}") from None
        return data.decode("utf-8", EACH_BYTE)

    def stream_decoder(self, shown: Mapping[int, bytes] | None = None, first: bool = True) -> StreamDecoder:
        """Return a decoder that takes one token at a time; `shown` and `first` as `StreamDecoder` has them."""
        return StreamDecoder(self, shown, first)

    @abstractmethod
    def token_bytes(self, token: int, first: bool = False) -> bytes:
        """Return the bytes a token stands for, which may be part of a character.

        Parameters
        ----------
        token : int
        first : bool
            It is the first token of the text that is not a control token: SentencePiece drops its leading space.

        Raises
        ------
        ValueError
            If `token` is outside the vocabulary.
        """

    @abstractmethod
    def piece(self, token: int) -> str:
        """Return the token as the vocabulary writes it, for display, such as ``▁the``, ``<0x0A>`` or ``</s>``."""

    @abstractmethod
    def _encode_text(self, text: str, start: bool) -> list[int]:
        """Encode non-empty text that stands at the start of the input, if `start`, or after a control token."""

    @abstractmethod
    def _special_texts(self) -> Mapping[str, int | None]:
        """Return the names of control tokens with their ids, and texts that hide such names (with None)."""

    def _check_id(self, token: int) -> None:
        # A negative id would silently count from the end of a list.
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size} tokens")


def without_surrogates(text: str) -> str:
    """Return text that UTF-8 can write: surrogates in pairs become one character, others U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
