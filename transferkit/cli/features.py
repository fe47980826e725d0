"""The `features` verb: extraction into the store, by one process or several, and what it prints at the end."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path

from transferkit.features.extract.extract import extract_table
from transferkit.features.extract.table import FeatureTable, check_export
from transferkit.options.features import FeaturesConfig
from transferkit.show.progress import counting_bar, output_console, progress_console
from transferkit.show.words import duration
from transferkit.training.ranks.connecting import connected, place_of_torchrun
from transferkit.training.ranks.parallel import gather, is_writer, on_first

__all__ = ["extract_features"]


def extract_features(config: FeaturesConfig) -> None:
    """Extract features, export them where that is asked for, and print what was done on standard output.

    Raises:
        TransferkitError: As `extract_table` says.
    """
    if config.out is not None:
        check_export(Path(config.out))
    with (
        connected(place_of_torchrun()),  # each of them extracts what no other has claimed
        counting_bar(progress_console(config.quiet or not is_writer()), "extracting features") as progress,
    ):
        started = time.perf_counter()
        table = extract_table(config, indexing=progress, extracting=progress)
        computed = sum(gather(table.facts["computed"]))
        table = dataclasses.replace(table, facts={**table.facts, "computed": computed})
        if config.out is not None:
            on_first(table.save, config.out)
        writes = is_writer()
    if writes and not config.quiet:
        _print(table, config.out, time.perf_counter() - started)


def _print(table: FeatureTable, out: str | None, seconds: float) -> None:
    facts = table.facts
    counts = Counter(record.split for record in table.records)
    splits = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "val", "test") if counts[split])
    widths = ", ".join(f"{layer} {rows.shape[1]}" for layer, rows in table.layers.items())
    lines = {
        "pictures": f"{len(table):,} of {len(table.class_names)} classes ({splits})",
        "features": f"{facts['backbone']}: {widths} wide",
        "views": f"1 plain, {facts['views']} augmented ({facts['augment']})" if facts["views"] else None,
        "computed": f"{facts['computed']:,}, the others were in the store; {duration(seconds)}",
        "precision": f"{facts['precision']}: {facts['precision_reason']}",
        "store": facts["store"],
        "written": out,
    }
    console = output_console()
    for name, text in lines.items():
        if text is not None:
            console.print(f"{name:<10}{text}", soft_wrap=True)
