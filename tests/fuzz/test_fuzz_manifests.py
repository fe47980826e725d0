"""Manifests of any content: read as they are, or refused in one error that is ours; pictures are never touched."""

import csv
import io

import pytest
from fuzzing import TEXTS, Outcomes, counts, refused, searching, texts
from hypothesis import given
from hypothesis import strategies as st
from mutation import damaged_bytes
from PIL import Image

from transferkit.core.records import DataConfig
from transferkit.data.batches.datamodule import ImageData

pytestmark = pytest.mark.filterwarnings("ignore::transferkit.core.errors.TransferkitWarning")

PREPARED = DataConfig((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0, "center")
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "utf-7")

cells = st.one_of(st.sampled_from([text for text in TEXTS if len(text) < 10_000]), texts(8))


@pytest.fixture
def table(tmp_path):
    """A manifest of twelve pictures: its rows; they lie beside it."""
    (tmp_path / "p").mkdir()
    rows = [["path", "label", "split", "group"]]
    for number in range(12):
        name = f"p/{number}.png"
        Image.new("RGB", (8, 8), (20 * number, 255 - number, 9)).save(tmp_path / name)
        rows.append([name, ("cat", "dog")[number % 2], ("train", "train", "val", "test")[number % 4], f"g{number}"])
    return rows


@st.composite
def damaged_rows(draw, rows):
    """A table with one to three of its cells, rows or columns changed."""
    rows = [list(row) for row in rows]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, max(0, len(rows[row]) - 1)))
        kind = draw(st.sampled_from(("cell", "cell", "cell", "row", "short", "long", "twice", "column", "name")))
        if kind == "cell" and rows[row]:
            rows[row][column] = draw(cells)
        elif kind == "name" and rows[0]:
            rows[0][min(column, len(rows[0]) - 1)] = draw(cells)
        elif kind == "row":
            rows[row] = draw(st.lists(cells, max_size=6))
        elif kind == "short":
            del rows[row][column:]
        elif kind == "long":
            rows[row].append(draw(cells))
        elif kind == "twice":
            rows.append(list(rows[row]))
        else:
            value = draw(cells)
            rows = [[value if at == column else cell for at, cell in enumerate(line)] for line in rows]
    return rows


def text_of(rows, dialect):
    stream = io.StringIO()
    csv.writer(stream, **dialect).writerows(rows)
    return stream.getvalue()


def check_manifest(path, outcomes):
    def use():
        data = ImageData(str(path), batch_size=2, data_config=PREPARED, workers=0)
        records = data.index.records
        outcomes["pictures"] += len(records)
        assert {record.label for record in records} <= set(data.class_names)

    outcomes[refused(use, allowed=(2, 3, 74))] += 1


@pytest.mark.parametrize("count", counts(120, 20_000))
def test_manifests_of_odd_cells(count, table, tmp_path):  # fault 6, fault 115
    pictures = {path: path.read_bytes() for path in (tmp_path / "p").iterdir()}
    dialects = st.sampled_from([{}, {}, {"delimiter": ";"}, {"delimiter": "\t"}, {"quoting": csv.QUOTE_ALL},
                                {"lineterminator": "\r"}])  # fmt: skip
    outcomes = Outcomes()

    @searching(count)
    @given(damaged_rows(table), dialects, st.sampled_from(ENCODINGS))
    def check(rows, dialect, encoding):
        content = text_of(rows, dialect).encode(encoding, "surrogatepass" if "utf" in encoding else "replace")
        (tmp_path / "m.csv").write_bytes(content)
        check_manifest(tmp_path / "m.csv", outcomes)

    check()
    outcomes.shown()
    assert {path: path.read_bytes() for path in (tmp_path / "p").iterdir()} == pictures
    assert outcomes["accepted"] > count / 50
    assert outcomes["DataError"] > count / 5


@pytest.mark.parametrize("count", counts(100, 20_000))
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_manifests_of_damaged_bytes(count, ending, table, tmp_path):  # fault 6
    manifest = tmp_path / f"m.{ending}"
    if ending == "csv":
        content = text_of(table, {}).encode("utf-8")
    else:
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        columns = {name: [row[at] for row in table[1:]] for at, name in enumerate(table[0])}
        parquet.write_table(arrow.table(columns), manifest)
        content = manifest.read_bytes()
    outcomes = Outcomes()

    @searching(count)
    @given(damaged_bytes(content))
    def check(content):
        manifest.write_bytes(content)
        check_manifest(manifest, outcomes)

    check()
    outcomes.shown()
    assert outcomes["DataError"] > count / 5
