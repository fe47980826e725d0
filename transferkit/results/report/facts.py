"""What a report says of one run: from the files of its directory to plain values for the template.

Pure: nothing is read, decoded or drawn here. Every function gives ``None`` or an empty list where the run does not hold
what it needs, and the template leaves that part out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.runs.files import RunFiles, number
from transferkit.show.words import duration

__all__ = [
    "NOUNS",
    "against",
    "baseline",
    "calibration",
    "craft",
    "environment",
    "headline",
    "interval",
    "key_figures",
    "percent",
    "phase_spans",
    "phases",
    "solved_probe",
    "title",
]

NOUNS = {"test": "test", "val": "validation", "all": "labelled", "train": "training"}

FIGURES = (
    ("acc", "Accuracy", "share of pictures classified correctly"),
    ("balanced_acc", "Balanced accuracy", "mean recall of the classes, each counting the same"),
    ("f1_macro", "Macro F1", "mean over the classes of precision and recall in one"),
    ("acc_top5", "Top-5 accuracy", "the class is among the five most probable"),
    ("loss", "Log loss (NLL)", "mean negative log-likelihood of the true class; 0 at best"),
    ("ece", "Calibration error (ECE)", "mean distance of stated probability and accuracy; 0 at best"),
)


def percent(value: float | None) -> str:
    """Return a share in percent, with a narrow space that does not break; ``n/a`` where there is none."""
    return "n/a" if value is None else f"{100 * value:.1f}\u202f%"


def interval(values: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure; ``None`` without width, of which the bootstrap knows nothing."""
    bounds = values.get(f"{key}_ci")
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    low, high = number(bounds[0]), number(bounds[1])
    return None if low is None or high is None or low >= high else (low, high)


def title(files: RunFiles) -> dict[str, str]:
    """Return the page's title and the line under it."""
    data = Path(str(files.config.get("data") or "")).name
    backbone = str(files.config.get("backbone") or files.model.get("backbone") or "model")
    verb = {"finetune": "fine-tuned on", "probe": "probed on", "evaluate": "measured on"}[files.kind]
    if files.kind == "evaluate" and files.config.get("run"):
        backbone = Path(str(files.config["run"])).name
    counts = files.data.get("counts") or {}
    told = [f"{sum(by_class.values()):,}" + ("" if split == "all" else f" {split}")
            for split, by_class in counts.items() if by_class]  # fmt: skip
    parts = [f"{len(files.class_names)} classes"] if files.class_names else []
    parts += [", ".join(told) + " pictures"] if told else []
    seconds = number(files.metrics.get("time_s"))
    if seconds is not None:
        device = (files.metrics.get("environment") or {}).get("device")
        parts.append(duration(seconds) + (f" on {device}" if device else ""))
    return {"name": f"{backbone} {verb} {data}" if data else backbone, "parts": " · ".join(parts), "run": files.name}


# ---- figures ----------------------------------------------------------------------------------------------------


def headline(files: RunFiles) -> dict[str, Any] | None:
    """Return the accuracy that counts most, with its interval, what it means, and what speaks against it."""
    if not files.splits:
        return None
    split = files.splits[0]
    values = files.metrics[split]
    acc, count = float(values["acc"]), int(values.get("n") or 0)
    bounds = interval(values, "acc")
    noun = NOUNS[split]
    sentences = [f"{round(acc * count):,} of {count:,} {noun} pictures were classified correctly."] if count else []
    if bounds is not None:
        sentences.append(
            f"Another {count:,} pictures of the same kind could well have given anything from {percent(bounds[0])} to "
            f"{percent(bounds[1])}: that is the 95 % interval, from 1,000 bootstrap resamples of these pictures."
        )
    elif count and acc == 1.0:
        sentences.append(
            f"With no mistake in {count:,} pictures, up to {percent(min(1.0, 3 / count))} of all such pictures may "
            "still go wrong (rule of three, 95 %)."
        )
    largest = _largest(values)
    if largest is not None:
        sentences.append(f"Always answering “{largest[0]}”, the most frequent class, would give {percent(largest[1])}.")
    selection = files.metrics.get("selection") or {}
    note = str(selection.get("note") or "")
    optimistic = note if selection.get("monitor") is not None and split == "val" else ""
    seen, validated = (number(files.metrics.get(key)) for key in ("seen_in_training", "seen_in_val"))
    warnings = [optimistic] if optimistic else []
    if seen:
        warnings.append(f"the run was trained on {seen:,.0f} of these pictures, whose accuracy says little about new "
                        "ones")  # fmt: skip
    if validated:
        fitted = (files.metrics.get("calibration") or {}).get("fitted_on") == "val"
        warnings.append(f"the run was {'calibrated' if fitted else 'validated'} on {validated:,.0f} of these pictures")
    return {
        "split": split,
        "noun": noun,
        "acc": acc,
        "ci": bounds,
        "n": count,
        "sentences": sentences,
        "warnings": warnings,
        "note": "" if optimistic else note,
        "stopped_early": bool(selection.get("stopped_early")),
    }


def _largest(values: Mapping[str, Any]) -> tuple[str, float] | None:
    counts = {str(name): int(row.get("n") or 0) for name, row in (values.get("per_class") or {}).items()}
    if len(counts) < 2 or not sum(counts.values()):
        return None
    name = max(counts, key=lambda key: counts[key])
    return name, counts[name] / sum(counts.values())


def baseline(files: RunFiles) -> dict[str, Any] | None:
    """Compare the probe that came first with what was kept in the end, both on `val`."""
    rows = files.metrics.get("phases") or []
    val = files.metrics.get("val") or {}
    final = number(val.get("acc"))
    probe = number(rows[0].get("val_acc")) if len(rows) > 1 and rows[0].get("name") == "probe" else None
    if probe is None or final is None:
        return None
    bounds = interval(val, "acc")
    points = f"{100 * (final - probe):+.1f} points on val".replace("-", "\u2212")
    kept = (files.metrics.get("selection") or {}).get("kept")
    if kept == "the solved probe":
        verdict = "No epoch of fine-tuning was better on val than the probe, so the probe was kept."
    elif bounds is None:
        verdict = f"{points}."
    elif bounds[0] <= probe <= bounds[1]:
        verdict = (
            f"{points}. The probe lies inside the fine-tuned model's interval: these pictures are too few to say for "
            "sure which of the two is better."
        )
    elif final > probe:
        verdict = f"Yes: {points}, and the probe lies below the fine-tuned model's interval."
    else:
        verdict = f"No: {points}, and the probe lies above the fine-tuned model's interval."
    return {
        "rows": [
            {"name": "Probe: the head alone, on frozen features", "acc": probe, "ci": None},
            {"name": "Kept, the probe" if kept == "the solved probe" else "Fine-tuned", "acc": final, "ci": bounds},
        ],
        "verdict": verdict,
        "n": val.get("n"),
    }


def against(files: RunFiles) -> dict[str, Any] | None:
    """Return what came of `evaluate --against`: the other run's name, and by split the verdict and what it rests on."""
    told = files.metrics.get("against") or {}
    splits = [split for split in files.splits if isinstance(told.get(split), Mapping)]
    if not splits:
        return None
    names = [str(name) for name in told.get("names") or ("this run", "the other run")]
    rows = [
        {
            "split": split,
            "noun": NOUNS[split],
            "verdict": str(told[split].get("verdict") or ""),
            "table": told[split]["table"],
            "left_out": int(told[split].get("left_out") or 0),
        }
        for split in splits
    ]
    return {"names": names, "rows": rows}  # fmt: skip


def key_figures(files: RunFiles) -> dict[str, Any]:
    """Return a row per figure and a column per split; log loss and ECE with their value before calibration."""
    rows = []
    for key, name, meaning in FIGURES:
        cells = [_figure(files.metrics[split], key) for split in files.splits]
        if any(cell["text"] != "n/a" for cell in cells):
            rows.append({"name": name, "meaning": meaning, "cells": cells})
    columns = [{"split": split, "n": files.metrics[split].get("n")} for split in files.splits]
    return {"columns": columns, "rows": rows}


def _figure(values: Mapping[str, Any], key: str) -> dict[str, str]:
    plain = key in ("loss", "ece")
    show = (lambda value: f"{value:.3f}") if plain else percent
    value, bounds = number(values.get(key)), interval(values, key)
    before = number((values.get("uncalibrated") or {}).get(key))
    return {
        "text": "n/a" if value is None else show(value),
        "ci": f"{show(bounds[0])} to {show(bounds[1])}" if bounds else "",
        "before": f"{before:.3f} uncalibrated" if before is not None else "",
    }


def solved_probe(files: RunFiles) -> dict[str, Any]:
    """Return the figures of a head that was solved before the first epoch; empty where there is none."""
    rows = files.metrics.get("phases") or ()
    return dict(rows[0]) if rows and not rows[0].get("epochs") else {}


def phase_spans(files: RunFiles) -> list[tuple[str, float, float]]:
    """Return name, begin and end of each phase on the axis of a chart, where epoch 1 spans 0.5 to 1.5."""
    found: list[tuple[str, float, float]] = []
    if solved_probe(files):
        found.append((str(solved_probe(files).get("name")), -0.5, 0.5))
    for name in dict.fromkeys(str(row.get("phase")) for row in files.history):
        inside = [row["epoch"] + 1 for row in files.history if str(row.get("phase")) == name]
        found.append((name, min(inside) - 0.5, max(inside) + 0.5))
    return found


def phases(files: RunFiles) -> list[dict[str, str]]:
    """Return what happened in each phase, by column: what was trained, for how long, and what came of it."""
    planned = {str(phase.get("name")): phase for phase in files.plan.get("phases") or ()}
    rows = []
    for phase in files.metrics.get("phases") or ():
        plan = planned.get(str(phase.get("name")), {})
        train, parameters = plan.get("train") or "", plan.get("trainable_parameters")
        seconds, rate, loss = (number(phase.get(key)) for key in ("time_s", "images_per_s", "val_loss"))
        shares = {f"{split} acc": number(phase.get(f"{split}_acc")) for split in ("train", "val")}
        rows.append({
            "phase": str(phase.get("name")),
            "epochs": str(phase["epochs"]) if phase.get("epochs") else "solved",
            "trains": ", ".join(map(str, train)) if isinstance(train, list) else str(train),
            "parameters": f"{parameters:,}" if parameters else "",
            **{name: "" if share is None else percent(share) for name, share in shares.items()},
            "val loss": "" if loss is None else f"{loss:.3f}",
            "images/s": "" if rate is None else f"{rate:,.0f}",
            "time": "" if seconds is None else duration(seconds),
        })  # fmt: skip
    return rows


def calibration(values: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the reliability bins of a split and what calibration did to it."""
    bins = [row for row in values.get("reliability") or () if isinstance(row, Mapping)]
    if not bins:
        return None
    sentences = []
    before, after = number((values.get("uncalibrated") or {}).get("ece")), number(values.get("ece"))
    if before is not None and after is not None:
        sentences.append(f"ECE was {before:.3f} before calibration and is {after:.3f} after it.")
    if told.get("method") == "temperature" and number(told.get("temperature")):
        heat = float(told["temperature"])
        was = "too sure of itself" if heat > 1.02 else "too timid" if heat < 0.98 else "about right"
        sentences.append(f"The logits are divided by a temperature of {heat:.3g}: the model was {was}.")
    elif told.get("method"):
        sentences.append(f"Calibration is {told['method']} scaling.")
    if told.get("fitted_on"):
        folds = f", cross-fitted over {told['folds']} folds for the figures of that split" if told.get("folds") else ""
        sentences.append(f"It was fitted on {NOUNS.get(told['fitted_on'], told['fitted_on'])} pictures{folds}.")
    return {"bins": bins, "sentences": sentences, "before": before, "after": after}


# ---- the rest --------------------------------------------------------------------------------------------------------


def craft(files: RunFiles) -> list[str]:
    """Return what was done to the weights after the last step, a sentence each."""
    metrics, found = files.metrics, []
    if files.config.get("ema"):
        found.append(f"The weights are an exponential moving average (decay {files.config['ema']:g}).")
    if "interpolation" in metrics:
        mixed = metrics["interpolation"]
        ends = f"{percent(mixed['val_acc'][0])} at 0, {percent(mixed['val_acc'][-1])} at 1"
        found.append(f"Weights of probe and fine-tuned model were mixed: {mixed['alpha']:g} of the fine-tuned ones, "
                     f"chosen on val ({ends}).")  # fmt: skip
    if "recalibrated_bn" in metrics:
        found.append(f"The statistics of {metrics['recalibrated_bn']} batch-norm layers come from one pass over the "
                     "training pictures.")  # fmt: skip
    for split, values in (metrics.get("snapshots") or {}).items():
        alone = [number(acc) for acc in values.get("each_acc") or ()]
        known = [acc for acc in alone if acc is not None]
        apart = f"; alone they reach {percent(min(known))} to {percent(max(known))}" if known else ""
        found.append(f"{len(alone)} snapshots together reach {percent(number(values.get('acc')))} on {split}{apart}.")
    return found


def environment(files: RunFiles) -> list[tuple[str, str]]:
    """Return what the run was computed with, name and value."""
    model, rows = files.model, []
    if model.get("backbone"):
        source = f", weights {model['weights_source']}" if model.get("weights_source") else ""
        rows.append(("backbone", f"{model['backbone']}{source}"))
    if model.get("license"):
        rows.append(("licence of the weights", str(model["license"])))
    size = (model.get("preprocessing") or {}).get("image_size")
    if isinstance(size, Sequence) and len(size) == 2:
        rows.append(("input", f"{size[0]} by {size[1]} pixels"))
    parameters = sum(int(group.get("parameters") or 0) for group in files.plan.get("groups") or ())
    if parameters:
        rows.append(("parameters", f"{parameters:,}"))
    environment_ = files.metrics.get("environment") or {}
    rows += [(str(key).replace("_", " "), str(value)) for key, value in environment_.items() if value not in (None, "")]
    return rows
