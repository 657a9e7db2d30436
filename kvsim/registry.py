"""Names to things: modules of a package, and what third parties add by entry points.

Adding a workload, a trace format or a report is one file in the right package; adding one from
outside is one entry point in the right group. Nothing is imported before its name is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from kvsim.errors import ConfigError, UnknownNameError

__all__ = ["Registry"]


class Registry:
    """The things of one sort that can be named.

    Parameters
    ----------
    what : the sort, as messages say it ("workload", "trace format").
    group : the entry-point group that outsiders use ("kvsim.workloads"), or "" for none.
    package : the package whose public modules belong here ("kvsim.workloads"), or "" for none.
    attribute : what to take from a module of the package; "" takes the module itself.

    Notes
    -----
    A module `s3_fifo` is named `s3-fifo`; a name may be written either way. A module or an object
    that was registered wins over an entry point of the same name. An entry point is loaded when it
    is first asked for, and one that fails to load is an error that names it and never breaks the
    others.
    """

    def __init__(self, what: str, group: str = "", *, package: str = "", attribute: str = "") -> None:
        self.what = what
        self.group = group
        self.package = package
        self.attribute = attribute
        self._added: dict[str, Any] = {}
        self._modules: dict[str, str] | None = None
        self._points: dict[str, Any] | None = None

    def add(self, name: str, thing: Any) -> None:
        """Register `thing` under `name`; ConfigError if the name is taken."""
        name = _canonical(name)
        if name in self._added or name in self._found_modules():
            raise ConfigError(f"{self.what} {name!r}: found a second of this name, expected a new name")
        self._added[name] = thing

    def get(self, name: str) -> Any:
        """Return what `name` stands for; UnknownNameError with the nearest names if nothing."""
        wanted = _canonical(name)
        if wanted in self._added:
            return self._added[wanted]
        modules = self._found_modules()
        if wanted in modules:
            module = importlib.import_module(modules[wanted])
            thing = getattr(module, self.attribute) if self.attribute else module
        elif wanted in (points := self._found_points()):
            try:
                thing = points[wanted].load()
            except Exception as error:
                raise ConfigError(
                    f"{self.what} {wanted!r}: entry point {points[wanted].value!r} failed to load: {error!r}"
                ) from error
        else:
            raise UnknownNameError(name, self.names(), self.what)
        self._added[wanted] = thing
        return thing

    def names(self) -> tuple[str, ...]:
        """Return every known name, sorted."""
        return tuple(sorted({*self._added, *self._found_modules(), *self._found_points()}))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _canonical(name) in self.names()

    def __repr__(self) -> str:
        return f"<Registry of {self.what}: {', '.join(self.names()) or 'nothing'}>"

    def _found_modules(self) -> dict[str, str]:
        if self._modules is None:
            self._modules = {}
            if self.package:
                home = importlib.import_module(self.package)
                for module in pkgutil.iter_modules(home.__path__):
                    if not module.name.startswith("_"):
                        self._modules[_canonical(module.name)] = f"{self.package}.{module.name}"
        return self._modules

    def _found_points(self) -> dict[str, Any]:
        if self._points is None:
            self._points = {}
            if self.group:
                from importlib.metadata import entry_points

                for point in entry_points(group=self.group):
                    self._points.setdefault(_canonical(point.name), point)
        return self._points


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")
