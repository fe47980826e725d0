"""CSV tables: safe for spreadsheets, read back as they were."""

import csv
import io

import pytest

from transferkit.core.csv import csv_text, read_csv, safe_cell
from transferkit.core.errors import StorageError


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+A1", "-A1", "-1-1", "+1%2", "@SUM(A1)", "\tx", "\rx"])
def test_no_cell_is_a_formula(text):  # fault 92
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["cat", "a=b", "", "ä", "1"])
def test_others_stay_as_they_are(text):
    assert safe_cell(text) == text


def test_what_is_written_reads_back(tmp_path):  # fault 28, fault 92
    names = ["=x", "'quoted", "a,b", 'say "hi"', "two\nlines", "two\rreturns", "", "ä", "'=y"]
    path = tmp_path / "table.csv"
    path.write_text(csv_text([("name", "value"), *((name, number) for number, name in enumerate(names))]), "utf-8")
    assert read_csv(path) == [{"name": name, "value": str(number)} for number, name in enumerate(names)]


@pytest.mark.parametrize("number", ["-1", "+1", "-1.5", "1e-5", "-2.5E+3"])
def test_numbers_are_not_touched_and_none_is_empty(number):  # fault 113
    assert list(csv.reader(io.StringIO(csv_text([(-1.5, None, number)])))) == [["-1.5", "", number]]


def test_bytes_that_are_no_text():  # fault 28
    assert csv_text([("caf\udce9",)]) == "caf\\xe9\n"


@pytest.mark.parametrize("text", ["a,b\n1\n", ""])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(StorageError, match="rows differ in length"):
        read_csv(tmp_path / "t.csv")
    with pytest.raises(StorageError, match="No such file"):
        read_csv(tmp_path / "missing.csv")
