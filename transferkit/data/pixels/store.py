"""Decoded pictures by the content of their files, and how memory and disk share the work of keeping them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from transferkit.core.records import DataConfig
from transferkit.data.images.decode import Pixels
from transferkit.data.images.reading import ReadResult
from transferkit.data.pixels.disk import DiskPixels
from transferkit.data.pixels.memory import MemoryPixels
from transferkit.data.pixels.spec import PixelSpec

__all__ = ["PixelStore", "open_pixels", "read_pixels"]


class PixelStore:
    """Decoded pictures by the content of their files: in memory, and on disk those that do not fit there.

    Several threads may use it at once. Another process that it is handed to gets what is in memory without a copy.

    Args:
        spec: How they are decoded.
        memory: The first place.
        disk: The second; ``None`` for none.
    """

    def __init__(self, spec: PixelSpec, memory: MemoryPixels, disk: DiskPixels | None = None) -> None:
        self.spec, self.memory, self.disk = spec, memory, disk

    @property
    def room(self) -> int:
        """Bytes of memory that are left for pictures."""
        return self.memory.room

    def serves(self, config: DataConfig) -> bool:
        """Whether pictures that are prepared like this are decoded as these are."""
        return self.spec == PixelSpec.of(config.decode_side, config.decoding)

    def get(self, sha256: str) -> Pixels | None:
        """Return a picture, ``(H, W, C) uint8``, read-only; ``None`` where it is not kept.

        Args:
            sha256: Hex digest of its file's bytes.
        """
        pixels = self.memory.get(sha256)
        return self.disk.get(sha256) if pixels is None and self.disk is not None else pixels

    def put(self, sha256: str, pixels: Pixels) -> Pixels | None:
        """Keep a picture where there is room for it; return it as it lies in memory, ``None`` where it does not.

        Args:
            sha256: Hex digest of its file's bytes.
            pixels: ``(H, W, C) uint8``, as it was decoded; only to be read from now on.
        """
        view = self.memory.put(sha256, pixels)
        if view is None and self.disk is not None:
            self.disk.put(sha256, pixels)
        return view

    def put_of_all(self, sha256: str, pixels: Pixels) -> Pixels | None:
        """Keep a picture, as `put`, where each process of this machine meets all pictures: the first alone writes."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            return self.put(sha256, pixels)
        return self.memory.put(sha256, pixels)

    @property
    def private(self) -> bool:
        """Whether memory is this process's own: what a worker decodes is lost to the others."""
        return self.room > 0 and not self.memory.shared

    def reserve(self, results: Iterable[ReadResult]) -> None:
        """Reserve memory for pictures that are known to be good and were not read: the first epoch decodes them."""
        for result in results:
            if result.pixels is None and result.sha256 is not None and result.shape is not None:
                self.memory.reserve(result.sha256, *result.shape)

    def flush(self) -> None:
        """Write down what waits to be written."""
        if self.disk is not None:
            self.disk.flush()


def open_pixels(config: DataConfig, *, memory: int, disk: int) -> PixelStore:
    """Return the place for pictures that are prepared in one way.

    Args:
        config: The way.
        memory: Bytes of them in memory at most.
        disk: Bytes of the whole pixel store on disk at most; 0 for none.
    """
    spec = PixelSpec.of(config.decode_side, config.decoding)
    return PixelStore(spec, MemoryPixels(memory, config.channels), DiskPixels(spec, disk) if disk else None)


def read_pixels(config: DataConfig) -> PixelStore:
    """Return the pictures on disk that were decoded for this way of preparing them, by a training; none is added."""
    spec = PixelSpec.of(config.decode_side, config.decoding)
    return PixelStore(spec, MemoryPixels(0, config.channels), DiskPixels(spec, 0))
