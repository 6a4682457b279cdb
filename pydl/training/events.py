"""TensorBoard's event files, written without TensorBoard: scalars and pictures are a few bytes of protobuf each.

A file is a sequence of records: length, checksum of the length, event, checksum of the event (CRC-32C, rotated and
offset). An event holds a time, a step and a summary of (tag, value) pairs.
"""

import os
import socket
import struct
import time
from pathlib import Path


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(byte)
    return table


_TABLE = _crc_table()


def _masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _field(number, value):
    """One protobuf field: bytes and text by length, ints as varints, floats in 8 bytes."""
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _scalar(tag, value):
    return _field(1, _field(1, tag) + _varint(2 << 3 | 5) + struct.pack("<f", value))


def _picture(tag, png, height, width):
    return _field(1, _field(1, tag) + _field(4, _field(1, height) + _field(2, width) + _field(3, 4) + _field(4, png)))


class Events:
    """An event file of its own in ``folder``, made when the first event is written."""

    def __init__(self, folder):
        self.folder, self.path = Path(folder), None

    def _write(self, event):
        now = time.time()
        records = [_field(1, now) + event]
        if self.path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = self.folder / f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}"
            records.insert(0, _field(1, now) + _field(3, "brain.Event:2"))
        with open(self.path, "ab") as file:
            for record in records:
                length = struct.pack("<Q", len(record))
                file.write(length + struct.pack("<I", _masked_crc(length)))
                file.write(record + struct.pack("<I", _masked_crc(record)))

    def scalars(self, step, values):
        """Writes a dict of tag to number at ``step``."""
        self._write(_field(2, step) + _field(5, b"".join(_scalar(tag, value) for tag, value in values.items())))

    def picture(self, step, tag, path):
        """Writes the PNG file at ``path``."""
        png = Path(path).read_bytes()
        width, height = struct.unpack(">II", png[16:24])  # the first chunk of every PNG starts with its size
        self._write(_field(2, step) + _field(5, _picture(tag, png, height, width)))
