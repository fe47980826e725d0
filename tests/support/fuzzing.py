"""How fuzz tests run: a few fixed examples by default, thousands in the slow run; and how a command may end."""

import contextlib
import io
import re
import traceback
import warnings
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from transferkit.cli.main import main
from transferkit.core.errors import TransferkitError

STATUSES = {2: "config", 3: "data", 4: "backbone", 5: "training", 6: "checkpoint", 7: "store", 8: "export", 74: "io"}
"""Exit statuses of the contract that an input can cause, and the kind that the error line names."""

TEXTS = (
    "", " ", "-", "--", "-1", "0", "1", "2", "nan", "NaN", "inf", "-inf", "1e400", "1e-400", "9" * 30, "9" * 400,
    "9" * 5000, "0x10", "0b11", "010", "1_000", "1:30", "2020-01-01", "true", "yes", "on", "off", "null", "~",
    "None", "[]", "{}", "[1, 2]", "{a: 1}", "{name: sgdr, cycle_epochs: 2}", "{name: [x]}", "{[1]: 2}",
    "{{a: 1}: 2}", "{a: 1, a: 2}", "{<<: {a: 1}}", "<<", "=", "!!python/object/apply:os.mkdir [fuzzed]",
    "!!set {a}", "!!binary aGVsbG8=", "!x", "a: b", "&a [*a]", "*x", "[&a [x, x], &b [*a, *a], [*b, *b, *b]]",
    "[" * 5000, "{a: " * 5000, "- a", "? x", "%", "%(x)s", "{x}", "é", "e\u0301", "\0", "\ud800", "\udcff",
    "\ufeff1", "\uff11\uff12", "٣", "🙂", "\u202e", "\x1b[31m", "[red]", "\n", "\t", "'", '"', "\\", "a" * 300,
    "x" * 100_000, "auto", "sample", "random", "all", "head", "none", "~/x", "~nobody/x", "$HOME", "$NOTHING/x",
    "${", "..", "/", "/dev/null", "/proc/self/mem", "http://x/y", "hf-hub:", "hf-hub:x/y", "*", "**", "[", "(",
    "(?P<", "\\d+", "(x+x+)+y",
)  # fmt: skip
"""Words that somebody or something puts where another was meant."""

LETTERS = (
    "abcXYZ0123456789.,:;-_+*/\\|'\"`~!?@#$%^&=()[]{}<> \t\n\r\0\x1b\x7f\x85éß\u0131ǅ日本語\uff41٣²½☃🙂"
    "\u0301\u200b\u202e\u2028\ufeff\ufffe\ud800\udc00\udcff\U0010ffff"
)
"""Of texts that are drawn: not all of Unicode, whose tables take seconds to make."""


def texts(most):
    """Texts of up to so many odd characters."""
    return st.text(st.sampled_from(LETTERS), max_size=most)


values = st.one_of(
    st.sampled_from(TEXTS),
    st.integers(-3, 70).map(str),
    st.integers().map(str),
    st.floats().map(str),
    texts(12),
)
"""Texts of the command line."""


def counts(quick, many):
    """Parameters of a test: a few examples always, many when slow tests are asked for."""
    return [
        pytest.param(quick, id="quick"),
        pytest.param(many, id="many", marks=(pytest.mark.slow, pytest.mark.timeout(7200))),
    ]


def searching(count):
    """Settings of a search of so many examples, the same ones each time; it leaves no file behind."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )


class Outcomes(Counter):
    """How often inputs ended how; shown when the test ends."""

    def shown(self):
        print(", ".join(f"{name} {count}" for name, count in sorted(self.items(), key=str)))


def run(*words):
    """Run a command; return its exit status and what it wrote on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            status = main(list(words))
        except SystemExit as stop:
            status = stop.code
    return status, err.getvalue()


def check_ending(words, status, err, *, allowed=(0, *STATUSES)):
    """Fail where a command ended otherwise than the contract says: a status, and one line that says why."""
    shown = [word if len(word) < 200 else f"{word[:100]}... ({len(word)})" for word in words]
    if status == 1:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main([*words, "--debug"])
            except BaseException:
                err += traceback.format_exc()
    assert status in allowed, f"{shown} ended with {status}: {err[-3000:]}"
    assert "Traceback" not in err, f"{shown}: {err[-3000:]}"
    lines = [line for line in err.splitlines() if line.startswith("transferkit: error")]
    if not status:
        assert lines == [], f"{shown}: {err[-3000:]}"
        return
    assert len(lines) == 1, f"{shown} ended with {status}: {err[-3000:]}"
    assert lines[0].startswith(f"transferkit: error[{STATUSES[status]}]: "), f"{shown} ended with {status}: {lines[0]}"
    assert len(lines[0]) < 5_000 + sum(map(len, words)), f"{shown}: an error of {len(lines[0])} characters"
    assert lines[0].isprintable(), f"{shown}: {lines[0]!r}"


def refused(call, *, allowed=STATUSES):
    """Call, and return the name of the error of ours that came; "accepted" where none did."""
    try:
        call()
    except TransferkitError as error:
        assert error.exit_status in allowed, f"{type(error).__name__}: {error}"
        assert re.search(r"\w", str(error)), "an error that says nothing"
        return type(error).__name__
    return "accepted"
