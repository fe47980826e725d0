"""A page of similar pictures: each picture beside those most like it, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from transferkit.core.records import Decoding
from transferkit.machine.cores import available_cores
from transferkit.results.explain.pictures import thumbnail
from transferkit.results.report.page import render
from transferkit.results.similar.search import Similar

__all__ = ["SHOWN", "page_of"]

SHOWN = 200
"""Pictures on a page; more would be a file that no browser likes. A table has them all."""


def page_of(results: Sequence[Similar], run: str, decoding: Decoding) -> str:
    """Return the page; of many pictures it shows the first `SHOWN`.

    Args:
        results: What was found.
        run: The run, as its page is to call it.
        decoding: How its pictures are decoded.
    """
    shown = results[:SHOWN]
    paths = dict.fromkeys(path for one in shown for path in (one.path, *(match.path for match in one.matches)))
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="page") as pool:
        images = dict(zip(paths, pool.map(partial(thumbnail, decoding=decoding), paths), strict=True))
    rows: list[dict[str, Any]] = [
        {
            "path": one.path,
            "name": Path(one.path).name,
            "image": images[one.path],
            "error": one.error,
            "same": one.same,
            "matches": [{"match": match, "image": images[match.path]} for match in one.matches],
        }
        for one in shown
    ]
    return render("similar.html.j2", {"run": run, "rows": rows, "total": len(results), "shown": len(shown)})
