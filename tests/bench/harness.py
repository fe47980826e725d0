"""Ratios measured in one run: both sides take turns, so that a noisy machine disturbs them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

__all__ = ["compare", "machine", "print_table"]


def compare(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Call every side once per round, in turn, after one call of each that does not count.

    Args:
        sides: What to measure by name; each call returns its own figure (seconds, or images per second).
        rounds: How many figures of each to take.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            value = measure()
            if number:
                figures[name].append(value)
    return figures


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def print_table(title: str, figures: Mapping[str, list[float]], *, base: str, unit: str) -> dict[str, float]:
    """Print medians, spread and ratios over `base`; return the ratios."""
    print(f"\n{title} ({machine()})")
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios = {name: value / medians[base] for name, value in medians.items()}
    for name, values in figures.items():
        low, high = min(values), max(values)
        print(f"  {name:<44}{medians[name]:>10.3f} {unit}   {low:.3f} to {high:.3f}   ratio {ratios[name]:.2f}")
    return ratios


def machine() -> str:
    """Return date, processor and versions, for the record."""
    import torch

    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as stream:
            processor = next(line.split(":")[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    return f"{date.today()}, {device}, Python {platform.python_version()}, torch {torch.__version__}"
