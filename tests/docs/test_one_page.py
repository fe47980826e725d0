"""The page of plain torch is an independent reference: it reaches the numbers of `finetune` on the sample set."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transferkit.core.csv import read_csv
from transferkit.data.sample import sample_folder
from transferkit.models.backbones import mini

PAGE = Path(__file__).parents[2] / "docs" / "one-page.md"


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_page_reaches_the_numbers_of_finetune(tmp_path, command, epochs):
    run = tmp_path / "run"
    options = "--augment none --probe-views 0 --batch-size 32 --batch-norm batch --lr 1e-3 --precision 32"
    options += " --accelerator cpu --workers 0 --report off --quiet"
    status, _, err = command("finetune", "--data", "sample", *options.split(), "--epochs", epochs, "--out", run)
    assert status == 0, err
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert sum(bool(line.strip()) for line in program.splitlines()) < 90  # it is one page
    assert "EPOCHS, BATCH, LR, LAYER_DECAY = 0, 96, 0.875, 10," in program
    script = tmp_path / "one_page.py"
    script.write_text(program.replace("= 0, 96, 0.875, 10,", f"= 0, 96, 0.875, {epochs},"), encoding="utf-8")
    probe = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["phases"][0]
    words = [sys.executable, script, sample_folder(), mini._FILE, probe["C"]]
    printed = subprocess.run(
        list(map(str, words)), capture_output=True, encoding="utf-8", check=True
    ).stdout.splitlines()
    losses = [float(re.search(r"val_loss=(\S+)", line)[1]) for line in printed]
    accuracies = [float(re.search(r"val_acc=(\S+)", line)[1]) for line in printed[1:]]
    history = read_csv(run / "history.csv")
    expected = [probe["val_loss"], *(float(row["val_loss"]) for row in history)]
    assert len(losses) == 1 + epochs
    assert losses == pytest.approx(expected, abs=3e-3)  # the third digit
    assert max(expected) - min(expected) > 0.05  # another C, split or LR would show
    one_picture = 1 / 56
    assert accuracies == pytest.approx([float(row["val_acc"]) for row in history], abs=1.01 * one_picture)
