"""timm comes in through one module, without what it loads unasked."""

import ast
import sys
from pathlib import Path

import pytest

import transferkit
from transferkit.models.backbones import timm_import
from transferkit.models.backbones.timm_import import _without


def imports_timm(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == "timm" for name in names):
            return True
    return False


def test_one_module_imports_timm():
    files = Path(transferkit.__file__).parent.rglob("*.py")
    found = [path.name for path in files if imports_timm(path.read_text(encoding="utf-8"))]
    assert found == [Path(timm_import.__file__).name]


def test_the_search_can_fail():
    assert imports_timm("import timm.data") and imports_timm("def f():\n    from timm import create_model")
    assert not imports_timm("from transferkit.models.backbones.timm import build_timm")


def test_a_package_cannot_be_imported_meanwhile_and_can_afterwards():
    sys.modules.pop("colorsys", None)
    with _without("colorsys"), pytest.raises(ImportError):
        import colorsys
    import colorsys

    with _without("colorsys"):  # loaded already: nothing is taken away
        assert sys.modules["colorsys"] is colorsys
