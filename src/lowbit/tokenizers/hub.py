"""The small JSON files around a tokenizer in a model folder: names of BOS and EOS, and what ends a generation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..formats.files import named, reading
from ..formats.folder import inside

_MAX_BYTES = 16 << 20
_MAX_QUOTES, _MAX_LISTS, _MAX_OBJECTS = 1 << 22, 3 << 18, 1 << 16
"""What makes parsed JSON larger than its text. The largest vocabularies have three million quotes, half a million
merges that may each be a list of two texts, and some thousand added tokens, which are objects."""
_ADDED = "added_tokens.json"
_FILES = (_ADDED, "special_tokens_map.json", "tokenizer_config.json", "config.json", "generation_config.json")


@dataclass
class Settings:
    """What a model folder says about its tokenizer; None and empty where it says nothing."""

    bos: str | None = None
    eos: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    eos_ids: set[int] = field(default_factory=set)
    added: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """Names of added tokens by id, and whether they are special."""
    rows: int | None = None
    """Number of tokens that the model has."""


def read_settings(folder: Path) -> Settings:
    """Read the files that are there.

    Raises
    ------
    FormatError
        If one is not a JSON object, is larger than 16 MiB, or is a link that leads out of the folder.
    """
    settings = Settings()
    for name in _FILES:
        with named(str(folder)):
            path = inside(folder, name)
        if not path.is_file():
            continue
        with reading(str(path)), open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise FormatError(f"{path}: is larger than {_MAX_BYTES} bytes")
        values = parse_json(data, str(path))
        if name == _ADDED:
            settings.added.update({i: (text, _looks_special(text)) for text, i in values.items() if text and _is_id(i)})
        elif name in _FILES[1:3]:
            settings.bos = _name(values.get("bos_token")) or settings.bos
            settings.eos = _name(values.get("eos_token")) or settings.eos
            if isinstance(values.get("add_bos_token"), bool):
                settings.add_bos = values["add_bos_token"]
            if isinstance(values.get("add_eos_token"), bool):
                settings.add_eos = values["add_eos_token"]
            settings.added.update(_added(values.get("added_tokens_decoder")))
        else:
            ends = values.get("eos_token_id")
            settings.eos_ids.update(i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int)
            for part in (values, values.get("text_config")):
                if isinstance(part, dict) and type(part.get("vocab_size")) is int:
                    settings.rows = part["vocab_size"]
    return settings


def parse_json(data: bytes, path: str) -> dict[str, Any]:
    """Return a JSON object, or raise FormatError."""
    quotes, lists = data.count(b'"'), data.count(b"[")
    if quotes > _MAX_QUOTES or data.count(b"{") > _MAX_OBJECTS or lists > min(_MAX_LISTS, _MAX_OBJECTS + quotes // 4):
        raise FormatError(f"{path}: has too many entries")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {' '.join(str(error).split())[:100]}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: is not a JSON object")
    return value


def _name(token: Any) -> str | None:
    """Return the text of a token, which may stand alone or in an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _looks_special(text: str) -> bool:
    """The file says no more than a name; llama.cpp tells by it, too."""
    return text.startswith("<|") and text.endswith("|>")


def _added(table: Any) -> dict[int, tuple[str, bool]]:
    found: dict[int, tuple[str, bool]] = {}
    for key, token in table.items() if isinstance(table, dict) else ():
        name = _name(token)
        if key.isascii() and key.isdigit() and len(key) < 10 and name:
            found[int(key)] = (name, isinstance(token, dict) and token.get("special") is True)
    return found
