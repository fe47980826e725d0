"""The page about one picture: what the network sees, the evidence, what is predicted, the nearest training pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from transferkit.data.images.decode import Pixels
from transferkit.results.explain.gradcam import Heat
from transferkit.results.explain.neighbours import Neighbour
from transferkit.results.explain.pictures import COLOURS, overlay
from transferkit.show.charts import save_figure

__all__ = ["TOP", "Evidence", "draw_page"]

TOP = 5
"""Largest shares that a page shows."""
CELLS = 12
"""Cells of a row that it shows where there are no shares."""

PER_ROW = 5
"""Training pictures beside each other."""

SIDE, SMALL, ROW = 3.0, 1.72, 2.3
"""Inches: side of the picture, side of a training picture, height of a row of these with their labels."""

INK, FAINT, BAR, TARGET = "#222222", "#666666", "#9db8d9", "#1f5fa8"


@dataclass(frozen=True)
class Evidence:
    """What a page shows.

    Attributes:
        path: The picture's file.
        picture: What the network sees of it, at a size to look at.
        answer: What is predicted.
        shares: How much of each name is predicted, the most first; empty for a task without shares.
        target: What the heat map is about.
        heat: Where the evidence lies; ``None`` for a model without heat maps.
        near: The nearest training pictures, each with what is shown of it; ``None`` where it cannot be read.
        measure: What the shares are.
        cells: What is predicted as a row of a table, column by column; shown where there are no shares.
    """

    path: str
    picture: Pixels
    answer: str
    shares: Mapping[str, float]
    target: str
    heat: Heat | None
    near: Sequence[tuple[Neighbour, Pixels | None]]
    measure: str = "probability"
    cells: Mapping[str, object] = field(default_factory=dict)


def draw_page(evidence: Evidence, path: Path) -> None:
    """Write a page as a PNG.

    Raises:
        StorageError: The disk is full or read-only.
    """
    with rc_context({"text.parse_math": False, "text.color": INK, "font.size": 9}), warnings.catch_warnings():
        # A class name in a script that the font has not is drawn as boxes; the table has it.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        page = _Page(rows=-(-len(evidence.near) // PER_ROW))
        page.write(0.0, 0.12, _text(evidence.path, 110, keep_end=True))
        title, share = _text(evidence.answer, 24), evidence.shares.get(evidence.answer)
        if share is not None:
            title = f"{title}, {share:.1%}"
        elif evidence.answer in evidence.cells:
            title = f"{title}: {evidence.cells[evidence.answer]}"
        page.picture(0.0, 0.75, SIDE, evidence.picture, title, fontweight="bold")
        _draw_heat(page, evidence)
        if evidence.shares:
            _draw_shares(page.axes(2 * SIDE + 0.6, 0.75, 2.8, SIDE), evidence)
        elif evidence.cells:
            _draw_cells(page.axes(2 * SIDE + 0.6, 0.75, 2.8, SIDE), evidence)
        if evidence.near:
            page.write(0.0, 4.4, "nearest training pictures, with cosine similarity")
        for place, (near, picture) in enumerate(evidence.near):
            row, column = divmod(place, PER_ROW)
            title = f"{_text(near.label, 22)}\n{near.similarity:.3f}".lstrip("\n")
            page.picture(column * (SMALL + 0.2), 4.98 + row * ROW, SMALL, picture, title, fontsize="medium")
        save_figure(page.figure, path)


class _Page:
    """A figure whose parts are placed in inches from its upper left corner, within a margin.

    Args:
        rows: Of training pictures.
    """

    def __init__(self, *, rows: int) -> None:
        self.size = (3 * SIDE + 1.0, 4.3 + (0.25 + rows * ROW if rows else 0.0))
        self.figure = Figure(figsize=self.size)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes in a box."""
        across, down = self.size
        box = ((left + 0.3) / across, 1.0 - (top + height) / down, width / across, height / down)
        return self.figure.add_axes(box)

    def write(self, left: float, top: float, text: str) -> None:
        """Write a line."""
        self.figure.text((left + 0.3) / self.size[0], 1.0 - top / self.size[1], text, va="top", color=FAINT)

    def picture(
        self, left: float, top: float, side: float, picture: Pixels | None, title: str, *,
        missing: str = "cannot be read", **style: Any,
    ) -> Axes:  # fmt: skip
        """Draw a picture under its title, or why there is none."""
        axis = self.axes(left, top, side, side)
        axis.set_title(title, **style)
        if picture is None:
            axis.set_axis_off()
            axis.text(0.5, 0.5, missing, ha="center", va="center", color=FAINT, transform=axis.transAxes)
            return axis
        axis.imshow(picture)
        axis.set_anchor("N")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        return axis


def _draw_heat(page: _Page, evidence: Evidence) -> None:
    heat = evidence.heat
    axis = page.picture(
        SIDE + 0.2, 0.75, SIDE, None if heat is None else overlay(evidence.picture, heat),
        f"evidence for {_text(evidence.target, 24)}", missing="this model has no heat maps",
    )  # fmt: skip
    if heat is None:
        return
    if not heat.any():
        axis.set_xlabel("no place speaks for it", color=FAINT)
        return
    scale = page.axes(SIDE + 0.6, 3.9, SIDE - 0.8, 0.09)
    bar = page.figure.colorbar(ScalarMappable(cmap=COLOURS), cax=scale, orientation="horizontal")
    bar.set_ticks([0.0, 1.0], labels=["none", "most"])
    scale.tick_params(length=0, labelsize="small", labelcolor=FAINT)


def _draw_shares(axis: Axes, evidence: Evidence) -> None:
    """Draw the largest shares as bars, the target among them even if it is not one of these."""
    target, names = evidence.target, list(evidence.shares)[:TOP]
    if target not in names:
        names[-1] = target
    axis.set_title(evidence.measure)
    axis.set_axis_off()
    axis.set(xlim=(0.0, 1.2), ylim=(TOP, 0))
    for at, name in enumerate(names):
        share = evidence.shares[name]
        axis.text(0.0, at + 0.4, _text(name, 32), va="bottom", fontweight="bold" if name == target else "normal")
        axis.barh(at + 0.62, share, height=0.34, color=TARGET if name == target else BAR)
        axis.text(share + 0.02, at + 0.62, f"{share:.1%}", va="center")


def _draw_cells(axis: Axes, evidence: Evidence) -> None:
    """Write the first cells under each other, those of the target in bold."""
    axis.set_title("predicted")
    axis.set_axis_off()
    axis.set(xlim=(0.0, 1.0), ylim=(CELLS, 0))
    for at, (name, value) in enumerate(list(evidence.cells.items())[:CELLS]):
        weight = "bold" if name == evidence.target else "normal"
        axis.text(0.0, at + 0.5, _text(name, 26), va="center", fontweight=weight)
        axis.text(1.0, at + 0.5, _text(str(value), 12), va="center", ha="right", fontweight=weight)


def _text(text: str, most: int, *, keep_end: bool = False) -> str:
    """Return a text of other people's making, fit for one line: nothing unprintable, and not longer than `most`."""
    clean = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for letter in text.encode("utf-8", "replace").decode("utf-8")
    )
    if len(clean) <= most:
        return clean
    return f"…{clean[1 - most :]}" if keep_end else f"{clean[: most - 1]}…"
