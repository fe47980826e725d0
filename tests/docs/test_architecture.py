"""The page on architecture names every room, and modules that exist."""

import re
from pathlib import Path

import transferkit

PACKAGE = Path(transferkit.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z/]+)/` \| .* \| `([a-z_]+)` \|$", re.MULTILINE)


def rooms():
    """Return the folders that hold modules of their own, besides the door."""
    folders = {path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"} - {PACKAGE}
    return {str(folder.relative_to(PACKAGE)) for folder in folders}


def test_the_table_has_every_room_and_its_first_module():
    table = dict(ROW.findall(PAGE))
    assert rooms() - table.keys() <= {"data"}  # `sample` alone lies between the rooms of data
    for room, first in table.items():
        assert (PACKAGE / room / f"{first}.py").is_file(), f"{room}/{first}"


def test_what_is_named_in_passing_exists():
    names = re.findall(r"`([a-z]+(?:/[a-z_]+)+)`", PAGE)
    assert len(names) > 10
    for name in names:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name
