"""What `import kvsim` gives, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.resources import files

import pytest

import kvsim
import kvsim_core

HEAVY = {"click", "rich", "pandas", "pyarrow", "matplotlib", "scipy", "hypothesis", "pytest", "zstandard"}


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a new interpreter has after a statement."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    return {name.partition(".")[0] for name in json.loads(subprocess.check_output([sys.executable, "-c", code]))}


def test_version() -> None:
    assert kvsim.__version__ == version("kvsim")


def test_public_names() -> None:
    assert sorted(kvsim.__all__) == sorted(set(kvsim.__all__))
    for name in kvsim.__all__:
        assert getattr(kvsim, name) is not None
    assert set(kvsim.__all__) <= set(dir(kvsim))
    assert {"replay", "curve", "compare", "fits", "generate", "read_trace", "Machine", "Model"} <= set(kvsim.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'reply'"):
        kvsim.reply  # noqa: B018


@pytest.mark.parametrize("statement", ["import kvsim", "from kvsim import *", "import kvsim_core"])
def test_import_is_light(statement: str) -> None:
    assert not HEAVY & modules_after(statement)


def test_the_facade_names_all_it_offers() -> None:
    for name in kvsim_core.__all__:
        assert hasattr(kvsim_core, name)


def test_the_core_is_compiled() -> None:
    for name in ("_clock", "_curve", "_policy", "_replay", "_store"):
        module = sys.modules[f"kvsim_core.{name}"]
        assert module.__file__ is not None
        assert module.__file__.endswith((".so", ".pyd"))


def test_what_others_build_against_is_installed() -> None:
    core = files("kvsim_core")
    for name in ("_policy.pxd", "_types.pxd", "_structures.pxd", "_policy.pyi", "py.typed"):
        assert core.joinpath(name).is_file()
    assert files("kvsim").joinpath("py.typed").is_file()
    assert files("kvsim").joinpath("presets/machines/h100x8.toml").is_file()


def test_the_command_is_an_entry_point() -> None:
    (command,) = entry_points(group="console_scripts", name="kvsim")
    assert command.value == "kvsim.cli:main"
