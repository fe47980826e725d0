"""The facts that decoded pixels are a function of, besides the bytes of their file: the key of a set."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, Self

from transferkit.core.records import USUAL, Decoding

__all__ = ["FORMAT", "PixelSpec"]

FORMAT: Final = 1
"""Of the files, and of the rules by which pictures are decoded: part of every key. Another number where they change."""

_LIBRARIES: Final = ("libjpeg_turbo", "jpg", "webp", "avif", "libtiff")
"""What Pillow decodes with: wheels and distributions link different ones into one version of Pillow."""


@dataclass(frozen=True, eq=False)
class PixelSpec:
    """How pictures are decoded.

    Attributes:
        side: The short side that they keep at least, in pixels; ``None`` for full size.
        decoding: What was chosen otherwise than usual, as JSON values; see `Decoding.key_values`.
        versions: Of the libraries that decode.
    """

    side: int | None
    decoding: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, side: int | None, decoding: Decoding) -> Self:
        """Return how pictures are decoded by the libraries that are installed."""
        import PIL  # here, so that looking after a store needs no decoder
        from PIL import features

        named = {name: features.version(name) for name in _LIBRARIES}
        versions = {"pillow": PIL.__version__, **{name: version for name, version in named.items() if version}}
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions["pillow-heif"] = metadata.version("pillow-heif")
        if decoding.key_values().keys() & {"channels", "value_range"}:  # what may be read as an array
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions["tifffile"] = metadata.version("tifffile")
        return cls(side, decoding.key_values(), versions)

    @property
    def channels(self) -> int:
        """Channels of each picture."""
        return int(self.decoding.get("channels", USUAL.channels))

    @property
    def key(self) -> str:
        """Sha256, in hex, of the facts and the format number as canonical JSON: any other value, another key."""
        text = json.dumps({"format": FORMAT, **self.to_dict()}, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the set's directory, such as ``pillow-12.0.0-side448-0123456789abcdef``."""
        return f"pillow-{self.versions['pillow']}-side{self.side or 'full'}-{self.key[:16]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"side": self.side, "decoding": dict(self.decoding), "versions": dict(self.versions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a spec of what `to_dict` gave.

        Raises:
            ValueError: A field is missing or of another type.
        """
        try:
            side, versions = values["side"], {str(name): str(each) for name, each in dict(values["versions"]).items()}
            spec = cls(None if side is None else int(side), dict(values["decoding"]), versions)
            spec.versions["pillow"], spec.channels
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no facts of a pixel store ({error})") from error
        return spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PixelSpec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.key)
