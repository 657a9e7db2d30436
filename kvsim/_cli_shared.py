"""What several commands of `kvsim` share: their options, what these stand for, and how an answer is given."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvsim.errors import ConfigError, KvsimError, UnknownNameError, WorkloadError, shown

__all__ = [
    "POSITIVE",
    "SEED",
    "Names",
    "Numbers",
    "Pairs",
    "Share",
    "answer",
    "as_json",
    "check_output",
    "is_workload",
    "load_machine",
    "load_model",
    "of_machine",
    "of_trace",
    "our_words",
    "policies_of",
    "print_json",
    "progress_bar",
    "say",
    "to_file",
    "trace_of",
]

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # no generic class before Click 8.2
    _ParamType = click.ParamType


# ---- options --------------------------------------------------------------------------------------------------------


class Pairs(_ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, sign, rest = str(value).partition("=")
        if not sign or not key.strip():
            self.fail(f"found {shown(value)}, expected KEY=VALUE", param, ctx)
        return key.strip(), rest.strip()


class Numbers(_ParamType):
    """A list of whole numbers, with units where there are any: 100,2k or 64GiB,1TB."""

    name = "list"

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        from kvsim.units import parse

        if isinstance(value, list):
            return value
        numbers = []
        for text in str(value).split(","):
            try:
                number = parse(text, self.unit, place=param.opts[0], high=2.0**62)
            except ConfigError as error:
                self.fail(str(error), param, ctx)
            if number.denominator != 1:
                self.fail(f"found {shown(text)}, expected a whole number", param, ctx)
            numbers.append(int(number))
        return numbers


class Names(_ParamType):
    """A list of names: a,b,c."""

    name = "list"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(","))
        if not all(names):
            self.fail(f"found {shown(value)}, expected names with commas between them", param, ctx)
        return names


class Share(click.FloatRange):
    """A number within limits that is a number: NaN is outside of all limits."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if number != number or number in (float("inf"), float("-inf")):
            self.fail(f"found {shown(value)}, expected a finite number", param, ctx)
        return number


POSITIVE = Share(min=0, min_open=True)
SEED = click.IntRange(0, 2**63 - 1)


def _options(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
to_file = click.option("-o", "--output", metavar="FILE", help="Save the result too, as .npz or .json.")
# of everything that takes a trace
of_trace = _options(
    click.option("--format", "fmt", metavar="NAME", help="The trace's format; detected by default."),
    click.option("--first", type=click.IntRange(1), metavar="N", help="Only the first N requests."),
    click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last N requests."),
    click.option("--rate-scale", type=POSITIVE, metavar="X", help="Arrivals X times as fast."),
    click.option(
        "--block-tokens", type=click.IntRange(1), metavar="N", help="Cut blocks to N tokens, which must divide theirs."
    ),
    click.option("--sessions", type=click.IntRange(1), metavar="N", help="Of a workload: how many sessions."),
    click.option("--seed", type=SEED, default=0, metavar="S", help="Of a workload, and of policies that draw."),
    click.option(
        "--param",
        "params",
        type=Pairs(),
        multiple=True,
        help="Of a workload or a file format: set a parameter, KEY=VALUE.",
    ),
)
of_machine = _options(
    click.option("--set", "changes", type=Pairs(), multiple=True, help="Change the machine: tier.dram.capacity=2TB."),
    click.option("--tiers", metavar="N|LIST", help="Keep only the N nearest tiers, or those named."),
)


def trace_of(source: str, given: dict[str, Any]) -> Any:
    """Return the trace of a workload's name, or of a file or a folder, cut and scaled as asked."""
    from kvsim import traces, workloads

    cut = {k: given.get(k) for k in ("first", "last", "rate_scale")}
    if is_workload(source):
        if given.get("fmt"):
            raise click.UsageError(f"--format: {source!r} is a workload, expected a trace file")
        trace = _generated(source, given)
        if given.get("block_tokens"):
            trace = trace.split(given["block_tokens"])
        for method, value in (("first", cut["first"]), ("last", cut["last"]), ("scaled", cut["rate_scale"])):
            trace = trace if value is None else getattr(trace, method)(value)
        return trace
    if given.get("sessions"):
        raise click.UsageError(f"--sessions: {source!r} is no workload ({', '.join(workloads.names())})")
    if not source or not Path(source).exists():
        if not source or "/" in source or os.sep in source or Path(source).suffix:
            raise click.UsageError(
                f"{source or 'TRACE'}: found no such file, expected a trace or the name of a workload"
            )
        raise UnknownNameError(source, workloads.names(), "trace file or workload")
    options = {key.replace("-", "_"): _value(value) for key, value in given.get("params") or ()}
    return traces.read_trace(source, format=given.get("fmt"), block_tokens=given.get("block_tokens"), **cut, **options)


def is_workload(source: str) -> bool:
    """Whether a trace's name is that of a workload, or of a file that describes one."""
    from kvsim import workloads

    return source in workloads.names() or source.endswith(".toml")


def _generated(workload: str, given: dict[str, Any]) -> Any:
    from kvsim import workloads

    parameters: dict[str, Any] = {}
    for key, value in given.get("params") or ():
        parameters[key.replace("-", "_")] = _value(value)
    if given.get("sessions") is not None:
        parameters["sessions"] = given["sessions"]
    try:
        return workloads.generate(workload, seed=given.get("seed") or 0, **parameters)
    except (WorkloadError, TypeError) as error:
        # the values came from the command line: its words were wrong
        raise click.UsageError(str(error)) from error


def _value(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def load_machine(name: str, changes: Sequence[tuple[str, str]] = (), tiers: str | None = None) -> Any:
    from kvsim.keep import keep_tiers
    from kvsim.machine import Machine

    with our_words():
        machine = Machine.load(name)
        for key, value in changes:
            machine = machine.set(key, _value(value))
        if tiers is not None:
            wanted = tuple(t.strip() for t in tiers.split(",") if t.strip())
            machine = keep_tiers(machine, int(tiers) if tiers.strip().lstrip("+-").isdigit() else wanted)
    return machine


def load_model(name: str | None, dtype: str | None = None) -> Any:
    from kvsim.model import Model

    if name is None:
        return None
    with our_words():
        model = Model.load(name)
        return model if dtype is None else model.with_(weights_dtype=dtype)


@contextlib.contextmanager
def our_words() -> Iterator[None]:
    """Turn what is wrong with a configuration that the command names into wrong words: exit code 2."""
    try:
        yield
    except UnknownNameError:
        raise
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def policies_of(text: str | None) -> Any:
    """Return what `--policy` says: a name for all tiers, or tier=name for single ones; unknown names fail here."""
    from kvsim.policies import choose

    if text is None:
        return None
    parts = [p.strip() for p in text.split(",")]
    for part in parts:
        choose(part.partition("=")[2] if "=" in part else part)
    if all("=" in part for part in parts):
        pairs = (part.partition("=") for part in parts)
        return {tier.strip(): name.strip() for tier, _, name in pairs}
    if len(parts) > 1:
        raise click.UsageError(f"--policy: found {shown(text)}, expected one name, or TIER=NAME,TIER=NAME")
    return parts[0]


def check_output(path: str | None, *, result: bool = True) -> None:
    """Refuse a place that cannot be written before the work starts."""
    if path is None:
        return
    from kvsim._files import check_writable
    from kvsim._saved import check_suffix

    if result:
        try:
            check_suffix(path)
        except KvsimError as error:
            raise click.UsageError(str(error)) from error
    check_writable(path)


def print_json(document: Any) -> None:
    from kvsim._table import plain

    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(plain(document), allow_nan=False, indent=indent))


def say(text: str) -> None:
    """Print text; signs that the output cannot carry are replaced by plain ones."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        text = text.translate(str.maketrans("█▓░·×–│", "#=-.x-|"))
    click.echo(text)


def answer(found: Any, *, json_wanted: bool, output: str | None = None) -> None:
    if output is not None:
        found.save(output)
    if json_wanted:
        print_json(found.to_dict())
    else:
        say(repr(found))


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[..., None] | None]:
    """Yield what to call with (done, total, text) to move a bar on standard error, None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)

        def move(done: int, total: int | None = None, text: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=text or what)

        yield move
