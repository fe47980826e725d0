"""The scikit-learn classifier of a probe as a .skops file: it takes features and gives class names.

A probe by logistic regression is a linear head, and goes out as a network does. Any other classifier lies in the run
as it was fitted, and is compared on features instead of pictures.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from transferkit.core.documents import parse_json
from transferkit.core.errors import CheckpointError, ExportError
from transferkit.core.files import write_atomically
from transferkit.data.index.targets import ClassReader, ClassTargets
from transferkit.features.probe.classifier_file import CLASSIFIER, FACTS, pack_classifier, read_classifier
from transferkit.features.probe.estimators import estimator_probs
from transferkit.features.sklearn.extractor import FeatureExtractor
from transferkit.models.artifact import INFO, ModelInfo
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.heads.flat import LinearHead
from transferkit.models.module import TransferModule
from transferkit.options.results import ExportConfig
from transferkit.results.export.check import Comparison, Exported, Limits, export_pictures
from transferkit.results.export.format import Format, Subject, which_weights
from transferkit.runs.files import RunFiles
from transferkit.runs.labelled import run_columns

__all__ = ["FORMAT", "export_classifier", "keeps_classifier", "linear_pipeline", "named_pipeline"]

Rows = npt.NDArray[Any]

EXTRACTOR = ("backbone", "weights", "image_size", "layer", "pool")

LIMITS: Final = Limits(agreement=0.99, probability=1e-4)
"""The features are made anew, in the precision that suits this machine."""


def keeps_classifier(run: Path) -> bool:
    """Return whether a probe's run holds its classifier as it was fitted.

    Raises:
        ExportError: The run is no probe, or holds neither that nor a linear head.
        CheckpointError: Its `metrics.json` is missing or damaged.
    """
    metrics = RunFiles(run).metrics
    if "probe" not in metrics:
        raise ExportError(
            f"{run}: --format skops takes the classifier of a probe, and this run is one of `finetune` - "
            "use --format onnx, torch or safetensors"
        )
    if (run / CLASSIFIER).is_file():
        return True
    if not (run / INFO).is_file():
        raise ExportError(
            f"{run}: its classifier was not kept ({metrics['probe'].get('kept', 'skops was not asked')}) - "
            "run `transferkit probe` again with skops installed, or with another classifier"
        )
    return False


# ---- a linear head ----------------------------------------------------------------------------------------------


def linear_pipeline(module: TransferModule, info: ModelInfo) -> Pipeline:
    """Return a linear head as a scikit-learn pipeline: features ``(N, D)`` to class names and calibrated probabilities.

    Raises:
        ExportError: The head is not linear, or gives no classes.
    """
    if not module.task.output.names_one:
        raise ExportError(f"--format skops writes classifiers, and {info.task} is none - use --format onnx or torch")
    if not isinstance(module.head, LinearHead):
        raise ExportError(
            f"--format skops writes linear heads and scikit-learn's own classifiers, but the head is "
            f"{info.head or type(module.head).__name__!r} - use --format onnx or torch"
        )
    layer = module.head.linear
    weight, bias = _calibrated(
        layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy(), info.calibration
    )
    if len(weight) == 2:  # scikit-learn keeps one row then, a sigmoid's
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    classifier = LogisticRegression()
    classifier.classes_ = np.array(info.class_names)
    classifier.coef_, classifier.intercept_ = weight, bias
    classifier.n_features_in_ = weight.shape[1]
    classifier.n_iter_ = np.zeros(1, dtype=np.int32)
    return Pipeline([("classifier", classifier)])


def _calibrated(weight: Rows, bias: Rows, calibration: Calibration) -> tuple[Rows, Rows]:
    """Put the calibration of the logits into the layer that gives them."""
    if calibration.method == "temperature":
        return weight / calibration.temperature, bias / calibration.temperature
    if calibration.method == "vector":
        scale, shift = np.array(calibration.scale), np.array(calibration.bias)
        return (weight - weight.mean(axis=0)) * scale[:, None], (bias - bias.mean()) * scale + shift
    return weight, bias


def _supports(run: Path, module: TransferModule, info: ModelInfo) -> Mapping[str, str]:
    arguments = _extractor_arguments(run)
    linear_pipeline(module, info)
    return {"features": json.dumps(arguments)}


def _write(subject: Subject, path: Path) -> None:
    path.write_bytes(pack_classifier(linear_pipeline(subject.module, subject.info), subject.facts))


def _load(subject: Subject, path: Path) -> Exported:
    """Return what was written as a function of pictures, by the features of the run's own backbone."""
    pipeline, _ = read_classifier(path)
    columns = [list(pipeline.classes_).index(name) for name in subject.info.class_names]

    def run(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], None]:
        with torch.inference_mode():
            features = subject.module.backbone(torch.from_numpy(images)).float().numpy()
        return pipeline.predict_proba(features)[:, columns], None

    return run


FORMAT: Final = Format(
    ".skops", _write, _load, lambda config: LIMITS, _supports, instead=lambda config: "run the probe again",
    needs=("skops.io",), extra="sklearn", timed=False,
    note=f"takes the features of transferkit.FeatureExtractor(**json.loads(facts['features'])), facts: {FACTS} in it",
)  # fmt: skip


# ---- a classifier as it was fitted ------------------------------------------------------------------------------


def export_classifier(config: ExportConfig, out: Path) -> tuple[Comparison, str, Mapping[str, str]]:
    """Write a copy of the run's `classifier.skops` that gives class names, once it agrees with the run.

    Args:
        config: The options.
        out: The file.

    Returns:
        How near the copy is, the pictures compared on, in words, and the facts in the file.

    Raises:
        ExportError: skops is missing, or what was written differs.
        CheckpointError: A file of the run is missing or damaged, or holds types that would have to be trusted.
        StorageError: The disk is full or read-only.
    """
    run = Path(config.run)
    facts = {"features": json.dumps(_extractor_arguments(run)), "weights": which_weights(run)}
    pipeline, own_facts = read_classifier(run / CLASSIFIER)
    try:
        classes = parse_json(own_facts.get("classes", ""))
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{run / CLASSIFIER}: does not tell its classes - run `transferkit probe` again")
    names = tuple(classes)
    targets, columns = ClassTargets(names), None
    if config.data is not None:
        columns = run_columns(
            run, ClassReader(), targets, config.data, path_column=config.path_column, root=config.root
        )
    pictures = export_pictures(
        run, targets, data=config.data, most=config.pictures, columns=columns, rescan=config.rescan
    )
    features = _features(run, pictures.compared)
    data = pack_classifier(named_pipeline(pipeline, names, features), {**own_facts, **facts})
    results: list[Comparison] = []

    def write(path: Path) -> None:
        path.write_bytes(data)
        reloaded, _ = read_classifier(path)
        results.append(_compare(pipeline, reloaded, names, _predicted(run), pictures.compared, features))
        problem = results[0].problem(LIMITS)
        if problem is not None:
            raise ExportError(
                f"{out} is not written: {problem}, compared with the run on {pictures.origin} - run the probe again"
            )

    write_atomically(out, write)
    return results[0], pictures.origin, facts


def named_pipeline(pipeline: Any, class_names: Sequence[str], features: Rows) -> Any:
    """Return a copy of a classifier that gives class names; the classifier itself where it cannot be told them.

    Args:
        pipeline: Fitted on class indices.
        class_names: In index order.
        features: ``(N, D)``, to see whether it works.
    """
    named = copy.deepcopy(pipeline)
    last = named[-1]
    if "classes_" not in vars(last):
        return pipeline
    names = np.array(class_names)
    last.classes_ = names[last.classes_]
    worked = np.array_equal(named.predict(features), names[np.asarray(pipeline.predict(features), dtype=np.int64)])
    return named if worked else pipeline


def _compare(
    pipeline: Any, reloaded: Any, class_names: Sequence[str], predicted: Mapping[str, str], paths: Sequence[str],
    features: Rows,
) -> Comparison:  # fmt: skip
    """Compare a reloaded classifier with the run's, and both with what the run predicted of the same pictures.

    Args:
        pipeline: The run's, on class indices.
        reloaded: From the exported file.
        class_names: In index order.
        predicted: What the run predicted, by path, as far as it says.
        paths: N pictures.
        features: ``(N, D)``.
    """
    names = np.array(class_names)
    own = np.asarray(pipeline.predict(features), dtype=np.int64)
    labels = np.asarray(reloaded.predict(features))
    same = labels == (names[own] if labels.dtype.kind in "UO" else own)
    expected, probs = (estimator_probs(_indexed(one, names), features, len(names)) for one in (pipeline, reloaded))
    best = names[expected.argmax(axis=1)]
    as_before = np.array([predicted.get(path, label) == label for path, label in zip(paths, best, strict=True)])
    return Comparison(len(paths), int((same & as_before).sum()), float(np.abs(probs - expected).max()))


def _indexed(pipeline: Any, names: Rows) -> Any:
    """Return a classifier with class indices again."""
    if pipeline.classes_.dtype.kind not in "UO":
        return pipeline
    turned = copy.deepcopy(pipeline)
    turned[-1].classes_ = np.array([list(names).index(name) for name in pipeline.classes_])
    return turned


def _predicted(run: Path) -> dict[str, str]:
    """Return the class that the run predicted of each picture, by path; nothing where it may differ by calibration."""
    files = RunFiles(run)
    # Vector scaling changes labels, and is no part of the classifier.
    if files.metrics.get("calibration", {}).get("method") == "vector":
        return {}
    return {row["path"]: row["predicted"] for row in files.predictions}


# ---- features ---------------------------------------------------------------------------------------------------


def _extractor_arguments(run: Path) -> dict[str, Any]:
    """Return the arguments of the `FeatureExtractor` whose features a probe's classifier takes, from `config.yaml`.

    Raises:
        ExportError: No extractor can make these features: random weights are drawn anew wherever they are asked for.
        CheckpointError: As `_config`.
    """
    config = _config(run)
    if config["weights"] == "random":
        raise ExportError(
            f"{run}: its features are those of random weights, which are others wherever they are drawn: nothing would "
            "give an exported classifier the features it takes - run the probe with weights that can be had again: "
            "pretrained, bundled, a file"
        )
    return {name: config[name] for name in EXTRACTOR}


def _config(run: Path) -> dict[str, Any]:
    """Return the options of a probe.

    Raises:
        CheckpointError: The run is no probe, or its `config.yaml` cannot be read.
    """
    config = RunFiles(run).config
    missing = [name for name in EXTRACTOR if name not in config]
    if missing:
        raise CheckpointError(
            f"{run / 'config.yaml'}: is not that of a probe (it lacks {', '.join(missing)}) - --format skops takes the "
            "directory that `transferkit probe` wrote"
        )
    return config


def _features(run: Path, paths: Sequence[str]) -> Rows:
    """Return the features ``(N, D)`` of pictures. Raises as `FeatureExtractor.transform`."""
    config = _config(run)
    arguments = {name: config[name] for name in EXTRACTOR if config[name] is not None}
    extractor = FeatureExtractor(**arguments, cache=config.get("store"), precision=config.get("precision", "auto"))
    rows: Rows = extractor.transform(list(paths))
    return rows
