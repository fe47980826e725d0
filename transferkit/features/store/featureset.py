"""One set of the store: rows of one spec, safe to read and write by several processes at once; README.md shows it.

What is not in the manifest is not there, so a writer that dies loses its unfinished shard at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import StorageError, StoreError, TransferkitWarning
from transferkit.core.files import atomic_write, storage_errors, write_json
from transferkit.core.locks import hold, is_read_only, is_writable
from transferkit.features.store.shards import (
    MANIFEST,
    SET,
    DamagedShard,
    KeyIndex,
    Keys,
    Manifest,
    Shard,
    ShardContent,
    build_shard,
    checked_rows,
    pack_keys,
    parse_state,
    read_keys,
    read_shard,
    read_state_bytes,
    write_manifest,
)
from transferkit.features.store.spec import FORMAT, FeatureSpec

__all__ = ["CLAIMS", "LOCK", "FeatureSet"]

LOCK = "lock"
CLAIMS = "claims"

_NO_FAILURES: Mapping[bytes, str] = MappingProxyType({})


class FeatureSet:
    """The rows of one spec. An object serves one thread; any number of objects and processes may share a directory.

    Args:
        path: The set's directory, named ``spec.folder``.
        spec: What its rows are the function of.
    """

    def __init__(self, path: Path, spec: FeatureSpec) -> None:
        self.path = path
        self.spec = spec
        self._locked = False
        self._content: tuple[bytes | None, bytes | None] = (None, None)
        self._state = parse_state(path, None, None)
        self._index = KeyIndex()
        self._bad: set[Shard] = set()  # damaged, and still in a manifest that cannot be written

    @property
    def writable(self) -> bool:
        """Whether rows can be added here, as far as permissions and mount options tell."""
        return is_writable(self.path)

    def manifest(self) -> Manifest:
        """Return what the set holds now; a damaged description or manifest is warned of and counts as empty.

        Raises:
            StoreError: A newer transferkit wrote it.
            StorageError: It cannot be read.
        """
        content = read_state_bytes(self.path)  # whole, for a file's times do not tell two quick changes apart
        if content != self._content:
            self._state = parse_state(self.path, *content)
            self._content = content
            self._bad.clear()
            if self._state.damaged is not None:
                warnings.warn(
                    f"{self.path / self._state.damaged} is damaged, all rows of the set are computed again",
                    TransferkitWarning,
                    stacklevel=3,
                )
        return self._state.manifest

    def width(self) -> int | None:
        """Return D, or ``None`` while there are no rows. Raises as `manifest` does."""
        return self.manifest().width

    def failures(self, keys: Sequence[bytes]) -> dict[int, str]:
        """Return position and reason of each key that is recorded as unreadable. Raises as `manifest` does."""
        known = self.manifest().failures
        return {at: known[key.hex()] for at, key in enumerate(keys) if key.hex() in known} if known else {}

    def read(self, keys: Sequence[bytes], out: npt.NDArray[np.float32]) -> list[int]:
        """Fill ``out[i]`` for every key that the set has.

        Each shard used is read once and verified. One that is damaged is warned of by name and dropped, from the
        manifest too where that can be written; its rows are positions that the set has not.

        Args:
            keys: Row keys (N,), as `row_key` makes them.
            out: (N, D) float32.

        Returns:
            The positions that the set has not, ascending; there `out` is left as it is.

        Raises:
            StoreError: `out` does not have the set's width, or a newer transferkit wrote the set.
            StorageError: A file is there and cannot be read.
        """
        packed = pack_keys(keys)
        missing, changed = np.arange(len(packed)), True
        while changed:
            missing, changed = self._fill(packed, missing, out)
        return [int(at) for at in missing]

    def add(
        self,
        keys: Sequence[bytes],
        rows: npt.NDArray[np.float32],
        failures: Mapping[bytes, str] = _NO_FAILURES,
    ) -> None:
        """Add rows as one shard, and pictures that cannot be read. Of what is there already nothing is written.

        Args:
            keys: Row keys (N,); of a key that comes twice the first row counts.
            rows: (N, D) float32, finite.
            failures: Reason by row key, for pictures that have no row.

        Raises:
            StoreError: Rows hold NaN or infinity, or their width is not the set's. Nothing is written.
            StorageError: The disk is full, read-only or failing. Rows that were there stay.
        """
        packed = pack_keys(keys)
        rows = checked_rows(rows, len(keys))
        if not len(keys) and not failures:
            return
        if not self.writable:
            raise StorageError(f"cannot write to the feature set {str(self.path)!r} - give another --store")
        with self._lock():
            self._create()
            index = self._refresh()
            manifest = self._state.manifest.without(self._bad)
            if len(keys) and manifest.width not in (None, rows.shape[1]):
                raise StoreError(
                    f"{self.path}: rows have {rows.shape[1]} features, the set's have {manifest.width} - the same spec "
                    "must give the same width; remove the set, or give another --store"
                )
            first = np.sort(np.unique(packed, return_index=True)[1])
            fresh = first[index.find(packed[first])[0] < 0]
            self._append(index, manifest, packed[fresh], rows[fresh], failures)
        self.touch()

    @contextlib.contextmanager
    def claim(self, keys: Sequence[bytes], *, wait: bool) -> Iterator[bool]:
        """Say "I am computing these rows" for the time of the block; the system drops it however the process ends.

        After a wait, read the set again: another process may have added the rows meanwhile.

        Args:
            keys: The chunk, in the same order in every process.
            wait: Block until nobody else computes it.

        Yields:
            Whether the chunk is the caller's; ``False`` only without `wait`. A set that cannot be written needs no
            claims: always ``True``.

        Raises:
            StorageError: The disk is full or failing.
        """
        path = self.path / CLAIMS / hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        with contextlib.ExitStack() as stack:
            mine = needless = not self.writable
            if not needless:
                try:
                    self.manifest()
                    if self._state.spec is None:
                        with self._lock():
                            self._create()  # so that `gc` knows what the folder is
                    mine = stack.enter_context(hold(path, wait=wait))
                except StorageError as error:
                    if not is_read_only(error):
                        raise
                    mine = needless = True
            try:
                yield mine
            finally:
                if mine and not needless:
                    # Should two processes come to hold one claim by this, nothing goes wrong: each reads the set
                    # again after it has got the claim, and `add` leaves out what is there.
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)

    def touch(self) -> None:
        """Mark the set as used now, where that can be written."""
        with contextlib.suppress(OSError):
            os.utime(self.path / SET)

    def _refresh(self) -> KeyIndex:
        """Bring the index up to the manifest; only keys of shards that are new to it are read."""
        while True:
            manifest = self.manifest()
            shards = tuple(shard for shard in manifest.shards if shard not in self._bad)
            known = len(self._index.shards)
            index = self._index if shards[:known] == self._index.shards else KeyIndex()
            added: list[tuple[Shard, Keys]] = []
            for shard in shards[len(index.shards) :]:
                try:
                    added.append((shard, read_keys(self.path, shard)))
                except DamagedShard:
                    content = self._recheck(shard, manifest.width)
                    if content is None:
                        break  # the list has changed
                    added.append((shard, content.keys))
            else:
                self._index = index.extended(added) if added else index
                return self._index

    def _fill(
        self, keys: Keys, positions: npt.NDArray[np.int64], out: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], bool]:
        """Fill ``out[positions]``; return the positions left over, and whether to look for their rows again."""
        index, width, changed = self._refresh(), self._state.manifest.width, False
        shard, row = index.find(keys[positions])
        if (shard >= 0).any() and (out.shape != (len(keys), width) or out.dtype != np.float32):
            raise StoreError(
                f"{self.path}: features go into {out.dtype} {out.shape}, expected float32 {(len(keys), width)} - "
                "the backbone's width is not that of its stored features"
            )
        order = np.argsort(shard, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            if not len(group) or shard[group[0]] < 0:
                continue
            entry, at = index.shards[shard[group[0]]], positions[group]
            try:
                content = read_shard(self.path, entry, width)
            except DamagedShard:
                self._recheck(entry, width)
                content = None
            if content is not None and np.array_equal(content.keys[row[group]], keys[at]):
                out[at] = content.features[row[group]]
                continue
            shard[group] = -1
            # The index has its keys from a damaged file, and they may hide rows of another shard.
            self._index, changed = KeyIndex(), True
        return positions[shard < 0], changed

    def _recheck(self, shard: Shard, width: int | None) -> ShardContent | None:
        """Look again at a shard that seems damaged, with writers shut out where possible; drop it if it is.

        Another process may have dropped it, or written it anew under the same name.
        """
        with contextlib.ExitStack() as stack:
            locked = False
            if self.writable and self.path.is_dir():
                with contextlib.suppress(StorageError):
                    stack.enter_context(self._lock())
                    locked = True
            if shard not in self.manifest().shards:
                return None
            try:
                return read_shard(self.path, shard, width)
            except DamagedShard as error:
                reason = str(error)
            self._bad.add(shard)
            if locked:
                with contextlib.suppress(StorageError, OSError):
                    write_manifest(self.path, self._state.manifest.without([shard]))
                    (self.path / shard.file).unlink(missing_ok=True)
        warnings.warn(
            f"{self.path / shard.file} is damaged, its {shard.rows} rows are computed again: it {reason}",
            TransferkitWarning,
            stacklevel=4,
        )
        return None

    def _create(self) -> None:
        """Describe the set; only under the lock."""
        self.manifest()
        if self._state.spec is None:
            with storage_errors("replace", self.path / MANIFEST):
                (self.path / MANIFEST).unlink(missing_ok=True)  # of a damaged set: must not come to count again
            write_json(self.path / SET, {"format": FORMAT, "spec": self.spec.to_dict()})

    def _append(
        self,
        index: KeyIndex,
        manifest: Manifest,
        keys: Keys,
        rows: npt.NDArray[np.float32],
        failures: Mapping[bytes, str],
    ) -> None:
        """Write a shard, then the manifest; only under the lock."""
        reasons = dict(manifest.failures)
        has_row = index.find(pack_keys(list(failures)))[0] >= 0
        reasons.update((key.hex(), failures[key]) for key, has in zip(failures, has_row, strict=True) if not has)
        for key in keys.view(np.uint8).reshape(-1, keys.itemsize):
            reasons.pop(key.tobytes().hex(), None)
        shards, width = manifest.shards, manifest.width
        if len(keys):
            shard, data = build_shard(keys, rows)
            # The same name stands for the same content: a damaged file is replaced by a good one.
            shards, width = (*(other for other in shards if other != shard), shard), rows.shape[1]
        changed = Manifest(width, shards, reasons)
        if changed == manifest:
            return
        try:
            if len(keys):
                atomic_write(self.path / shard.file, data)
            write_manifest(self.path, changed)
        except BaseException:
            with contextlib.suppress(StorageError, StoreError, OSError):
                if len(keys) and shard not in self.manifest().shards:
                    (self.path / shard.file).unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Shut other writers out for the time of the block; may be nested."""
        if self._locked:
            yield
            return
        with hold(self.path / LOCK, wait=True):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False
