"""Which files are read, where they are written down as known however new they are."""

from pathlib import Path

from transferkit.data.images import decode, known_files, reading


def names_read(monkeypatch):
    """Return a list that gets the name of every file that is read to index or hash it."""
    names = []

    def counting(path):
        names.append(Path(path).name)
        return decode.read_bytes(path)

    monkeypatch.setattr(reading, "read_bytes", counting)
    monkeypatch.setattr(known_files, "TICK_NS", 0)
    return names
