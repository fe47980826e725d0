"""The scikit-learn classifier of a probe as a .skops file: it takes features and gives class names."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from transferkit.core.csv import read_csv
from transferkit.core.errors import CheckpointError, DataError, ExportError
from transferkit.core.files import write_atomically
from transferkit.data.batches.datamodule import normalise
from transferkit.features.probe.classifier_file import CLASSIFIER, FACTS, pack_classifier, read_classifier
from transferkit.features.probe.estimators import estimator_probs
from transferkit.features.sklearn.transformers import FeatureExtractor
from transferkit.models.artifact import INFO, ModelInfo, load_model
from transferkit.models.calibration.calibration import Calibration
from transferkit.models.heads import LinearHead
from transferkit.models.module import TransferModule
from transferkit.options.results import ExportConfig
from transferkit.results.export.check import LIMITS, Comparison, Verified
from transferkit.results.export.facts import export_facts, which_weights
from transferkit.results.export.pictures import export_pictures
from transferkit.results.predict.model import Predictor
from transferkit.show.words import read_metrics

__all__ = ["export_classifier", "linear_pipeline", "named_pipeline"]

Rows = npt.NDArray[Any]

EXTRACTOR = ("backbone", "weights", "image_size", "layer", "pool")
_TIE = 1e-6


def export_classifier(config: ExportConfig, out: Path) -> Verified:
    """Write the classifier of a probe to `out`, in one step, once what was written agrees with the run.

    Args:
        config: The options.
        out: The file.

    Raises:
        ExportError: The run is no probe, its classifier was not kept, skops is missing, or what was written differs.
        CheckpointError: A file of the run is missing or damaged, or holds types that would have to be trusted.
        StorageError: The disk is full or read-only.
    """
    run = Path(config.run)
    metrics = read_metrics(run)
    if "probe" not in metrics:
        raise ExportError(
            f"{run}: --format skops takes the classifier of a probe, and this run is one of `finetune` - "
            "use --format onnx, torch or safetensors"
        )
    if not ((run / CLASSIFIER).is_file() or (run / INFO).is_file()):
        raise ExportError(
            f"{run}: its classifier was not kept ({metrics['probe'].get('kept', 'skops was not asked')}) - "
            "run `transferkit probe` again with skops installed, or with another classifier"
        )
    features = {"features": json.dumps(_extractor_arguments(run)), "weights": which_weights(run)}
    found: list[tuple[Comparison, str]] = []

    def write(path: Path) -> None:
        found.append((_write_kept if (run / CLASSIFIER).is_file() else _write_linear)(config, path, features))
        problem = found[0][0].problem(LIMITS["skops"])
        if problem is not None:
            raise ExportError(
                f"{out} is not written: {problem}, compared with the run on {found[0][1]} - run the probe again"
            )

    write_atomically(out, write)
    note = f"takes the features of transferkit.FeatureExtractor(**json.loads(facts['features'])), facts: {FACTS} in it"
    return Verified(*found[0], features["weights"], (note,))


def _write_kept(config: ExportConfig, path: Path, facts: Mapping[str, str]) -> tuple[Comparison, str]:
    """Write a copy of the run's `classifier.skops` that gives class names."""
    run = Path(config.run)
    pipeline, kept = read_classifier(run / CLASSIFIER)
    if "classes" not in kept:
        raise CheckpointError(f"{run / CLASSIFIER}: does not tell its classes - run `transferkit probe` again")
    names = tuple(json.loads(kept["classes"]))
    pictures = export_pictures(run, names, data=config.data, most=config.pictures)
    features = _kept_features(run, pictures.compared)
    path.write_bytes(pack_classifier(named_pipeline(pipeline, names, features), {**kept, **facts}))
    reloaded, _ = read_classifier(path)
    return _compare_kept(pipeline, reloaded, names, run, pictures.compared, features), pictures.origin


def _write_linear(config: ExportConfig, path: Path, facts: Mapping[str, str]) -> tuple[Comparison, str]:
    """Write the head of the run's model as a scikit-learn classifier."""
    run = Path(config.run)
    module, info = load_model(run)
    pipeline = linear_pipeline(module, info)
    pictures = export_pictures(run, info.class_names, data=config.data, most=config.pictures)
    path.write_bytes(pack_classifier(pipeline, {**export_facts(run, info), **facts}))
    reloaded, _ = read_classifier(path)
    return _compare_linear(reloaded, Predictor(module, info), pictures.compared), pictures.origin


def _extractor_arguments(run: Path) -> dict[str, Any]:
    """Return the arguments of the `FeatureExtractor` whose features a probe's classifier takes, from `config.yaml`.

    Raises:
        CheckpointError: The run is no probe, or its `config.yaml` cannot be read.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        return {name: config[name] for name in EXTRACTOR}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run / 'config.yaml'}: is not that of a probe ({type(error).__name__}: {error}) - "
            "--format skops takes the directory that `transferkit probe` wrote"
        ) from error


def linear_pipeline(module: TransferModule, info: ModelInfo) -> Pipeline:
    """Return a linear head as a scikit-learn pipeline: features ``(N, D)`` to class names and calibrated probabilities.

    Raises:
        ExportError: The head is not linear.
    """
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


def _compare_linear(pipeline: Any, predictor: Predictor, paths: Sequence[str]) -> Comparison:
    """Compare a reloaded pipeline with the run's model, on the features of the run's own backbone.

    Raises:
        ExportError: None of the pictures can be read.
    """
    features, shown = [], []
    for path in paths:
        try:
            image = predictor.decode(path)
        except DataError:
            continue
        shown.append(predictor.logits(image[None])[0])
        with torch.inference_mode():
            images = normalise(torch.from_numpy(image[None]), predictor.info.preprocessing)
            features.append(predictor.module.backbone(images).float().numpy()[0])
    if not shown:
        raise ExportError(f"none of the {len(paths)} pictures can be read - pass --data with others")
    wanted = predictor.info.calibration.probs(torch.from_numpy(np.stack(shown))).numpy()
    rows = np.stack(features)
    probs, labels = pipeline.predict_proba(rows), pipeline.predict(rows)
    names = np.array(predictor.class_names)
    given = np.array([list(predictor.class_names).index(label) for label in labels])
    same = wanted[np.arange(len(wanted)), given] >= wanted.max(axis=1) - _TIE
    ordered = probs[:, [list(pipeline.classes_).index(name) for name in names]]
    return Comparison(len(wanted), int(same.sum()), float(np.abs(ordered - wanted).max()))


def _compare_kept(
    pipeline: Any, reloaded: Any, class_names: Sequence[str], run: Path, paths: Sequence[str], features: Rows
) -> Comparison:
    """Compare a reloaded classifier with the run's, and both with what the run predicted of the same pictures.

    Args:
        pipeline: The run's, on class indices.
        reloaded: From the exported file.
        class_names: In index order.
        run: Its `predictions.csv` tells what it predicted, where it is there.
        paths: N pictures.
        features: ``(N, D)``.
    """
    names = np.array(class_names)
    own = np.asarray(pipeline.predict(features), dtype=np.int64)
    labels = np.asarray(reloaded.predict(features))
    same = labels == (names[own] if labels.dtype.kind in "UO" else own)
    predicted = _predicted(run)
    best = names[estimator_probs(pipeline, features, len(names)).argmax(axis=1)]
    told = np.array([predicted.get(path, best[place]) == best[place] for place, path in enumerate(paths)])
    probs = [estimator_probs(_indexed(one, names), features, len(names)) for one in (pipeline, reloaded)]
    apart = float(np.abs(probs[0] - probs[1]).max())
    return Comparison(len(paths), int((same & told).sum()), apart)


def _kept_features(run: Path, paths: Sequence[str]) -> Rows:
    """Return the features ``(N, D)`` of pictures that a probe's classifier takes.

    Raises:
        TransferkitError: As `FeatureExtractor` says.
    """
    given = {name: value for name, value in _extractor_arguments(run).items() if value is not None}
    config = yaml.safe_load((run / "config.yaml").read_text())
    extractor = FeatureExtractor(**given, cache=config.get("store"), precision=config.get("precision", "auto"))
    rows: Rows = extractor.transform(list(paths))
    return rows


def _calibrated(weight: Rows, bias: Rows, calibration: Calibration) -> tuple[Rows, Rows]:
    """Put the calibration of the logits into the layer that gives them."""
    if calibration.method == "temperature":
        return weight / calibration.temperature, bias / calibration.temperature
    if calibration.method == "vector":
        scale, shift = np.array(calibration.scale), np.array(calibration.bias)
        return (weight - weight.mean(axis=0)) * scale[:, None], (bias - bias.mean()) * scale + shift
    return weight, bias


def _predicted(run: Path) -> dict[str, str]:
    """Return the class that the run predicted of each picture, by path; nothing where it may differ by calibration."""
    if not (run / "predictions.csv").is_file():
        return {}
    try:
        metrics = json.loads((run / "metrics.json").read_text())
    except (OSError, ValueError):
        return {}
    if metrics.get("calibration", {}).get("method") == "vector":  # changes labels, and is no part of the classifier
        return {}
    return {row["path"]: row["predicted"] for row in read_csv(run / "predictions.csv")}


def _indexed(pipeline: Any, names: Rows) -> Any:
    """Return a classifier with class indices again."""
    if pipeline.classes_.dtype.kind not in "UO":
        return pipeline
    turned = copy.deepcopy(pipeline)
    turned[-1].classes_ = np.array([list(names).index(name) for name in pipeline.classes_])
    return turned
