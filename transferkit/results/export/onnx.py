"""ONNX files: a dynamic batch, float32, float16 or int8 weights, preprocessing inside on request, facts as metadata."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError, ExportError
from transferkit.core.text import first_line
from transferkit.data.augment.normalise import normalise
from transferkit.models.artifact import ModelInfo
from transferkit.models.heads.registry import one_at_a_time
from transferkit.models.module import TransferModule
from transferkit.options.results import ExportConfig
from transferkit.results.export.check import Exported, Limits
from transferkit.results.export.format import Format, Subject
from transferkit.results.export.preprocessing import IR_VERSION, OPSET, PICTURES, preprocessing_graph
from transferkit.results.export.program import ExportNetwork, quiet, trace
from transferkit.results.predict.predictor import Predictor

__all__ = ["FORMAT", "IMAGES", "LARGEST", "MEASURED", "build_onnx", "load_onnx", "quantise", "write_onnx"]

IMAGES: Final = "images"
UNLIKE: Final = "unlike_training"
"""The last output, where the model knows how unlike its training pictures a picture is."""

LARGEST: Final = 2**31 - 2**20
"""Bytes of a file; protobuf ends at 2 GiB."""


MEASURED: Final = 10**9
"""Bytes of activations that int8 ranges are measured on; onnxruntime holds all of them twice over for a moment."""

_QUANTISED = ("Conv", "Gemm", "MatMul")
_HEAD = "head/"
"""Begins the names of the head's nodes."""


def build_onnx(module: TransferModule, info: ModelInfo, *, half: bool = False, unlike: bool = True) -> Any:
    """Return the ONNX model of a run, from normalised pictures ``(B, 3, H, W) float32``.

    Args:
        module: The model, in eval mode on the CPU.
        info: What `model.json` holds.
        half: Backbone in float16.
        unlike: Whether to say how unlike its training pictures a picture is, where the model knows.

    Raises:
        ExportError: The backbone cannot be traced or written as ONNX, or the file would be larger than ONNX files get.
    """
    size = sum(tensor.numel() * (2 if half else tensor.element_size()) for tensor in module.state_dict().values())
    if size > LARGEST:
        raise ExportError(
            f"{info.backbone} has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB - "
            + (
                "use --format torch or safetensors"
                if half
                else "pass --precision fp16, or --format torch or safetensors"
            )
        )
    names = [*module.task.output.compared.exported, *([UNLIKE] if unlike and module.unlike is not None else [])]
    write = _one_at_a_time if one_at_a_time(module.head) else _any_batch
    try:
        with torch.no_grad(), quiet():
            model = write(module, info, names, half=half, unlike=unlike)
    except ExportError:
        raise
    except Exception as error:  # torch's exporter, on any network
        raise ExportError(
            f"{info.backbone} cannot be written as ONNX ({first_line(error)}) - use --format torch or safetensors"
        ) from error
    model.ir_version = IR_VERSION
    for node in model.graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        if scopes.startswith("['', 'head'"):
            node.name = f"{_HEAD}{node.name}"
    for node in model.graph.node:
        node.doc_string = ""
    for value in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info,
                  *model.graph.initializer, *model.functions):  # fmt: skip
        del value.metadata_props[:]  # traces of the exporter, with paths of this machine
    del model.graph.metadata_props[:], model.metadata_props[:]
    return model


def _any_batch(module: TransferModule, info: ModelInfo, names: Sequence[str], *, half: bool, unlike: bool) -> Any:
    written = torch.onnx.export(
        trace(module, info, half=half, unlike=unlike),
        input_names=[IMAGES],
        output_names=list(names),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert written is not None
    return written.model_proto


def _one_at_a_time(module: TransferModule, info: ModelInfo, names: Sequence[str], *, half: bool, unlike: bool) -> Any:
    """Return the model of a batch of one, by the exporter that torchvision's detectors are written for.

    torch's other one cannot follow what hangs on how many boxes there are.
    """
    import onnx

    network = ExportNetwork(module, info, half=half, unlike=unlike).eval()
    with tempfile.TemporaryDirectory(prefix="transferkit-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (torch.zeros(1, *info.preprocessing.input_shape),),
            path,
            input_names=[IMAGES],
            output_names=list(names),
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(path)
    for node in model.graph.node:
        node.name = node.name.lstrip("/")  # "/head/...", as the other exporter has it without the first stroke
    return model


def quantise(model: Any, predictor: Predictor, paths: Sequence[str], *, static: bool) -> Any:
    """Return an int8 version of a float32 model; its first layer and its head stay float32.

    The head's few weights decide the answers. The first layer has few weights too, and what rounding takes from the
    pixels no later layer gives back.

    Weights and activations are unsigned. Products with signed weights saturate on processors without VNNI: there 87 %
    of a resnet18's labels stayed the same with signed and 96 % with unsigned weights, with percentiles 98 %.

    Args:
        model: From `build_onnx`.
        predictor: For what pictures look like to the network.
        paths: Pictures to measure ranges on, as many of them as their activations fit into `MEASURED`; those that
            cannot be read are left out.
        static: Measure the ranges of activations on the pictures; else they are taken anew from each batch.
    """
    import onnx
    from onnxruntime import quantization as ort  # type: ignore[import-untyped]

    unchanged = [*_first_layers(model), *(node.name for node in model.graph.node if node.name.startswith(_HEAD))]
    common = {"per_channel": True, "weight_type": ort.QuantType.QUInt8, "nodes_to_exclude": unchanged}
    with tempfile.TemporaryDirectory(prefix="transferkit-") as folder, quiet(), redirect_stdout(io.StringIO()):
        source, result = Path(folder) / "source.onnx", Path(folder) / "result.onnx"
        source.write_bytes(model.SerializeToString())
        if static:
            most = max(8, MEASURED // _activation_bytes(model))
            ort.quantize_static(
                source, result, _Reader(predictor, paths[:: max(1, len(paths) // most)]),
                activation_type=ort.QuantType.QUInt8, op_types_to_quantize=list(_QUANTISED),
                calibrate_method=ort.CalibrationMethod.Percentile, **common,
            )  # fmt: skip
        else:
            ort.quantize_dynamic(source, result, **common)
        return onnx.load(result)


def write_onnx(
    model: Any, path: Path, facts: Mapping[str, str], info: ModelInfo, *, preprocessing: Literal["outside", "inside"]
) -> None:
    """Write a model to one file, with its facts and, on request, with the preprocessing before it.

    Args:
        model: From `build_onnx` or `quantise`.
        path: The file.
        facts: The metadata.
        info: What `model.json` holds.
        preprocessing: ``"inside"``: the input becomes ``pictures``, ``(B, H, W, 3) uint8`` of any size.
    """
    from onnx import checker, compose, helper

    with quiet():
        if preprocessing == "inside":
            before = preprocessing_graph(info.preprocessing, images="prep_images")
            model = compose.merge_models(before, model, io_map=[("prep_images", IMAGES)])
            model.ir_version = IR_VERSION
        model.producer_name = "transferkit"
        model.graph.name = info.backbone
        model.doc_string = ""
        helper.set_model_props(model, dict(facts))
        checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def load_onnx(path: Path, *, preprocessing: Literal["outside", "inside"] = "outside") -> Exported:
    """Return an ONNX file as a function, by onnxruntime on the CPU with as many threads as torch has.

    Raises:
        ExportError: onnxruntime does not take it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base but this
        raise ExportError(
            f"onnxruntime does not take the file ({first_line(error)}) - use --format torch or safetensors"
        ) from error
    name = PICTURES if preprocessing == "inside" else IMAGES

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], ...]:
        try:
            return tuple(session.run(None, {name: images}))
        except Exception as error:
            raise ExportError(
                f"onnxruntime cannot run the file on a batch of {len(images)} ({first_line(error)}) - "
                "use --format torch or safetensors"
            ) from error

    return run


def _first_layers(model: Any) -> list[str]:
    """Return the names of the layers that see pixels: no other layer lies between them and the pictures."""
    pixels, names = {IMAGES}, []
    for node in model.graph.node:  # in the order of computation, as ONNX demands
        if not pixels.isdisjoint(node.input):
            if node.op_type in _QUANTISED:
                names.append(node.name)
            elif node.op_type != "Shape":  # which tells of no pixel
                pixels.update(node.output)
    return names


def _activation_bytes(model: Any) -> int:
    """Return the size of what onnxruntime keeps of one picture: the inputs and outputs of the nodes to quantise."""
    names = {name for node in model.graph.node if node.op_type in _QUANTISED for name in (*node.input, *node.output)}
    names -= {weights.name for weights in model.graph.initializer}
    sizes = ([side.dim_value or 1 for side in value.type.tensor_type.shape.dim] for value in model.graph.value_info
             if value.name in names)  # fmt: skip
    return max(1, 4 * sum(math.prod(sides) for sides in sizes))


class _Reader:
    """Pictures one by one, for onnxruntime's measuring of ranges."""

    def __init__(self, predictor: Predictor, paths: Sequence[str]) -> None:
        self._images = self._read(predictor, paths)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """Return the next input, or ``None`` at the end: the name and manner are onnxruntime's."""
        return next(self._images, None)

    def _read(self, predictor: Predictor, paths: Sequence[str]) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        for path in paths:
            try:
                shown = predictor.decode(path)
            except DataError:
                continue
            images = normalise(torch.from_numpy(shown[None]), predictor.info.preprocessing)
            yield {IMAGES: images.contiguous().numpy()}


# ---- the format -------------------------------------------------------------------------------------------------


def _write(subject: Subject, path: Path) -> None:
    config, info = subject.config, subject.info
    model = build_onnx(subject.module, info, half=config.precision == "fp16", unlike=config.precision != "int8")
    if subject.way:
        model = quantise(model, subject.predictor, subject.pictures.calibrating, static=subject.way == "static")
    facts = {**subject.facts, "quantisation": subject.way}
    write_onnx(model, path, facts, info, preprocessing=config.preprocessing)


def _load(subject: Subject, path: Path) -> Exported:
    return load_onnx(path, preprocessing=subject.config.preprocessing)


def _limits(config: ExportConfig) -> Limits:
    if config.precision == "32" and config.preprocessing == "inside":
        # Pictures that grow are interpolated by other rounding than OpenCV's.
        return Limits(agreement=0.99, probability=0.02, unlike=0.05)
    return LIMITS[config.precision]


def _instead(config: ExportConfig) -> str:
    if config.precision != "32":
        return "use --precision 32" + (" or fp16" if config.precision == "int8" else "")
    return "use another format" + (", or --preprocessing outside" if config.preprocessing == "inside" else "")


LIMITS: Final = {
    "32": Limits(agreement=1.0, logits=1e-4, unlike=0.01),
    "fp16": Limits(agreement=0.99, probability=0.02, near=0.02, unlike=0.05),
    "int8": Limits(agreement=0.97, near=0.1),
}
"""By precision. What is a tenth of a deviation off adds a hundredth of the variance to squared errors."""

FORMAT: Final = Format(
    ".onnx", _write, _load, _limits, instead=_instead, needs=("onnx", "onnxscript", "onnxruntime"), extra="onnx"
)
