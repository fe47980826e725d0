"""Comments and tests cite pages that exist: `fault 12`, `trap 4`, `rule 3` each stand in `docs/`."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBERED = {
    "fault": ("faults.md", r"^\| (\d+) \|"),
    "trap": ("traps.md", r"^## Trap (\d+): "),
    "rule": ("rules.md", r"^## Rule (\d+): "),
}
CITATION = re.compile(r"\b(fault|trap|rule)s? (\d+(?:(?:, | and |, and )\d+)*)", re.IGNORECASE)
NO_PAGE = re.compile(r"\b(?:DESIGN|HOUSE|STYLE|FAULTS|TRAPS)(?:\.md| \d)|\bDESIGN:")
SOURCES = ("transferkit/**/*.py", "transferkit/**/*.md", "tests/**/*.py", "recipes/*", "docs/*.md", "README.md")


def numbers(kind):
    page, pattern = NUMBERED[kind]
    return [int(number) for number in re.findall(pattern, (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M)]


def sources():
    paths = [path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file() and path != Path(__file__)]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def bad_citations(texts):
    """Return `file:line: citation` for each that names no heading or row of `docs/`."""
    known = {kind: set(numbers(kind)) for kind in NUMBERED}
    problems = []
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            problems += [f"{name}:{number}: {match[0]}" for match in NO_PAGE.finditer(line)]
            for kind, listed in CITATION.findall(line):
                cited = map(int, re.findall(r"\d+", listed))
                problems += [f"{name}:{number}: {kind} {n}" for n in cited if n not in known[kind.lower()]]
    return problems


def test_every_citation_has_its_place():
    assert bad_citations(sources()) == []


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        ("# fault 11, trap 4 and rule 10", []),
        ("# faults 12, 893 and 894", ["a.py:1: fault 893", "a.py:1: fault 894"]),
        ("# Trap 32, rule 11", ["a.py:1: Trap 32", "a.py:1: rule 11"]),
        ("# kept by content (DESIGN.md 4); HOUSE 3", ["a.py:1: DESIGN.md", "a.py:1: HOUSE 3"]),
    ],
)
def test_that_test_can_fail(line, problems):
    assert bad_citations({"a.py": line}) == problems


@pytest.mark.parametrize(("kind", "count"), [("fault", 240), ("trap", 31), ("rule", 10)])
def test_numbers_are_stable(kind, count):
    """None is missing, and none is there twice; the next one is added at the end."""
    assert sorted(numbers(kind)) == list(range(1, count + 1))


def test_the_sources_are_read():
    assert len(sources()) > 100
