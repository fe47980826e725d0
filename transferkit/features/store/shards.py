"""The parts of a set on disk: immutable shards of rows, and the manifest that lists them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from transferkit.core.documents import parse_json
from transferkit.core.errors import StoreError
from transferkit.core.files import storage_errors, write_json
from transferkit.features.store.spec import FORMAT, KEY_BYTES, FeatureSpec, check_format

__all__ = [
    "MANIFEST",
    "SET",
    "DamagedShard",
    "KeyIndex",
    "Manifest",
    "Shard",
    "ShardContent",
    "State",
    "build_shard",
    "checked_rows",
    "pack_keys",
    "parse_state",
    "read_keys",
    "read_shard",
    "read_state_bytes",
    "write_manifest",
]

SET = "set.json"
MANIFEST = "manifest.json"

Keys = npt.NDArray[np.bytes_]  # (N,) of 40 bytes each; numpy pads such strings with zeros, so equal means equal bytes
_KEYS = np.dtype(f"S{KEY_BYTES}")


class DamagedShard(Exception):
    """A shard is missing or not what the manifest says; the message completes "the shard ..."."""


@dataclass(frozen=True, slots=True)
class Shard:
    """An entry of the manifest: file name, number of rows, size in bytes, hex digest of the content."""

    file: str
    rows: int
    bytes: int
    sha256: str


class ShardContent(NamedTuple):
    """The rows of a shard: keys (N,), features (N, D) float32."""

    keys: Keys
    features: npt.NDArray[np.float32]


def pack_keys(keys: Sequence[bytes]) -> Keys:
    """Return row keys as one array (N,)."""
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"a row key does not have {KEY_BYTES} bytes")
    return np.frombuffer(b"".join(keys), dtype=_KEYS) if len(keys) else np.empty(0, _KEYS)


def checked_rows(rows: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.float32]:
    """Return rows as float32, if they can be stored.

    Raises:
        StoreError: Their shape is not (`count`, D), or they hold NaN or infinity.
    """
    if rows.ndim != 2 or len(rows) != count:
        raise StoreError(f"{count} row keys came with features of shape {rows.shape}, expected ({count}, D)")
    with np.errstate(over="ignore"):  # what is too large for float32 is found just below
        rows = np.asarray(rows, dtype=np.float32)
    positions = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(positions):
        raise StoreError(
            f"{len(positions)} of {count} rows of features hold NaN or infinity, the first at position {positions[0]} "
            "- extract with --precision 32, and check the weights"
        )
    return rows


def build_shard(keys: Keys, features: npt.NDArray[np.float32]) -> tuple[Shard, bytes]:
    """Return a shard's entry and its content, a safetensors file. The name follows from the content."""
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, KEY_BYTES)
    data = save({"features": np.ascontiguousarray(features), "keys": raw})
    digest = hashlib.sha256(data).hexdigest()
    return Shard(_file_name(digest), len(keys), len(data), digest), data


def read_keys(folder: Path, shard: Shard) -> Keys:
    """Read the keys of a shard alone. They are not verified: the digest covers the whole file.

    Raises:
        DamagedShard: They cannot be read.
    """
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size != shard.bytes:  # before the file is mapped: touching what is not there would kill the process
            raise DamagedShard(f"has {size} bytes, expected {shard.bytes}")
        with safe_open(path, framework="np") as stream:
            raw = stream.get_tensor("keys")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DamagedShard(f"cannot be read ({error})") from error
    return _keys_of(raw, shard)


def read_shard(folder: Path, shard: Shard, width: int | None) -> ShardContent:
    """Read a shard whole and verify size, digest, shapes and values.

    Raises:
        DamagedShard: It is missing, or anything differs.
        StorageError: The file is there and the system will not let it be read.
    """
    path = folder / shard.file
    try:
        with storage_errors("read", path):
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise DamagedShard("is missing") from error
        if len(data) != shard.bytes:
            raise DamagedShard(f"has {len(data)} bytes, expected {shard.bytes}")
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise DamagedShard("does not have the recorded sha256")
        tensors = load(data)
        keys, features = _keys_of(tensors["keys"], shard), tensors["features"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedShard(f"holds no rows of features ({error})") from error
    if features.dtype != np.float32 or features.shape != (shard.rows, width):
        raise DamagedShard(
            f"holds {features.dtype} features of shape {features.shape}, expected float32 {(shard.rows, width)}"
        )
    if not np.isfinite(features).all():
        raise DamagedShard("holds NaN or infinity")
    return ShardContent(keys, features)


def _keys_of(raw: npt.NDArray[Any], shard: Shard) -> Keys:
    if raw.dtype != np.uint8 or raw.shape != (shard.rows, KEY_BYTES):
        raise DamagedShard(f"holds {raw.dtype} keys of shape {raw.shape}, expected uint8 {(shard.rows, KEY_BYTES)}")
    return np.ascontiguousarray(raw).view(_KEYS).reshape(-1)


def _file_name(sha256: str) -> str:
    return f"{sha256[:24]}.safetensors"


@dataclass(frozen=True)
class KeyIndex:
    """The place of each row: sorted keys (N,), and for each the position of its shard in `shards` and its row there."""

    shards: tuple[Shard, ...] = ()
    keys: Keys = field(default_factory=lambda: np.empty(0, _KEYS))
    shard: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    row: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def extended(self, added: Sequence[tuple[Shard, Keys]]) -> KeyIndex:
        """Return the index with more shards behind its own."""
        first = len(self.shards)
        keys = np.concatenate([self.keys, *(keys for _, keys in added)])
        shard = np.concatenate([self.shard, *(np.full(len(keys), first + n) for n, (_, keys) in enumerate(added))])
        row = np.concatenate([self.row, *(np.arange(len(keys)) for _, keys in added)])
        # Stable: of a key that is there twice the first counts; and quick, for most of it is sorted already.
        order = np.argsort(keys, kind="stable")
        return KeyIndex((*self.shards, *(entry for entry, _ in added)), keys[order], shard[order], row[order])

    def find(self, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return shard and row of each key; shard -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1), np.zeros(len(keys), np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.shard[at], -1), self.row[at]


@dataclass(frozen=True)
class Manifest:
    """The content of a set: width D (``None`` without rows), shards, hex keys of unreadable pictures with reasons."""

    width: int | None = None
    shards: tuple[Shard, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)

    def without(self, dropped: Collection[Shard]) -> Manifest:
        """Return the manifest with some shards left out."""
        left = tuple(shard for shard in self.shards if shard not in dropped)
        return Manifest(self.width if left else None, left, self.failures)

    @classmethod
    def parse(cls, content: bytes, name: str) -> Self:
        """Read a manifest.

        Raises:
            ValueError: It is damaged.
            StoreError: Its format is newer.
        """
        document = _parse_object(content, name)
        try:
            shards = tuple(Shard(**entry) for entry in document["shards"])
            width, failures = document["width"], dict(document["failures"])
            # File names are followed, and deleted, by name: none may lead out of the folder.
            sound = all(_is_sound(shard) for shard in shards) and (type(width) is int if shards else width is None)
            sound &= all(
                isinstance(reason, str) and len(bytes.fromhex(key)) == KEY_BYTES for key, reason in failures.items()
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"an entry is missing or of another type ({error})") from error
        if not sound or len({shard.file for shard in shards}) < len(shards):
            raise ValueError("an entry cannot be right")
        return cls(width, shards, failures)


def _is_sound(shard: Shard) -> bool:
    counts = type(shard.rows) is int and shard.rows > 0 and type(shard.bytes) is int
    return counts and re.fullmatch("[0-9a-f]{64}", shard.sha256) is not None and shard.file == _file_name(shard.sha256)


def _parse_object(content: bytes, name: str) -> dict[str, Any]:
    document = parse_json(content)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    check_format(document.get("format"), name)
    return document


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place in one step; only under the set's lock. Raises `StorageError`."""
    write_json(folder / MANIFEST, {"format": FORMAT, **asdict(manifest)})


class State(NamedTuple):
    """A set as its two JSON files tell it.

    `spec` is ``None`` where ``set.json`` is missing or damaged, `damaged` names the file that is damaged; the manifest
    is empty then.
    """

    spec: FeatureSpec | None
    manifest: Manifest
    damaged: str | None = None


def read_state_bytes(folder: Path) -> tuple[bytes | None, bytes | None]:
    """Return the content of ``set.json`` and ``manifest.json``, ``None`` for a missing one. Raises `StorageError`."""
    # In the order opposite to writing: who sees a manifest finds the set.json that was there before it, ...
    manifest, description = _read_if_there(folder / MANIFEST), _read_if_there(folder / SET)
    if manifest is not None and description is None:
        # ... unless the whole set was removed in between.
        manifest, description = _read_if_there(folder / MANIFEST), _read_if_there(folder / SET)
    return description, manifest


def _read_if_there(path: Path) -> bytes | None:
    with storage_errors("read", path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def parse_state(folder: Path, description: bytes | None, manifest: bytes | None) -> State:
    """Make sense of what `read_state_bytes` gave.

    Raises:
        StoreError: A newer transferkit wrote it.
    """
    if description is None and manifest is None:
        return State(None, Manifest())
    try:
        spec = FeatureSpec.from_dict(_parse_object(description or b"", str(folder / SET))["spec"])
    except (KeyError, TypeError, ValueError):
        return State(None, Manifest(), SET)
    if spec.folder != folder.name:
        return State(None, Manifest(), SET)
    try:
        return State(spec, Manifest() if manifest is None else Manifest.parse(manifest, str(folder / MANIFEST)))
    except ValueError:
        return State(spec, Manifest(), MANIFEST)
