"""A weights file as a backbone gets it: its tensors, where they come from, and the facts that lie beside them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from transferkit.core.errors import BackboneError
from transferkit.core.files import sha256_of_file, storage_errors
from transferkit.core.records import DataConfig
from transferkit.models.backbones.interface import BackboneFacts
from transferkit.models.weights.hub import WeightsFile
from transferkit.models.weights.loading import read_state_dict

__all__ = ["Checkpoint", "data_config_beside", "hash_in_url", "read_fetched", "read_file"]

_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


@dataclass(frozen=True)
class Checkpoint:
    """Weights as read, before they are fitted to a network.

    Attributes:
        state: Tensors by name, as stored.
        source: ``"hf-hub:ID"``, a URL, ``"bundled"`` or ``"file:NAME"``.
        sha256: Hex digest of the file.
        license: Of the weights, where it is known.
    """

    state: dict[str, Tensor]
    source: str
    sha256: str
    license: str | None = None

    def facts(self, name: str, data_config: DataConfig) -> BackboneFacts:
        """Return the facts of backbone `name` with these weights."""
        return BackboneFacts(name, data_config, self.license, self.source, self.sha256)


def read_fetched(file: WeightsFile, license_: str | None) -> Checkpoint:
    """Read a file that `hub` fetched and verified. Raises `BackboneError`."""
    return Checkpoint(read_state_dict(file.path), file.source, file.sha256, license_)


def read_file(path: str, *, source: str | None = None, license_: str | None = None) -> Checkpoint:
    """Read a file of the user's (or, with `source`, of the package). Raises `BackboneError`."""
    state = read_state_dict(path)
    with storage_errors("read weights file", path):
        return Checkpoint(state, source or f"file:{Path(path).name}", sha256_of_file(path), license_)


def data_config_beside(path: str) -> DataConfig | None:
    """Return the preprocessing that a ``model.json`` beside the weights file records; ``None`` where there is none.

    Raises:
        BackboneError: The record is there but cannot be read.
    """
    manifest = Path(path).with_name("model.json")
    if not manifest.is_file():
        return None
    try:
        with storage_errors("read", manifest):
            values = json.loads(manifest.read_text("utf-8"))
        return DataConfig.from_dict(values["preprocessing"]) if "preprocessing" in values else None
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BackboneError(
            f"{str(manifest)!r} beside the weights has no readable `preprocessing` ({type(error).__name__}: {error}) - "
            "repair or remove it"
        ) from error


def hash_in_url(url: str) -> str | None:
    """Return the first digits of the sha256 that torch.hub's naming puts into a file name (``NAME-f37072fd.pth``)."""
    found = _HASH.search(url)
    return found.group(1) if found else None
