"""A log for TensorBoard: its event file is a row of records, each a small protobuf message with two checksums."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import LowbitError
from ..tokenizers.modelproto import bytes_field, encode_varint

TAGS = {
    "loss": "loss/nats_per_token", "bits_per_byte": "loss/bits_per_byte", "rate": "schedule/learning_rate",
    "epoch": "schedule/epoch", "norm": "gradient/norm",
}  # fmt: skip
"""Of the values of a record of `lowbit.train.loop.fit`."""


def _crc_table() -> list[int]:
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of some bytes, turned and moved as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _event(step: int, content: bytes) -> bytes:
    """Return a record with an Event: wall_time = 1, step = 2, and the content."""
    event = b"\x09" + struct.pack("<d", time.time()) + b"\x10" + encode_varint(step) + content
    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", masked_crc(length)) + event + struct.pack("<I", masked_crc(event))


class EventLog:
    """Writes what happened so far, and then adds record by record.

    Parameters
    ----------
    folder : for TensorBoard's --logdir
    history : records of an earlier part of the run
    """

    def __init__(self, folder: Path, history: Iterable[Mapping[str, float]] = ()) -> None:
        self.path = folder / "events.out.tfevents.0.lowbit"
        self._file = open(self.path, "wb", buffering=0)
        self._write(_event(0, bytes_field(3, b"brain.Event:2")))
        for record in history:
            self(record)

    def __call__(self, record: Mapping[str, float]) -> None:
        """Add a record of `lowbit.train.loop.fit`."""
        values = b"".join(
            bytes_field(1, bytes_field(1, tag.encode()) + b"\x15" + struct.pack("<f", record[key]))
            for key, tag in TAGS.items()
            if key in record
        )
        self._write(_event(int(record["step"]), bytes_field(5, values)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        try:
            self._file.write(event)
        except OSError as error:
            raise LowbitError(f"{self.path}: cannot write the log: {error.strerror or error}") from None
