"""Pages from templates: everything is escaped, nothing is fetched, and no script runs but the page's own."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from transferkit import __version__
from transferkit.core.text import visible
from transferkit.data.images.channels import Pixels, as_rgb
from transferkit.show.words import PERCENT, value_text

__all__ = ["Section", "TaskSections", "compared_classes", "data_address", "data_uri", "macros", "render"]

TEMPLATES = "templates"
QUALITY = 80
"""Of pictures in a page, as JPEG."""

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{script}'; base-uri 'none'; "
    "form-action 'none'"
)
"""Nothing is fetched and no script runs but the page's own, whatever a class is called."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        key: Its anchor, unique within the page.
        title: Its heading, and its name among the page's parts.
        body: What stands below the heading.
    """

    key: str
    title: str
    body: Markup


@dataclass(frozen=True)
class TaskSections:
    """What a page says of the kind of answer that a run gives, besides its figures.

    Attributes:
        sentences: About the headline.
        sections: Parts of their own.
        data: What stands in the part about the data.
        title: What the model can answer, for the line under the title.
    """

    sentences: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    data: Markup = Markup()
    title: str = ""


def render(template: str, values: dict[str, Any]) -> str:
    """Return a page of one file, with style and script in it."""
    folder = resources.files("transferkit.results") / TEMPLATES
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = {
        "policy": POLICY.format(script=f"sha256-{digest}"),
        "style": Markup(style),
        "script": Markup(script),
        "version": __version__,
    }
    return _environment().get_template(template).render(page=page, **values)


def data_uri(image: Pixels, kind: Literal["jpeg", "png"] = "jpeg") -> str:
    """Return a picture ``(H, W, C) uint8``, as far as it can be looked at, inside a ``data:`` address."""
    image = as_rgb(image)
    stream = io.BytesIO()
    options = {"quality": QUALITY, "optimize": True} if kind == "jpeg" else {"compress_level": 4}
    Image.fromarray(image).save(stream, kind.upper(), **options)
    return data_address(stream.getvalue(), f"image/{kind}")


def data_address(content: bytes, media_type: str) -> str:
    """Return the content of a file inside a ``data:`` address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def macros(template: str) -> Any:
    """Return the macros of a template, each a function to `Markup`."""
    return _environment().get_template(template).module


@cache
def _environment() -> Environment:
    """Everything is escaped and every name must be known; compiled once."""
    environment = Environment(
        loader=PackageLoader("transferkit.results", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: value_text(value, "share", percent=PERCENT)
    environment.filters["value"] = lambda value, unit: value_text(value, unit, percent=PERCENT)
    return environment


def compared_classes(
    tables: Sequence[Mapping[str, float | None]], names: Sequence[str], noun: str, template: str
) -> TaskSections:
    """Return a section that holds the figure of every class in several runs; nothing where there is no class.

    Args:
        tables: Of each run the figure of its classes, by name; the first run is what the others are held against.
        names: Of the runs.
        noun: What the figures were measured on.
        template: Whose macro ``compared`` draws the table.
    """
    rows = [
        {"name": name, "values": [table.get(name) for table in tables]}
        for name in dict.fromkeys(name for table in tables for name in table)
    ]
    if not rows:
        return TaskSections()
    return TaskSections(sections=(Section("classes", "Classes", macros(template).compared(rows, names, noun)),))
