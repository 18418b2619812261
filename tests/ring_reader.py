#!/usr/bin/env python3
"""Reads a ring file without any code of ringmx: standard library only.

    ring_reader.py RING            one JSON object per message, oldest first
    ring_reader.py RING --eml DIR  one file per message, NUMBER.eml, its exact octets
    ring_reader.py RING --raw N    the exact octets of message N
    ring_reader.py RING --check NAME  one line per message, as in tests/golden/messages.txt

Written from docs/ring-log.md. Exit code 1 when something before the checkpoint is damaged.
"""

import base64
import json
import os
import struct
import sys

SUPERBLOCK_MAGIC = b"\x89rMx\r\n\x1a\n"
RECORD_MAGIC = b"rMx\x1e"
MESSAGE, PAD, FIRST, MIDDLE, LAST, EPOCH = range(1, 7)


def crc32c_table():
    table = []
    for index in range(256):
        value = index
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = crc32c_table()


def crc32c(data):
    value = 0xFFFFFFFF
    table = TABLE
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


class Ring:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = file.read()
        best = None
        for offset in (0, 8192):
            block = self.bytes[offset : offset + 4096]
            if block[:8] != SUPERBLOCK_MAGIC:
                continue
            (crc,) = struct.unpack_from("<I", block, 8)
            if crc != crc32c(block[12:]):
                continue
            major, _minor, incompatible = struct.unpack_from("<HHI", block, 12)
            if major != 1 or incompatible != 0:
                raise SystemExit("newer format")
            (generation,) = struct.unpack_from("<Q", block, 56)
            if best is None or best[0] < generation:
                best = (generation, block)
        if best is None:
            raise SystemExit("no valid superblock")
        block = best[1]
        self.ring_id = block[32:48]
        (self.key,) = struct.unpack_from("<Q", block, 48)
        self.data_offset, self.data_size, self.tail = struct.unpack_from("<QQQ", block, 64)
        (self.checkpoint,) = struct.unpack_from("<Q", block, 96)

    def read(self, position, length):
        out = bytearray()
        while len(out) < length:
            place = (position + len(out)) % self.data_size
            part = min(length - len(out), self.data_size - place)
            start = self.data_offset + place
            out += self.bytes[start : start + part]
        return bytes(out)

    def record(self, position, previous):
        """The record at a position, or None: header fields, payload and the position behind it."""
        raw = self.read(position, 64)
        if raw[:4] != RECORD_MAGIC or struct.unpack_from("<I", raw, 4)[0] != crc32c(raw[8:]):
            return None
        key, pos, number, length, crc, epoch = struct.unpack_from("<QQQIII", raw, 8)
        kind = raw[44]
        env_len, _hint, received_ns = struct.unpack_from("<IIQ", raw, 48)
        if key != self.key or pos != position or kind == 0 or kind > 31:
            return None
        end = position + 64 + (length + 63) // 64 * 64
        if end > self.tail + self.data_size:
            return None
        if previous and (
            number < previous["number"]
            or epoch < previous["epoch"]
            or received_ns < previous["received_ns"]
        ):
            return None
        payload = self.read(position + 64, length)
        if kind != PAD and crc32c(payload) != crc:
            return None
        return {
            "kind": kind,
            "number": number,
            "epoch": epoch,
            "received_ns": received_ns,
            "env_len": env_len,
            "position": position,
            "payload": payload,
            "end": end,
        }

    def messages(self):
        position, previous, parts = self.tail, None, None
        self.damaged = []
        while True:
            record = self.record(position, previous)
            if record is None:
                if position >= self.checkpoint:
                    return
                self.damaged.append(position)
                previous = None  # What is open stays so: LAST tells whether it is whole.
                while position < self.checkpoint and self.record(position, None) is None:
                    position += 64
                continue
            previous, position = record, record["end"]
            if parts and parts[0]["epoch"] < record["epoch"]:
                parts = None
            kind, payload = record["kind"], record["payload"]
            if kind == MESSAGE:
                yield record, payload
            elif kind == FIRST:
                parts = [record]
            elif kind == MIDDLE and parts:
                parts.append(record)
            elif kind == LAST and parts:
                number, first, size, count, crc = struct.unpack_from("<QQQII", payload, 0)
                whole = b"".join(part["payload"] for part in parts) + payload[32:]
                if (
                    number == parts[0]["number"]
                    and first == parts[0]["position"]
                    and size == len(whole)
                    and count == len(parts) + 1
                    and crc == crc32c(whole)
                ):
                    yield parts[0], whole
                parts = None


def fields(envelope):
    at = 0
    while at < len(envelope):
        if envelope[at] == 0:
            at += 1
            continue
        kind, length = struct.unpack_from("<BH", envelope, at)
        yield kind, envelope[at + 3 : at + 3 + length]
        at += 3 + length


def text(value):
    return value.decode("utf-8", "replace")


def describe(ring, record, payload):
    envelope, body = payload[: record["env_len"]], payload[record["env_len"] :]
    out = {
        "number": record["number"],
        "ring_id": ring.ring_id.hex(),
        "received_ns": record["received_ns"],
        "octets": len(body),
        "reverse_path": None,
        "helo": None,
        "recipients": [],
        "message_base64": base64.b64encode(body).decode("ascii"),
    }
    for kind, value in fields(envelope):
        if kind == 5:
            out["helo"] = text(value)
        elif kind == 8:
            out["reverse_path"] = text(value)
        elif kind == 10:
            out["recipients"].append(text(value))
    return out


def main(arguments):
    ring = Ring(arguments[0])
    option = arguments[1:]
    for record, payload in ring.messages():
        body = payload[record["env_len"] :]
        if not option:
            print(json.dumps(describe(ring, record, payload)))
        elif option[0] == "--eml":
            os.makedirs(option[1], exist_ok=True)
            with open(os.path.join(option[1], "%d.eml" % record["number"]), "wb") as file:
                file.write(body)
        elif option[0] == "--check":
            numbers = (record["number"], record["position"], record["received_ns"])
            numbers += (record["env_len"], len(body))
            print(option[1], *numbers, "%08x" % crc32c(payload))
        elif option[0] == "--raw" and record["number"] == int(option[1]):
            sys.stdout.buffer.write(body)
    return 1 if ring.damaged else 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 4):
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1:]))
