"""The facts that a set of features is the function of: its key, and the key of a row."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from transferkit import __version__
from transferkit.core.errors import StoreError

__all__ = ["FORMAT", "KEY_BYTES", "FeatureSpec", "check_format", "row_key"]

FORMAT = 1  # of everything the store writes; part of every key, so that another format never meets old files
KEY_BYTES = 40  # of a row: 32 of the picture's digest, 8 of the view's seed


@dataclass(frozen=True, eq=False)
class FeatureSpec:
    """Everything that features depend on, apart from the picture itself and the view of it.

    Two specs are equal when their keys are. Mappings are copied, so that a later change of the caller's moves no key.

    Attributes:
        backbone: Name of the architecture.
        weights_sha256: Hex digest of the weights.
        layer: Where the features are taken, such as ``"pooled"``.
        pool: How a feature map becomes a vector, such as ``"avg"``.
        transform: The evaluation transform, as JSON values.
        decode_side: The short side that pictures are decoded to, in pixels; ``None`` for full size.
        precision: ``"32"`` or ``"bf16"``, of the forward pass; rows are float32 always.
        versions: Version of each library that pixels or features pass through.
    """

    backbone: str
    weights_sha256: str
    layer: str
    pool: str
    transform: Mapping[str, Any]
    decode_side: int | None
    precision: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in ("transform", "versions"):
            value = json.loads(json.dumps(dict(getattr(self, name)), allow_nan=False))
            object.__setattr__(self, name, value)

    @property
    def key(self) -> str:
        """Sha256, in hex, of the spec and the format number as canonical JSON: any other value, another key."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder(self) -> str:
        """Name of the set's directory, such as ``resnet18-pooled-0123456789abcdef``."""
        return f"{_slug(self.backbone)}-{_slug(self.layer)}-{self.key[:16]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a spec of what `to_dict` gave.

        Raises:
            ValueError: Fields are missing, unknown or of another type.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise ValueError(f"a feature spec holds {values!r}, expected the fields {', '.join(sorted(names))}")
        for name, value in values.items():
            if not isinstance(value, _TYPES.get(name, str)):
                raise ValueError(f"{name} of a feature spec is {value!r}, expected another type")
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpec) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


_TYPES: Mapping[str, Any] = {"transform": Mapping, "versions": Mapping, "decode_side": int | None}


def _slug(text: str) -> str:
    """A part of a folder's name: plain characters, not hidden, and never too long for a file system."""
    return re.sub(r"[^A-Za-z0-9._]", "_", text).lstrip(".")[:80] or "_"


def row_key(sha256: str, view_seed: int = 0) -> bytes:
    """Return the 40 bytes that name a row.

    Args:
        sha256: Hex digest of the picture's bytes.
        view_seed: Seed of the augmented view, in [0, 2**64); 0 is the evaluation view.
    """
    digest = bytes.fromhex(sha256)
    if len(digest) != 32 or not 0 <= view_seed < 2**64:
        raise ValueError(f"no row key can be made of digest {sha256!r} and view seed {view_seed}")
    return digest + view_seed.to_bytes(8, "little")


def check_format(number: object, name: str) -> None:
    """Refuse a format number that is not known yet.

    Raises:
        StoreError: It is newer.
        ValueError: It is none.
    """
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is no format number")
    if number > FORMAT:
        raise StoreError(
            f"{name}: has format {number}, transferkit {__version__} reads formats up to {FORMAT} - "
            "update transferkit, or give another --store"
        )
