"""`--rescan` of every verb that hashes pictures: without it a second call reads none for that."""

import shutil

import pytest
from known_reads import names_read

from transferkit.data.batches.datamodule import ImageData
from transferkit.options.data import DataOptions
from transferkit.options.features import CheckConfig, FeaturesConfig, ProbeConfig
from transferkit.options.fields import Options
from transferkit.options.training import FinetuneConfig
from transferkit.runs.write import NOT_SAVED


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read to index or hash them; files are written down however new they are."""
    return names_read(monkeypatch)


@pytest.fixture
def run(probed_run, tmp_path):
    """A run of the test's own."""
    return shutil.copytree(probed_run, tmp_path / "run")


SMALL = ("--backbone", "test_resnet", "--weights", "random", "--image-size", "32", "--accelerator", "cpu")
VERBS = {
    "check": ("check", "--data", "DATA", "--quick", "--out", "OUT", "--overwrite"),
    "features": ("features", "--data", "DATA", *SMALL, "--precision", "32"),
    "evaluate": ("evaluate", "RUN", "DATA", "--out", "OUT", "--report", "off", "--overwrite"),
    "calibrate": ("calibrate", "RUN", "DATA"),
    "export": ("export", "RUN", "--data", "DATA", "--format", "safetensors", "--out", "OUT.safetensors", "--overwrite"),
    "explain": ("explain", "RUN", "PICTURE", "--out", "OUT", "--neighbours", "1"),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_second_call_reads_nothing_unless_it_is_to(verb, folder, run, tmp_path, command, read):
    words = {
        "DATA": folder, "RUN": run, "OUT": tmp_path / "out", "OUT.safetensors": tmp_path / "out.safetensors",
        "PICTURE": folder / "test" / "circle" / "000.png",
    }  # fmt: skip
    call = [words.get(word, word) for word in VERBS[verb]]
    counts = []
    for more in ([], [], ["--rescan"], []):
        status, _, err = command(*call, *more, "--quiet")
        assert status == 0, err
        counts.append(len(read))
        read.clear()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    first, second, again, last = counts
    assert first >= again > 0 and second == last == 0


def test_in_python_too(folder, read):
    for rescan, reads in ((False, 45), (False, 0), (True, 45)):
        ImageData(folder, 32, keep_bytes=0, rescan=rescan).index  # noqa: B018  read
        assert len(read) == reads
        read.clear()


@pytest.mark.parametrize("kind", [DataOptions, FinetuneConfig, FeaturesConfig, ProbeConfig, CheckConfig])
def test_it_says_how_to_run_and_not_what(kind):
    assert issubclass(kind, Options) and kind(data="pictures").rescan is False
    assert "rescan" in NOT_SAVED
