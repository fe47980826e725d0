"""`check` on pictures and masks."""

import json
import shutil
import zlib

import numpy as np
import pytest
from data_sets import draw
from PIL import Image

from transferkit.core.errors import ConfigError, DataError
from transferkit.options.features import CheckConfig
from transferkit.results.audit.audit import check


def masks_of(root, value=255, count=3):
    """A set of masks in two splits; every class has pixels in both."""
    for split in ("train", "val"):
        for number in range(count + 3):
            draw(root / split / "images" / f"{number}.png", zlib.crc32(f"{split}{number}".encode()))
            mask = np.zeros((16, 20), dtype=np.uint8)
            mask[:, : 5 + number] = value
            (root / split / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


def test_masks_are_audited(tmp_path, capsys):
    root = masks_of(tmp_path / "set")
    check(CheckConfig(data=str(root), out=str(tmp_path / "out"), quick=True, quiet=True))
    said = capsys.readouterr().out
    assert "lie side by side in train/): masks hold 0 for 'background' and 255 for 'foreground'" in " ".join(
        said.split()
    )
    found = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert not [issue for issue in found["findings"] if issue["refused"]]
    (root / "train" / "masks" / "0.png").write_bytes(b"")
    (root / "val" / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match="1 pictures without a mask"):
        check(CheckConfig(data=str(root), out=str(tmp_path / "bad"), quick=True, quiet=True))
    with pytest.raises(ConfigError, match="--fix writes a manifest of labels, and these answers are masks"):
        check(CheckConfig(data=str(root), fix=str(tmp_path / "f.csv"), quick=True, quiet=True))


def test_equal_pictures_with_equal_masks_are_copies_and_no_leak(tmp_path):
    root = masks_of(tmp_path / "set")
    for folder in ("images", "masks"):
        shutil.copy(root / "train" / folder / "0.png", root / "train" / folder / "again.png")
    check(CheckConfig(data=str(root), out=str(tmp_path / "out"), quick=True, quiet=True))
    kinds = [
        issue["kind"] for issue in json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))["findings"]
    ]
    assert "copy" in kinds and "leak" not in kinds
