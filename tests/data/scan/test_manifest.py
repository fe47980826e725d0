"""Manifests: CSV and Parquet tables of paths and labels, and all that can be wrong with them."""

import errno
import os
import re
import sys
from pathlib import Path

import pytest
from data_sets import draw, index, refused, table

from transferkit.core.errors import DataError
from transferkit.data.scan.records import Kind
from transferkit.data.scan.scan import scan_data


def test_a_manifest_without_splits_is_split_like_the_folder(pets):
    rows = [f"{label}/{number:03}.bmp,{label}" for label in ("dog", "cat") for number in range(20)]
    by_table, by_folder = index(table(pets / "all.csv", *rows)), index(pets)
    assert by_table.records == by_folder.records and by_table.class_names == by_folder.class_names
    assert index(table(pets / "split.csv", *(f"{row}," for row in rows), header="path,label,split")).records


def test_a_manifest_with_splits_and_groups(pets):
    splits = ["train"] * 12 + ["validation"] * 4 + ["TEST"] * 4
    rows = [f"{label}/{n:03}.bmp,{label},{splits[n]},{label}{n // 4}" for label in ("dog", "cat") for n in range(20)]
    indexed = index(table(pets / "m.csv", *rows, header="path,label,split,group"))
    assert indexed.counts() == {s: {"cat": n, "dog": n} for s, n in (("train", 12), ("val", 4), ("test", 4))}
    assert {record.group for record in indexed.split("test")} == {"cat4", "dog4"}


def test_groups_of_a_manifest_stay_together(pets):
    rows = [f"{label}/{n:03}.bmp,{label},g{n // 2}" for label in ("dog", "cat") for n in range(20)]
    indexed = index(table(pets / "m.csv", *rows, header="path,label,group"), val_split=0.3, test_split=0.3)
    places = {}
    for record in indexed.records:
        assert places.setdefault(record.group, record.split) == record.split
    assert len(set(places.values())) == 3


def test_manifest_val_from_train(pets):
    rows = [f"{c}/{n:03}.bmp,{c},{'test' if n < 4 else 'train'}" for c in ("cat", "dog") for n in range(20)]
    indexed = index(table(pets / "m.csv", *rows, header="path,label,split"), val_split=0.3, test_split=0.5)
    assert len(indexed.split("test")) == 8 and indexed.split("val")
    assert all(int(Path(record.path).stem) < 4 for record in indexed.split("test"))


@pytest.mark.parametrize(
    "path", ["/etc/passwd.bmp", "../out.bmp", "cat/../../out.bmp", "C:\\x.bmp", "\\x.bmp", "cat\\..\\..\\x.bmp", "a/.."]
)
def test_paths_that_leave_the_folder(pets, path):  # fault 90
    manifest = table(pets / "m.csv", "cat/000.bmp,cat", "dog/000.bmp,dog", f"{path},cat")
    message, findings = refused(manifest, Kind.LAYOUT, Kind.UNREADABLE)
    assert findings[0].items == (f"{path!r} (line 4)",)
    assert "paths that are absolute or lead out of the manifest's folder" in message


@pytest.mark.parametrize("label", ["../x", "a/b", "..", "a\\b", '"a\tb"'])
def test_labels_that_are_no_names(pets, label):  # fault 90
    manifest = table(pets / "m.csv", "cat/000.bmp,cat", "dog/000.bmp,dog", f"cat/001.bmp,{label}")
    _, (finding,) = refused(manifest, Kind.CLASS_NAMES)
    assert finding.items == (label.strip('"'),)


def test_odd_names_in_a_manifest(pets):  # fault 28
    names = ["a b.bmp", "new\nline.bmp", 'quo"te,comma.bmp', os.fsdecode(b"latin\xe9.bmp")]
    for number, name in enumerate(names):
        draw(pets / "cat" / name, 4000 + number)
    quoted = ['"cat/' + name.replace('"', '""') + '",cat' for name in names]
    text = "\n".join(["\ufeffpath,label", *quoted, "dog/000.bmp,dog"]) + "\n"
    (pets / "m.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    indexed = index(pets / "m.csv", val_split=0)
    assert {Path(record.path).name for record in indexed.records} == {*names, "000.bmp"}


def test_all_bad_rows_in_one_report(pets):
    rows = [
        "cat/000.bmp,cat,train",
        "cat/000.bmp,dog,train",
        "./cat/000.bmp,cat,train",
        "dog/000.bmp,,train",
        "dog/001.bmp,dog,trian",
        "dog/002.bmp,dog,",
        "dog/404.bmp,dog,val",
    ]
    manifest = table(pets / "m.csv", *rows, header="path,label,split")
    kinds = (Kind.LAYOUT, Kind.LAYOUT, Kind.LAYOUT, Kind.LAYOUT, Kind.CLASS_NAMES, Kind.UNREADABLE, Kind.LEAK)
    message, findings = refused(manifest, *kinds)
    assert [finding.items for finding in findings[:4]] == [
        ("line 5",),
        ("'trian' (line 6)",),
        ("line 7",),
        ("'cat/000.bmp' (line 2 and line 3)", "'./cat/000.bmp' (line 2 and line 4)"),
    ]
    assert "rows without a path or a label: line 5 - " in message and re.search(r"dog/404.bmp' \(No such file", message)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "has no rows"),
        ("path;label\na;b\n", "separated by commas"),
        ("path,lable\na,b\n", "unknown column 'lable'. Did you mean 'label'?"),
        ("path,label,spilt\na,b,train\n", "unknown column 'spilt'. Did you mean 'split'? If not, rename it"),
        ("path,label,Group\na,b,c\n", "unknown column 'Group'. Did you mean 'group'?"),
        ("path,label,gruop\na,b,c\n", "unknown column 'gruop'. Did you mean 'group'?"),
        ("path,label,label\na,b,c\n", "column 'label' appears twice"),
        ("path,label\na,b,c\n", "rows with another number of cells than the 2 columns: line 2: 3"),
        ('path,label\n"a,b\n', "is not CSV"),
    ],
)
def test_tables_that_are_no_manifest(tmp_path, text, words):
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    assert words in refused(tmp_path / "m.csv")[0]


def test_no_row_to_train_on(pets):
    manifest = table(pets / "m.csv", "cat/000.bmp,b,test", header="path,label,split")
    assert "no row whose split is 'train'" in refused(manifest, Kind.NO_TRAIN, Kind.UNTRAINED)[0]


def test_other_columns_are_noted(pets):
    manifest = table(pets / "m.csv", "cat/000.bmp,cat,3", "dog/000.bmp,dog,4", header="path,label,width")
    (note,) = index(manifest, val_split=0).findings
    assert (note.kind, note.items) == (Kind.NOTE, ("width",))


@pytest.mark.parametrize("name", ["site", "slide", "plot", "age_group", "grade"])
def test_columns_that_sound_like_an_optional_one_are_noted(pets, name):  # fault 180
    """Words of fields of study, which are no misspelling of split or group."""
    manifest = table(pets / "m.csv", "cat/000.bmp,cat,a", "dog/000.bmp,dog,b", header=f"path,label,{name}")
    (note,) = index(manifest, val_split=0).findings
    assert (note.kind, note.items) == (Kind.NOTE, (name,))


def test_unreadable_manifest(pets, monkeypatch):  # fault 1
    manifest = table(pets / "m.csv", "cat/000.bmp,cat")

    opened = Path.open

    def denied(self, *args, **kwargs):
        if self != manifest:
            return opened(self, *args, **kwargs)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert f"cannot read manifest '{manifest}': Permission denied" in refused(manifest)[0]


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    assert "run 'pip install pyarrow', or write the manifest as CSV" in refused(tmp_path / "m.parquet")[0]


def test_parquet(pets):
    import pyarrow
    from pyarrow import parquet

    rows = [(f"{c}/{n:03}.bmp", c, "val" if n > 15 else "train", None) for c in ("cat", "dog") for n in range(20)]
    columns = dict(zip(("path", "label", "split", "group"), map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), pets / "m.parquet")
    text = [",".join(cell or "" for cell in row) for row in rows]
    expected = index(table(pets / "m.csv", *text, header="path,label,split,group"))
    assert index(pets / "m.parquet").records == expected.records
    (pets / "bad.parquet").write_bytes(b"no parquet")
    assert "is not Parquet" in refused(pets / "bad.parquet")[0]


def test_labels_in_another_encoding_are_said(pets):  # fault 115
    path = pets / "list.csv"
    path.write_bytes("path,label\ncat/000.bmp,Köter\ndog/000.bmp,Kater\n".encode("latin-1"))
    with pytest.raises(DataError, match="labels that are no UTF-8 text: line 2 - save it as UTF-8"):
        scan_data(str(path))


@pytest.mark.parametrize(
    ("names", "words"), [(("cat/000", "dog/000"), "with their endings"), (("cat\\000.bmp", "dog\\000.bmp"), "not ")]
)
def test_paths_none_of_which_exists_are_said(pets, names, words):  # fault 115
    path = table(pets / "list.csv", *(f"{name},{name[:3]}" for name in names))
    with pytest.raises(DataError, match=f"none of its 2 files exists, such as .*000.*{re.escape(words)}"):
        scan_data(str(path))
