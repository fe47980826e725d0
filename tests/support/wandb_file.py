"""Records of a W&B run as W&B wrote them to disk: LevelDB's log format behind a header of seven bytes."""

from __future__ import annotations

import json
import struct

BLOCK, HEADER, MAGIC = 32768, 7, b":W&B"


def records(path):
    """Return the protocol buffers of a ``.wandb`` file, each with the name of its kind."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), HEADER, b""
    assert data.startswith(MAGIC)
    found = []
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        body, at = data[at + HEADER : at + HEADER + length], at + HEADER + length
        part = body if kind in (1, 2) else part + body  # whole or first; middle, last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            name = record.WhichOneof("record_type")
            found.append((name, getattr(record, name)))
    return found


def values(items):
    """Return the items of a history or configuration by name, as Python values."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
