"""Damage to files, drawn by hypothesis: to their bytes, and to the values that JSON and YAML hold."""

import copy
import json
import os
import pickle

import yaml
from hypothesis import strategies as st

ODD = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, -0.5, 0.5, 1e308, 5e-324, float("nan"), float("inf"),
    "", " ", "-", "..", "../../x", "/etc/passwd", "nan", "\0", "\ud800", "é", "\u202e", "x" * 5000,
    "<script>alert(1)</script>", "=cmd()", "[red]", "{{7*7}}", [], [[]], {}, [None], ["a", "a"], {"": None},
    {"name": "x"}, [1, 2, 3], [1e400], ["a", 1, None, {}],
)  # fmt: skip
"""Values that no file of ours holds where they are put."""

ODD_FILES = (
    b"", b"\0" * 100, b"{}", b"[]", b"null", b"\xff\xfe\x00", "ÿ".encode("latin-1"), b"[" * 100_000, b'{"a":' * 50_000,
    b"<!doctype html><html></html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x04.", b"PK\x03\x04",
    b"- " * 100_000, b"&a [*a]", b"a: &a [*a, *a]", b"!!python/object/apply:os.system ['touch ran']", b"1", b"1e999",
)  # fmt: skip
"""What may lie in a file's place."""


@st.composite
def damaged_bytes(draw, content):
    """Bytes with one to four places changed, or those of another file."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(ODD_FILES))
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        span = draw(st.sampled_from((1, 1, 2, 8, 100, 10_000)))
        kind = draw(st.sampled_from(("flip", "cut", "drop", "double", "fill", "put")))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + span]
        elif kind == "double":
            data[at:at] = data[at : at + span]
        elif kind == "fill":
            data[at : at + span] = bytes(len(data[at : at + span]))
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(data)


@st.composite
def damaged_values(draw, document):
    """A document of JSON values with one to three of them changed, taken out, doubled or moved a level down."""
    holder = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(holder))
        inside, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("odd", "odd", "odd", "drop", "wrap", "name", "swap")))
        if kind == "odd":
            inside[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "drop" and inside is not holder:
            del inside[key]
        elif kind == "wrap":
            inside[key] = draw(st.sampled_from(([inside[key]], {"x": inside[key]}, str(inside[key]))))
        elif kind == "name" and isinstance(inside, dict):
            inside[draw(st.sampled_from(("", "x", "é", "\0", "__class__", "name", "format")))] = inside.pop(key)
        elif kind == "swap":
            inside[key] = copy.deepcopy(places[draw(st.integers(0, len(places) - 1))][0])
    return holder[0]


def _places(value):
    """Every container of a document with each of its keys or positions, the outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def as_json(value):
    """JSON as Python writes it, with NaN and infinity; half surrogates as escapes."""
    return json.dumps(value).encode()


def as_yaml(value):
    return yaml.dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "backslashreplace")


class Payload:
    """A pickle of it makes a file where it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def payload(marker, protocol=2):
    return pickle.dumps(Payload(marker), protocol=protocol)
