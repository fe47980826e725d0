"""The traced program of a model: ONNX files are made from it, and `torch.export` files hold it beside the facts."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from transferkit.core.errors import ExportError
from transferkit.core.text import first_line
from transferkit.models.artifact import ModelInfo
from transferkit.models.heads.feed import as_float, feed, pooled
from transferkit.models.heads.registry import one_at_a_time
from transferkit.models.module import TransferModule
from transferkit.results.export.check import Exported, Limits
from transferkit.results.export.format import Format, Subject

__all__ = ["FACTS", "FORMAT", "ExportNetwork", "quiet", "trace"]

FACTS: Final = "transferkit.json"
"""Name of the extra file: the facts as one JSON object of texts."""


class ExportNetwork(nn.Module):
    """``(B, 3, H, W) float32, normalised`` to predictions (of classification, calibrated probabilities) and logits.

    Each is ``(B, C) float32``. Where the model knows how unlike its training pictures a picture is, that is the third
    output, ``(B,) float32`` in [0, 1].

    Args:
        module: The model; it is not changed.
        info: What `model.json` holds.
        half: Backbone in float16; head, calibration, input and outputs stay float32.
        unlike: Whether to give the third output.
    """

    def __init__(self, module: TransferModule, info: ModelInfo, *, half: bool = False, unlike: bool = True) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(module.backbone).half() if half else module.backbone
        self.head = module.head
        self.feed = module.feed
        self.task, self.calibration = module.task, info.calibration
        self.half_precision = half
        self.unlike = module.unlike if unlike else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return predictions, logits where those are something else, and what `unlike` says, where it is known."""
        images = images.half() if self.half_precision else images
        inputs = feed(self.backbone, self.feed, images)
        logits = self.head(as_float(inputs)).float()
        outputs = (self.task.predictions(logits, self.calibration), logits)[: len(self.task.output.compared.exported)]
        if self.unlike is None:
            return outputs
        return (*outputs, self.unlike.share(self.unlike(pooled(self.backbone, self.feed, inputs))))


def trace(
    module: TransferModule, info: ModelInfo, *, half: bool = False, unlike: bool = True
) -> torch.export.ExportedProgram:
    """Return the program of a model, for batches of any size.

    Raises:
        ExportError: torch cannot trace this backbone or head.
    """
    if one_at_a_time(module.head):
        raise ExportError(
            f"torch cannot trace the head {info.head or type(module.head).__name__}, whose steps hang on how much it "
            "finds - use --format onnx"
        )
    network = ExportNetwork(module, info, half=half, unlike=unlike).eval()
    example = torch.zeros(2, *info.preprocessing.input_shape)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # any network of any library goes through torch's tracer here
        raise ExportError(
            f"torch cannot trace {info.backbone} with the head {info.head or type(module.head).__name__} for batches "
            f"of any size ({first_line(error)}) - use another one, or --format safetensors for a linear head"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Keep advice and deprecations of the exporters, which are about their own code, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write(subject: Subject, path: Path) -> None:
    program = trace(subject.module, subject.info)
    with quiet():
        stream = io.BytesIO()  # a path would have to end in .pt2, which a temporary one does not
        facts = json.dumps(dict(subject.facts), ensure_ascii=False)
        torch.export.save(program, stream, extra_files={FACTS: facts})
    path.write_bytes(stream.getbuffer())


def _load(subject: Subject, path: Path) -> Exported:
    try:
        with quiet(), path.open("rb") as stream:
            program = torch.export.load(stream).module()
    except Exception as error:  # whatever torch's reader meets
        raise ExportError(f"torch does not take the program back ({first_line(error)}) - use --format onnx") from error

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        with torch.inference_mode():
            return tuple(output.numpy() for output in program(torch.from_numpy(images)))

    return run


FORMAT: Final = Format(".pt2", _write, _load, lambda config: Limits(agreement=1.0, logits=1e-4, unlike=0.01))
