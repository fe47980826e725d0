"""What `features` prints at the end."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from transferkit.features.extract.table import FeatureTable
from transferkit.show.words import duration

__all__ = ["print_features"]


def print_features(table: FeatureTable, *, out: str | None, seconds: float, console: Console | None = None) -> None:
    """Print what was extracted on standard output.

    Args:
        table: The features.
        out: The file they were exported to.
        seconds: How long it took.
        console: Where to print.
    """
    console = console or Console(highlight=False)
    facts = table.facts
    counts = Counter(record.split for record in table.records)
    told = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "val", "test") if counts[split])
    widths = ", ".join(f"{layer} {rows.shape[1]}" for layer, rows in table.layers.items())
    console.print(f"pictures  {len(table):,} of {len(table.class_names)} classes ({told})", soft_wrap=True)
    console.print(f"features  {facts['backbone']}: {widths} wide", soft_wrap=True)
    if facts["views"]:
        console.print(f"views     1 plain, {facts['views']} augmented ({facts['augment']})", soft_wrap=True)
    console.print(f"computed  {facts['computed']:,}, the others were in the store; {duration(seconds)}", soft_wrap=True)
    console.print(f"precision {facts['precision']}: {facts['precision_reason']}", soft_wrap=True)
    console.print(f"store     {facts['store']}", soft_wrap=True)
    if out is not None:
        console.print(f"written   {out}", soft_wrap=True)
