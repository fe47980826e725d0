"""The feature store: a directory of feature sets, addressed by content (rule 5). README.md says why it is as it is."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from transferkit.core.errors import StorageError, StoreError
from transferkit.core.files import storage_errors, user_cache, user_path
from transferkit.core.locks import nearest_existing
from transferkit.features.store.featureset import FeatureSet
from transferkit.features.store.shards import parse_state, read_state_bytes
from transferkit.features.store.spec import FeatureSpec

__all__ = ["FeatureSet", "FeatureStore"]

_RESERVE = 64 * 2**20  # bytes that stay free: manifests grow, and other programs want to live


class FeatureStore:
    """A directory of feature sets. Making one creates nothing.

    Args:
        root: The directory; ``None`` for ``features`` in the user's cache.
        stays_open: Give the same object for the same spec each time, whose keys are read once: for one thread.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, stays_open: bool = False) -> None:
        self.root = user_cache() / "features" if root is None else Path(user_path(os.fspath(root)))
        self._open: dict[str, FeatureSet] | None = {} if stays_open else None

    def open(self, spec: FeatureSpec) -> FeatureSet:
        """Return the set of a spec. Creates nothing before the first write."""
        if self._open is None:
            return FeatureSet(self.root / spec.folder, spec)
        return self._open.setdefault(spec.key, FeatureSet(self.root / spec.folder, spec))

    def sets(self) -> list[FeatureSet]:
        """Return every readable set, sorted by folder name.

        Raises:
            StorageError: The root cannot be read.
        """
        with storage_errors("list", self.root):
            folders = sorted(path for path in self.root.iterdir() if path.is_dir()) if self.root.exists() else []
        sets = []
        for folder in folders:
            with contextlib.suppress(StoreError):  # a newer transferkit's
                spec = parse_state(folder, *read_state_bytes(folder)).spec
                if spec is not None:
                    sets.append(FeatureSet(folder, spec))
        return sets

    def require_space(self, nbytes: int) -> None:
        """Refuse work whose result the disk has no room for; a reserve of 64 MiB is kept.

        Args:
            nbytes: What will be written.

        Raises:
            StorageError: Less is free.
        """
        with storage_errors("look for free space at", self.root):
            free = shutil.disk_usage(nearest_existing(self.root)).free
        if free < nbytes + _RESERVE:
            raise StorageError(
                f"the feature store {str(self.root)!r} needs {nbytes:,} bytes and a reserve of {_RESERVE:,}, the disk "
                f"has {free:,} free - free some space, or give another --store"
            )
