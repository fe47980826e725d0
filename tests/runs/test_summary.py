"""What a run says of its data before it begins."""

import pytest
from data_sets import index

from transferkit.runs.summary import data_lines


@pytest.mark.parametrize(
    ("options", "names"),
    [({}, ["data", "note"]), ({"val_split": 0.0}, ["data", "note", "no val"]),
     ({"val_split": 0.0, "test_split": 0.0}, ["data", "note", "no val", "no test"])],
)  # fmt: skip
def test_what_was_understood_is_said(pets, options, names):  # fault 116
    (pets / "readme.md").write_text("no picture", encoding="utf-8")
    lines = data_lines(index(pets, **options))
    assert [name for name, _ in lines] == names
    assert lines[0][1].startswith("40 pictures of 2 classes (cat, dog): ")
    assert ".md (1)" in lines[1][1]
