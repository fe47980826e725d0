"""Log lines that are left out for a while."""

import logging

import pytest

from transferkit.core.logs import quiet_loggers


def test_lines_below_the_level_are_left_out_and_levels_come_back(caplog):
    own, other = logging.getLogger("some.library"), logging.getLogger("another.library")
    own.setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), quiet_loggers(logging.ERROR, own.name, other.name):
        own.warning("left out")
        other.warning("left out")
        own.error("said")
        _ = 1 / 0
    own.warning("said again")
    assert caplog.messages == ["said", "said again"]
    assert (own.level, other.level) == (logging.INFO, logging.NOTSET)
