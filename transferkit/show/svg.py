"""Charts as SVG inside a page, in light and in dark.

Every colour of a chart is replaced by a variable of the page; texts stay texts in the page's font; identifiers get the
chart's own name in front, because several charts share one page.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from transferkit.core.text import visible
from transferkit.show.charts import ACCENT, DASHES, GRID, HEIGHT, INK, MUTED, SECOND, SERIES, SHADES, Chart, drawing

__all__ = ["VARIABLES", "Drawn", "drawn", "svg_of"]

VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--line", ACCENT: "--accent", SECOND: "--second", SHADES[0]: "--shade",
    SHADES[1]: "--shade-2", SERIES[2]: "--s3", SERIES[3]: "--s4", SERIES[4]: "--s5", SERIES[5]: "--s6",
}  # fmt: skip
"""The page's names of the colours; `report.css` gives the same values in light, and others in dark."""

FONTS = re.compile(r"font-family:[^;]*;?")
LINK = re.compile(r"#(?=[a-z])([\w.-]+)")
NUMBER = re.compile(r"-?\d+\.\d{2,}")
COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class Drawn:
    """A chart for the page.

    Attributes:
        svg: An ``<svg>`` element.
        title: What it shows, as a heading.
        legend: Name, CSS colour, opacity and dash of each line, where there are several.
    """

    svg: Markup
    title: str
    legend: tuple[tuple[str, str, float, str], ...]


def drawn(chart: Chart) -> Drawn:
    """Draw a chart for the page."""
    dashes = {"solid": "solid", DASHES[1]: "dashed"}
    legend = ((line.name, f"var({VARIABLES[line.colour]})", line.opacity, dashes.get(line.dash, "dotted"))
              for line in chart.legend)  # fmt: skip
    height = HEIGHT * (1.25 if len(chart.panels) > 1 else 1.0)
    with drawing(chart.panels, height) as (figure, _):
        svg = svg_of(figure, chart.name, chart.description)
    return Drawn(svg, chart.title, tuple(legend))


def svg_of(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as an element of the page.

    Args:
        figure: Drawn with the colours of charts.
        name: Unique within the page.
        description: What it shows, for a reader who cannot see it.
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
    linked = {link for element in root.iter() for value in element.attrib.values() for link in LINK.findall(value)}
    for element in root.iter():
        attributes = {_plain(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            if key == "id":
                value = f"{name}-{value}" if value in linked else ""
            elif key == "style":
                value = COLOUR.sub(lambda at: _variable(at[0]), FONTS.sub("", value))
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


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else "currentColor"


def _plain(name: str) -> str:
    """Return the name of an element or attribute without its namespace."""
    return name.rsplit("}", 1)[-1]
