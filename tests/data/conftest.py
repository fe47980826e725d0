"""Files that are known from before, for the tests of reading and of indexing."""

import pytest
from known_reads import names_read

from transferkit.data.images import known_files


@pytest.fixture
def settled(monkeypatch):
    """Write files down at once, however new they are; where the clock of the disk matters tests wait for it."""
    monkeypatch.setattr(known_files, "TICK_NS", 0)


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read to index or hash them."""
    return names_read(monkeypatch)
