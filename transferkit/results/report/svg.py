"""matplotlib's SVG, made to live inside a page in light and in dark.

Every colour is drawn as a stand-in and replaced by a CSS variable of the page; texts stay texts in the page's font;
identifiers get the chart's own name in front, because several charts share one page.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from transferkit.core.text import visible

__all__ = [
    "ACCENT",
    "DASHES",
    "FONT",
    "GRID",
    "HEIGHT",
    "INK",
    "MUTED",
    "SECOND",
    "SERIES",
    "SHADES",
    "STYLE",
    "VARIABLES",
    "WIDTH",
    "Chart",
    "figure_with_axis",
    "svg_of",
]

WIDTH, HEIGHT = 440, 264  # about what a phone shows, so that the texts keep their size there
FONT = 11.5

# Stand-ins that no colour of matplotlib's own equals, and what the page calls them.
INK, MUTED, GRID = "#010201", "#010202", "#010203"
ACCENT, SECOND = "#010204", "#010205"
SHADES = ("#010206", "#010207")
SERIES = ("#010204", "#010205", "#010208", "#010209", "#010210", "#010211")
VARIABLES = {
    INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", ACCENT: "var(--accent)", SECOND: "var(--second)",
    SHADES[0]: "var(--shade)", SHADES[1]: "var(--shade-2)", SERIES[2]: "var(--s3)", SERIES[3]: "var(--s4)",
    SERIES[4]: "var(--s5)", SERIES[5]: "var(--s6)",
}  # fmt: skip
FONTS = re.compile(r"font-family:[^;]*;?")
LINK = re.compile(r"#(?=[a-z])([\w.-]+)")
NUMBER = re.compile(r"-?\d+\.\d{2,}")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
STYLE: Final[Any] = {
    "svg.fonttype": "none",  # texts in the page's own font, found by its search
    "text.parse_math": False,  # a class may be called $x$
    "font.size": FONT,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Chart:
    """A chart for the page.

    Attributes:
        svg: An ``<svg>`` element.
        title: What it shows, as a heading.
        legend: Name, CSS colour, opacity and dash of each line, where there are several.
    """

    svg: Markup
    title: str
    legend: tuple[tuple[str, str, float, str], ...] = ()


def figure_with_axis() -> tuple[Figure, Axes]:
    """Return an empty chart of the usual size. Inside `matplotlib.rc_context(STYLE)`, like all drawing."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    axis = figure.subplots()
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    return figure, axis


def svg_of(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as an element of the page.

    Args:
        figure: Drawn with the colours of this module.
        name: Unique within the page.
        description: What a reader who cannot see it is told.
    """
    FigureCanvasSVG(figure)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    for parent in list(root.iter()):
        parent.tag = _plain(parent.tag)
        for child in list(parent):
            if _plain(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = {link for element in root.iter() for value in element.attrib.values() for link in LINK.findall(value)}
    for element in root.iter():
        old = dict(element.attrib)
        element.attrib.clear()
        for key, value in old.items():
            key = _plain(key)
            if key == "id":
                value = f"{name}-{value}" if value in used else ""
            elif key == "style":
                value = re.sub(r"#[0-9a-f]{6}", lambda at: VARIABLES.get(at[0], "currentColor"), FONTS.sub("", value))
            elif key != "viewBox":
                value = NUMBER.sub(lambda at: f"{float(at[0]):.1f}", LINK.sub(rf"#{name}-\1", value))
            if value:
                element.set(key, " ".join(value.split()))
        if element.tag != "text":
            element.text = None
        element.tail = None
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {"class": "chart", "viewBox": box, "role": "img", "aria-label": visible(description)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _plain(name: str) -> str:
    """Return the name of an element or attribute without its namespace."""
    return name.rsplit("}", 1)[-1]
