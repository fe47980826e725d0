"""The terminal: where lines and tables go, and progress bars with pictures done, pictures per second, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["RateColumn", "counting_bar", "output_console", "progress_console", "waiting"]


def output_console() -> Console:
    """Return where results are printed: standard output. A text is printed as it is: names may hold ``[brackets]``."""
    return Console(highlight=False, markup=False, emoji=False)


def progress_console(quiet: bool) -> Console | None:
    """Return where bars are drawn, or ``None``: quiet, or standard error is not a terminal."""
    console = Console(stderr=True, markup=False, emoji=False)
    return console if console.is_terminal and not quiet else None


class RateColumn(ProgressColumn):
    """Pictures per second."""

    def render(self, task: Task) -> Text:
        """Return the text of one bar."""
        rate = task.fields.get("rate")
        rate = task.speed if rate is None else rate
        return Text(f"{rate:,.0f} images/s" if rate else "", style="progress.data.speed")


@contextmanager
def counting_bar(console: Console | None, description: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """Show a bar of pictures done; yields the function to tell it by, or ``None`` without a console."""
    if console is None:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def waiting(console: Console | None, description: str) -> AbstractContextManager[object]:
    """Show that something is going on whose length is not known."""
    return nullcontext() if console is None else console.status(description)
