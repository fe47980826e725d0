"""What a report says of one run, whatever its task: from the files of its directory to plain values for the template.

Pure: nothing is read, decoded or drawn here. Every function gives ``None`` or an empty list where the run does not hold
what it needs, and the template leaves that part out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.models.figures.figure import Figure
from transferkit.options.fields import flag
from transferkit.runs.files import RunFiles, number
from transferkit.show.words import MINUS, PERCENT, duration, mid_sentence, value_text

__all__ = [
    "NOUNS",
    "against",
    "baseline",
    "craft",
    "data_notes",
    "environment",
    "headline",
    "interval",
    "key_figures",
    "phases",
    "shown",
    "solved_head",
    "spoilt",
    "spoilt_text",
    "title",
]

NOUNS = {"test": "test", "val": "validation", "all": "labelled", "train": "training"}

LISTED = 20
"""Classes that a note names."""


def shown(value: float | None, unit: str) -> str:
    """Return a value as a page writes it."""
    return value_text(number(value), unit, percent=PERCENT)


def interval(figure: Figure) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure; ``None`` without width, of which the bootstrap knows nothing."""
    bounds = figure.interval
    return None if bounds is None or any(number(bound) is None for bound in bounds) else bounds


def title(files: RunFiles, answers: str) -> dict[str, str]:
    """Return the page's title and the line under it.

    Args:
        files: The run.
        answers: What its model can answer, such as ``"3 classes"``.
    """
    data = Path(str(files.config.get("data") or "")).name
    backbone = str(files.config.get("backbone") or files.model.get("backbone") or "model")
    verb = {"finetune": "fine-tuned on", "probe": "probed on", "evaluate": "measured on"}[files.kind]
    if files.kind == "evaluate" and files.config.get("run"):
        backbone = Path(str(files.config["run"])).name
    sizes = [f"{count:,}" + ("" if split == "all" else f" {split}") for split, count in files.sizes.items() if count]
    parts = [answers] if answers else []
    parts += [", ".join(sizes) + " pictures"] if sizes else []
    seconds = number(files.metrics.get("time_s"))
    if seconds is not None:
        device = (files.metrics.get("environment") or {}).get("device")
        parts.append(duration(seconds) + (f" on {device}" if device else ""))
    return {"name": f"{backbone} {verb} {data}" if data else backbone, "parts": " · ".join(parts), "run": files.name}


# ---- figures ----------------------------------------------------------------------------------------------------


def headline(files: RunFiles, sentences: Sequence[str]) -> dict[str, Any] | None:
    """Return the figure that counts most, with its interval, what it means, and what speaks against it.

    Args:
        files: The run.
        sentences: What its task has to say of the figure.
    """
    if not files.splits:
        return None
    split = files.splits[0]
    figure, count = files.figures(split)[0], int(files.metrics[split].get("n") or 0)
    bounds, sentences = interval(figure), list(sentences)
    if bounds is not None and count:
        low, high = (shown(bound, figure.unit) for bound in bounds)
        sentences.append(
            f"Another {count:,} pictures of the same kind could well have given anything from {low} to {high}: that is "
            "the 95 % interval, from 1,000 bootstrap resamples of these pictures."
        )
    selection = files.metrics.get("selection") or {}
    note = str(selection.get("note") or "")
    optimistic = note if selection.get("monitor") is not None and split == "val" else ""
    trained, validated = (number(files.metrics.get(key)) for key in ("seen_in_training", "seen_in_val"))
    warnings = [optimistic] if optimistic else []
    if trained:
        label = mid_sentence(figure.label)
        warnings.append(f"the run was trained on {trained:,.0f} of these pictures, whose {label} says little about new "
                        "ones")  # fmt: skip
    if validated:
        fitted = (files.metrics.get("calibration") or {}).get("fitted_on") == "val"
        warnings.append(f"the run was {'calibrated' if fitted else 'validated'} on {validated:,.0f} of these pictures")
    return {
        "figure": figure,
        "ci": bounds,
        "n": count,
        "noun": NOUNS[split],
        "sentences": sentences,
        "warnings": warnings,
        "note": "" if optimistic else note,
        "stopped_early": bool(selection.get("stopped_early")),
    }


def baseline(files: RunFiles) -> dict[str, Any] | None:
    """Compare the probe that came first with what was kept in the end, both by the headline on `val`."""
    rows = files.metrics.get("phases") or []
    if len(rows) < 2 or rows[0].get("name") != "probe" or "val" not in files.splits:
        return None
    first, *others = files.figures("val")
    # Epochs are measured over all targets: of a single one its own unit is another than theirs.
    figure = next((one for one in others if one.key == first.key and one.of is None), first) if first.of else first
    selection = files.metrics.get("selection") or {}
    otherwise = files.epochs.measured
    probe, final, bounds = number(rows[0].get(f"val_{figure.key}")), number(figure.value), interval(figure)
    if otherwise:  # the probe has no figure at the end: both stand as epochs are measured, without an interval
        kept = [row for row in files.history if row.get("epoch") == selection.get("epoch")]
        final, bounds = (number(kept[0].get(f"val_{figure.key}")) if kept else probe), None
    if probe is None or final is None:
        return None
    gain = final - probe
    points = f"{100 * gain:+.1f} points" if figure.unit == "share" else f"{gain:+.3f}"
    change = f"{points} on val".replace("-", MINUS)
    product = selection.get("kept")
    side = "below" if probe < final else "above"
    if product == "the solved probe":
        verdict = "No epoch of fine-tuning was better on val than the probe, so the probe was kept."
    elif bounds is None:
        verdict = f"{change}."
    elif bounds[0] <= probe <= bounds[1]:
        verdict = (
            f"{change}. The probe lies inside the fine-tuned model's interval: these pictures are too few to say for "
            "sure which of the two is better."
        )
    else:
        better = (gain > 0) == figure.higher_is_better
        verdict = f"{'Yes' if better else 'No'}: {change}, and the probe lies {side} the fine-tuned model's interval."
    return {
        "rows": [
            {"name": "Probe: the head alone, on frozen features", "value": probe, "ci": None},
            {
                "name": "Kept, the probe" if product == "the solved probe" else "Fine-tuned",
                "value": final,
                "ci": bounds,
            },
        ],
        "unit": figure.unit,
        "verdict": f"{verdict} {otherwise}".strip(),
    }


def against(files: RunFiles) -> dict[str, Any] | None:
    """Return what came of `evaluate --against`: the other run's name, and by split the verdict and what it rests on."""
    comparison = files.metrics.get("against") or {}
    splits = [split for split in files.splits if isinstance(comparison.get(split), Mapping)]
    if not splits:
        return None
    names = [str(name) for name in comparison.get("names") or ("this run", "the other run")]
    rows = [
        {
            "noun": NOUNS[split],
            "verdict": str(comparison[split].get("verdict") or ""),
            "table": comparison[split].get("table"),
            "left_out": int(comparison[split].get("left_out") or 0),
        }
        for split in splits
    ]
    return {"names": names, "rows": rows}


def spoilt(files: RunFiles) -> list[dict[str, Any]]:
    """Return what an evaluation found on spoilt pictures, by split: a sentence, and a row for each kind."""
    parts = []
    for split, noun in NOUNS.items():
        values = (files.metrics.get(split) or {}).get("corruptions")
        if values:
            unit = values["figure"]["unit"]
            rows = [(kind, [shown(value, unit) for value in row]) for kind, row in values["values"].items()]
            parts.append({"noun": noun, "values": values, "text": spoilt_text(values), "rows": rows,
                          "clean": shown(values["clean"], unit)})  # fmt: skip
    return parts


def spoilt_text(values: Mapping[str, Any]) -> str:
    """Return what the pictures of a split are worth when they are spoilt, in one line.

    Args:
        values: What `metrics.json` holds of it, see `figures_spoilt`.
    """
    figure, worst = values["figure"], values["worst"]
    clean, mean = (value_text(number(values[name]), figure["unit"]) for name in ("clean", "mean"))
    name = mid_sentence(figure["label"])
    text = f"{name} {clean} on {values['pictures']:,} pictures, {mean} on average of spoilt ones"
    if worst is None:
        return text
    value = value_text(number(worst["value"]), figure["unit"])
    return f"{text}, at worst {value} ({worst['kind']}, strength {worst['strength']})"


def key_figures(files: RunFiles) -> dict[str, Any]:
    """Return a row per figure of all pictures and a column per split, with the values before calibration."""
    by_split = {split: {one.key: one for one in files.figures(split) if one.of is None} for split in files.splits}
    figures = {key: figure for figures in by_split.values() for key, figure in figures.items()}
    rows = []
    for key, figure in figures.items():
        cells = [_cell(by_split[split].get(key), files.metrics[split]) for split in files.splits]
        if any(cell["text"] != "n/a" for cell in cells):
            rows.append({"name": figure.label, "meaning": figure.meaning, "cells": cells})
    columns = [{"split": split, "n": files.metrics[split].get("n")} for split in files.splits]
    return {"columns": columns, "rows": rows}


def _cell(figure: Figure | None, values: Mapping[str, Any]) -> dict[str, str]:
    if figure is None:
        return {"text": "n/a", "ci": "", "before": ""}
    bounds, before = interval(figure), number((values.get("uncalibrated") or {}).get(figure.key))
    return {
        "text": shown(figure.value, figure.unit),
        "ci": "" if bounds is None else " to ".join(shown(bound, figure.unit) for bound in bounds),
        "before": "" if before is None else f"{shown(before, figure.unit)} uncalibrated",
    }


def solved_head(files: RunFiles) -> dict[str, Any]:
    """Return the figures of a head that was solved before the first epoch; empty where there is none."""
    rows = files.metrics.get("phases") or ()
    return dict(rows[0]) if rows and not rows[0].get("epochs") else {}


def phases(files: RunFiles) -> list[dict[str, str]]:
    """Return what happened in each phase, by column: what was trained, for how long, and what came of it."""
    planned = {str(phase.get("name")): phase for phase in files.plan.get("phases") or ()}
    followed = [(split, figure) for figure in files.followed[1:2] for split in ("train", "val")]
    followed += [("val", figure) for figure in files.followed[:1]]
    rows = []
    for phase in files.metrics.get("phases") or ():
        plan = planned.get(str(phase.get("name")), {})
        train, parameters = plan.get("train") or "", plan.get("trainable_parameters")
        seconds, rate = number(phase.get("time_s")), number(phase.get("images_per_s"))
        values = {f"{split} {figure.key}": (number(phase.get(f"{split}_{figure.key}")), figure.unit)
                  for split, figure in followed}  # fmt: skip
        rows.append({
            "phase": str(phase.get("name")),
            "epochs": str(phase["epochs"]) if phase.get("epochs") else "solved",
            "trains": ", ".join(map(str, train)) if isinstance(train, list) else str(train),
            "parameters": f"{parameters:,}" if parameters else "",
            **{name: "" if value is None else shown(value, unit) for name, (value, unit) in values.items()},
            "images/s": "" if rate is None else f"{rate:,.0f}",
            "time": "" if seconds is None else duration(seconds),
        })  # fmt: skip
    return rows


# ---- the rest --------------------------------------------------------------------------------------------------------


def craft(files: RunFiles) -> list[str]:
    """Return what was done to the weights after the last step, a sentence each."""
    metrics, lines = files.metrics, []
    choices = [f"{flag(str(choice.get('name')))} {choice.get('value')} ({choice.get('reason')})"
               for choice in files.plan.get("choices") or ()]  # fmt: skip
    if choices:
        lines.append(f"Options that nobody named were chosen for these pictures: {', '.join(choices)}.")
    figure = files.followed[min(1, len(files.followed) - 1)]
    if files.config.get("ema"):
        lines.append(f"The weights are an exponential moving average (decay {files.config['ema']:g}).")
    if rule := (metrics.get("selection") or {}).get("rule"):
        lines.append(f"The rule by which weights were kept: {rule}.")
    if "interpolation" in metrics:
        mixed = metrics["interpolation"]
        first, last = (shown(mixed[f"val_{figure.key}"][at], figure.unit) for at in (0, -1))
        lines.append(f"Weights of probe and fine-tuned model were mixed: {mixed['alpha']:g} of the fine-tuned ones, "
                     f"chosen on val ({first} at 0, {last} at 1).")  # fmt: skip
    if "recalibrated_bn" in metrics:
        lines.append(f"The statistics of {metrics['recalibrated_bn']} batch-norm layers come from one pass over the "
                     "training pictures.")  # fmt: skip
    for split, values in (metrics.get("snapshots") or {}).items():
        alone = [number(value) for value in values.get(f"each_{figure.key}") or ()]
        known = [value for value in alone if value is not None]
        apart = (f"; alone they reach {shown(min(known), figure.unit)} to {shown(max(known), figure.unit)}" if known
                 else "")  # fmt: skip
        together = shown(values.get(figure.key), figure.unit)
        lines.append(f"{len(alone)} snapshots together reach {together} on {split}{apart}.")
    return lines


def data_notes(files: RunFiles) -> list[str]:
    """Return what is worth knowing of the pictures, and what an evaluation did not measure, a sentence each."""
    left_out = files.metrics.get("left_out") or {}
    notes = [str(note) for note in files.data.get("notes") or ()]
    if left_out.get("seen_in_training"):
        notes.append(f"{left_out['seen_in_training']:,} pictures that the run was trained on were left out.")
    if left_out.get("unreadable"):
        notes.append(f"{left_out['unreadable']:,} unreadable pictures were left out.")
    unknown = files.data.get("unknown_classes") or {}
    if unknown:
        notes.append(f"{sum(unknown.values()):,} pictures of {len(unknown)} classes that the model lacks were left "
                     f"out: {_listed([f'{name} ({count:,})' for name, count in unknown.items()])}.")  # fmt: skip
    missing = [str(name) for name in files.data.get("missing_classes") or ()]
    if missing:
        notes.append(f"There are no pictures of {len(missing)} classes that the model knows: {_listed(missing)}.")
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


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
    machine = files.metrics.get("environment") or {}
    rows += [(str(key).replace("_", " "), str(value)) for key, value in machine.items() if value not in (None, "")]
    return rows
