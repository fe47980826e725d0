"""The lines of an audit on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from transferkit.core.text import visible
from transferkit.results.audit.record import PICTURES, Audit

__all__ = ["print_audit"]

SKIPPED = 20
"""Of files that are no part of the data set, how many are named."""


def print_audit(audit: Audit, console: Console) -> None:
    """Print the pictures of each class and split, and every finding.

    Args:
        audit: What was found.
        console: Where to print.
    """
    counts = audit.counts
    if counts:
        table = Table(title=audit.data, title_justify="left", title_style="bold")
        table.add_column("class")
        for column in (*counts, "all"):
            table.add_column(column, justify="right")
        for name in next(iter(counts.values())):
            row = [of_split[name] for of_split in counts.values()]
            table.add_row(name, *map(str, row), str(sum(row)))
        totals = [audit.sizes[split] for split in counts]
        table.add_section()
        table.add_row("all" if audit.unit == PICTURES else PICTURES, *map(str, totals), str(sum(totals)))
        console.print(table)
    lines = [issue.message for issue in audit.issues]
    lines += [f"skipped {file.path}: {file.reason}" for file in audit.skipped[:SKIPPED]]
    if len(audit.skipped) > SKIPPED:
        lines.append(f"and {len(audit.skipped) - SKIPPED} skipped files more")
    if not lines:
        console.print("nothing to complain of")
    lines += [f"left out: {reason}" for reason in audit.left_out]
    for line in lines:
        console.print(f"- {visible(line)}", soft_wrap=True)
