"""Processes that run this one's command again need a command."""

import os
import sys
import types

import pytest

from transferkit.core.errors import ConfigError
from transferkit.options.fields import make_config
from transferkit.options.training import FinetuneConfig
from transferkit.training.ranks.processes import _require_script


@pytest.mark.parametrize("file", [None, "<stdin>"])
def test_there_is_none_in_a_notebook_or_pipe(monkeypatch, file):  # fault 120
    config = make_config(FinetuneConfig, {"data": "d", "devices": 2})
    main = types.ModuleType("__main__")
    main.__spec__, main.__file__ = None, __file__
    monkeypatch.setitem(sys.modules, "__main__", main)
    _require_script(config)  # a script can be run again
    main.__file__ = file
    with pytest.raises(ConfigError, match="put it into a script, or use the command line"):
        _require_script(config)
    monkeypatch.setenv("TRANSFERKIT_PARENT", str(os.getppid()))  # started by one that could
    _require_script(config)
