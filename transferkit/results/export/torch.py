"""`torch.export` programs: a dynamic batch, facts in an extra file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import ExportError
from transferkit.core.text import first_line
from transferkit.models.artifact import ModelInfo
from transferkit.models.module import TransferModule
from transferkit.results.export.check import Exported
from transferkit.results.export.network import quiet, trace

__all__ = ["FACTS", "load_torch", "write_torch"]

FACTS: Final = "transferkit.json"
"""Name of the extra file: the facts as one JSON object of texts."""


def write_torch(module: TransferModule, info: ModelInfo, path: Path, facts: Mapping[str, str]) -> None:
    """Write the program of a model; it takes ``(B, 3, H, W) float32, normalised`` and gives probabilities and logits.

    Raises:
        ExportError: torch cannot trace this backbone or head.
    """
    program = trace(module, info)
    with quiet():
        stream = io.BytesIO()  # a path would have to end in .pt2, which a temporary one does not
        torch.export.save(program, stream, extra_files={FACTS: json.dumps(dict(facts), ensure_ascii=False)})
    path.write_bytes(stream.getbuffer())


def load_torch(path: Path) -> Exported:
    """Return a written program as a function.

    Raises:
        ExportError: torch does not take it back.
    """
    try:
        with quiet(), path.open("rb") as stream:
            program = torch.export.load(stream).module()
    except Exception as error:  # whatever torch's reader meets
        raise ExportError(f"torch does not take the program back ({first_line(error)}) - use --format onnx") from error

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        with torch.inference_mode():
            probabilities, logits = program(torch.from_numpy(images))
        return probabilities.numpy(), logits.numpy()

    return run
