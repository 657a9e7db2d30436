"""Names to things: modules, entry points, nearest names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import kvsim.registry
from kvsim.errors import ConfigError, UnknownNameError, nearest_hint
from kvsim.registry import Registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    home = tmp_path / "shelf_of_things"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "s3_fifo.py").write_text("thing = 'the s3-fifo thing'\n")
    (home / "broken.py").write_text("raise RuntimeError('imported too early')\n")
    (home / "_hidden.py").write_text("raise RuntimeError('not a thing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield home.name
    for name in [name for name in sys.modules if name.startswith(home.name)]:
        del sys.modules[name]


def test_finds_modules_without_importing_them(package: str) -> None:
    registry = Registry("thing", package=package, attribute="thing")
    assert registry.names() == ("broken", "s3-fifo")
    assert registry.get("s3-fifo") == "the s3-fifo thing"
    assert registry.get("S3_FIFO") == "the s3-fifo thing"
    assert "s3-fifo" in registry
    assert f"{package}.broken" not in sys.modules
    assert Registry("thing", package=package).get("s3-fifo").thing == "the s3-fifo thing"


def test_an_unknown_name_is_answered_with_the_nearest(package: str) -> None:
    registry = Registry("thing", package=package)
    with pytest.raises(UnknownNameError, match=r"unknown thing 's3fifo': did you mean 's3-fifo'\?"):
        registry.get("s3fifo")
    with pytest.raises(UnknownNameError, match="there are none"):
        Registry("thing").get("x")


def test_adding(package: str) -> None:
    registry = Registry("thing", package=package)
    registry.add("my_thing", 7)
    assert registry.get("my-thing") == 7
    assert list(registry) == ["broken", "my-thing", "s3-fifo"]
    assert len(registry) == 3
    with pytest.raises(ConfigError, match="found a second"):
        registry.add("my-thing", 8)
    with pytest.raises(ConfigError, match="found a second"):
        registry.add("s3-fifo", 8)


def test_entry_points_load_lazily_and_fail_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("square-root", "math:sqrt", "kvsim.things"),
        EntryPoint("gone", "no_such_module_anywhere:x", "kvsim.things"),
    ]

    def entry_points(*, group: str) -> list[Any]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    registry = Registry("thing", "kvsim.things")
    assert registry.names() == ("gone", "square-root")
    assert registry.get("square-root")(9) == 3
    with pytest.raises(ConfigError, match=r"'gone': entry point 'no_such_module_anywhere:x'"):
        registry.get("gone")


def test_hints() -> None:
    assert nearest_hint("lru2", ["lru", "fifo"]) == "did you mean 'lru'?"
    assert nearest_hint("capacity", ["capacity_bytes", "name"]) == "did you mean 'capacity_bytes'?"
    assert nearest_hint("zzz", ["b", "a"]) == "known: a, b"
    assert nearest_hint("zzz", [f"n{i:02}" for i in range(20)]).endswith("and 8 more")


def test_unknown_name_error_pickles() -> None:
    error = UnknownNameError("x", ["y"], "thing", place="file.toml")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "file.toml: unknown thing 'x': known: y"
    assert copy.exit_code == 2


def test_importing_the_registry_does_not_look_for_entry_points() -> None:
    assert "importlib.metadata" not in Path(kvsim.registry.__file__).read_text().split("class Registry")[0]
