"""A weights file as a backbone gets it: its tensors, where they come from, and the facts that lie beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from transferkit.core.documents import parse_json
from transferkit.core.errors import BackboneError
from transferkit.core.files import sha256_of_file, storage_errors
from transferkit.core.records import DataConfig
from transferkit.models.weights.downloads import WeightsFile
from transferkit.models.weights.files import read_state_dict

__all__ = ["Checkpoint", "read_fetched", "read_file"]


@dataclass(frozen=True)
class Checkpoint:
    """Weights as read, before they are fitted to a network.

    Attributes:
        state: Tensors by name, as stored.
        source: ``"hf-hub:ID"``, a URL, ``"bundled"`` or ``"file:NAME"``.
        sha256: Hex digest of the file.
        license: Of the weights, where it is known.
        data_config: The preprocessing that lies beside the file, where there is one.
    """

    state: dict[str, Tensor]
    source: str
    sha256: str
    license: str | None = None
    data_config: DataConfig | None = None


def read_fetched(file: WeightsFile, license_: str | None) -> Checkpoint:
    """Read a file that was fetched and verified. Raises `BackboneError`."""
    return Checkpoint(read_state_dict(file.path), file.source, file.sha256, license_)


def read_file(path: str, *, source: str | None = None, license_: str | None = None) -> Checkpoint:
    """Read a file of the user's (or, with `source`, of the package), and the ``model.json`` beside it.

    Raises:
        BackboneError: The file or the record beside it cannot be read.
    """
    state = read_state_dict(path)
    with storage_errors("read weights file", path):
        sha256 = sha256_of_file(path)
    return Checkpoint(state, source or f"file:{Path(path).name}", sha256, license_, _data_config_beside(path))


def _data_config_beside(path: str) -> DataConfig | None:
    manifest = Path(path).with_name("model.json")
    if not manifest.is_file():
        return None
    try:
        with storage_errors("read", manifest):
            values = parse_json(manifest.read_text("utf-8"))
        known = isinstance(values, dict) and "preprocessing" in values
        return DataConfig.from_dict(values["preprocessing"]) if known else None
    except ValueError as error:
        raise BackboneError(
            f"{str(manifest)!r} beside the weights has no readable `preprocessing` ({type(error).__name__}: {error}) - "
            "repair or remove it"
        ) from error
