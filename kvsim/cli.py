"""The command `kvsim`: one sub-command a question.

Standard output carries the answer alone (with `--json`, one JSON document); notices, progress and errors go to
standard error, an error in one line. Exit codes: 0 done, 1 the run failed, 2 the words of the command were wrong.
Click and Rich are imported here and nowhere else in kvsim.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvsim.errors import ConfigError, KvsimError, UnknownNameError, WorkloadError, shown

__all__ = ["cli", "main"]

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # no generic class before Click 8.2
    _ParamType = click.ParamType


# ---- the entry point ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every failure is one line on standard error."""
    debug = os.environ.get("KVSIM_DEBUG", "") not in ("", "0")
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # a terminal that cannot show a sign shows another, and is no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _notice
        if "_KVSIM_COMPLETE" in os.environ:
            cli.main(words, prog_name="kvsim")
        try:
            with cli.make_context("kvsim", words) as context:
                cli.invoke(context)
            sys.stdout.flush()
        except click.exceptions.Exit as done:
            return done.exit_code
        except BaseException as error:
            if debug:
                raise
            if isinstance(error, (SystemExit, GeneratorExit)):
                raise
            return _failed(error)
    return 0


def _failed(error: BaseException) -> int:
    code, text = _explained(error)
    if isinstance(error, BrokenPipeError):
        # whoever read the output is gone: the interpreter must not try to flush what is left
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError, ValueError):
        print("kvsim: " + " ".join(text.split()), file=sys.stderr)
    return code


def _explained(error: BaseException) -> tuple[int, str]:
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        where = context.command_path.removeprefix("kvsim").strip() if context is not None else ""
        return error.exit_code, (f"{where}: " if where else "") + error.format_message()
    if isinstance(error, KvsimError):
        return error.exit_code, str(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 1, "interrupted"
    if isinstance(error, BrokenPipeError):
        return 1, "the reader of the output closed it before the end"
    if isinstance(error, MemoryError):
        return 1, f"out of memory{f' ({error})' if str(error) else ''}: try --first, or a smaller trace"
    if isinstance(error, OSError):
        return 1, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, OverflowError):
        return 1, f"a number grew too large to count: {error}"
    return 1, f"{type(error).__name__}: {error} (this is a fault of kvsim's; KVSIM_DEBUG=1 shows where)"


def _notice(message: Warning | str, *rest: Any, **more: Any) -> None:
    print("kvsim: notice: " + " ".join(str(message).split()), file=sys.stderr)


# ---- what several commands share ------------------------------------------------------------------------------------


class _Pairs(_ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, sign, rest = str(value).partition("=")
        if not sign or not key.strip():
            self.fail(f"found {shown(value)}, expected KEY=VALUE", param, ctx)
        return key.strip(), rest.strip()


class _Numbers(_ParamType):
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


class _Names(_ParamType):
    """A list of names: a,b,c."""

    name = "list"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(","))
        if not all(names):
            self.fail(f"found {shown(value)}, expected names with commas between them", param, ctx)
        return names


class _Share(click.FloatRange):
    """A number within limits that is a number: NaN is outside of all limits."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if number != number or number in (float("inf"), float("-inf")):
            self.fail(f"found {shown(value)}, expected a finite number", param, ctx)
        return number


POSITIVE = _Share(min=0, min_open=True)
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
        type=_Pairs(),
        multiple=True,
        help="Of a workload or a file format: set a parameter, KEY=VALUE.",
    ),
)
of_machine = _options(
    click.option("--set", "changes", type=_Pairs(), multiple=True, help="Change the machine: tier.dram.capacity=2TB."),
    click.option("--tiers", metavar="N|LIST", help="Keep only the N nearest tiers, or those named."),
)


def _trace(source: str, given: dict[str, Any]) -> Any:
    """Return the trace of a workload's name, or of a file or a folder, cut and scaled as asked."""
    from kvsim import traces, workloads

    cut = {k: given.get(k) for k in ("first", "last", "rate_scale")}
    if source in workloads.names() or source.endswith(".toml"):
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


def _machine(name: str, changes: Sequence[tuple[str, str]] = (), tiers: str | None = None) -> Any:
    from kvsim.keep import keep_tiers
    from kvsim.machine import Machine

    with _our_words():
        machine = Machine.load(name)
        for key, value in changes:
            machine = machine.set(key, _value(value))
        if tiers is not None:
            wanted = tuple(t.strip() for t in tiers.split(",") if t.strip())
            machine = keep_tiers(machine, int(tiers) if tiers.strip().lstrip("+-").isdigit() else wanted)
    return machine


def _model(name: str | None, dtype: str | None = None) -> Any:
    from kvsim.model import Model

    if name is None:
        return None
    with _our_words():
        model = Model.load(name)
        return model if dtype is None else model.with_(weights_dtype=dtype)


@contextlib.contextmanager
def _our_words() -> Iterator[None]:
    """Turn what is wrong with a configuration that the command names into wrong words: exit code 2."""
    try:
        yield
    except UnknownNameError:
        raise
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _policies(text: str | None) -> Any:
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


def _check_output(path: str | None, *, result: bool = True) -> None:
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


def _print_json(document: Any) -> None:
    from kvsim._table import plain

    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(plain(document), allow_nan=False, indent=indent))


def _say(text: str) -> None:
    """Print text; signs that the output cannot carry are replaced by plain ones."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        text = text.translate(str.maketrans("█▓░·×–│", "#=-.x-|"))
    click.echo(text)


def _answer(found: Any, *, json_wanted: bool, output: str | None = None) -> None:
    if output is not None:
        found.save(output)
    if json_wanted:
        _print_json(found.to_dict())
    else:
        _say(repr(found))


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[..., None] | None]:
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


# ---- the commands ---------------------------------------------------------------------------------------------------


class _Group(click.Group):
    """Commands in the order in which a person meets them; a wrong one is answered with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise UnknownNameError(args[0], self.commands, "command")
        return super().resolve_command(ctx, args)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import kvsim

        click.echo(f"kvsim {kvsim.__version__}")
        context.exit()


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Replay KV-cache and weight traffic of LLM inference through any stack of memories.

    A machine, a model or a workload is a preset's name (kvsim list) or a path to a file of your own.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("compare", short_help="Workloads on machines: where the time goes.")
@click.option(
    "--workload", "workloads", type=_Names(), metavar="LIST", help="By default chat, coding-agent, overnight-batch."
)
@click.option("--machine", "machines", type=_Names(), metavar="LIST", help="By default six, from SRAM to SSD.")
@click.option("--model", metavar="MODEL", help="By default llama-3.1-70b with its weights in fp8.")
@click.option("--weights-dtype", metavar="NAME", help="Precision of the weights: bf16, fp8, int4, ...")
@click.option("--policy", metavar="NAME", help="Eviction, instead of the machines' own.")
@click.option(
    "--lanes",
    type=click.IntRange(1, 65536),
    metavar="N",
    help="Requests at once; by default 32 of chat, 8 agents, 16 of a batch.",
)
@click.option("--seed", type=SEED, default=0, metavar="S", help="Of the workloads.")
@click.option("--scale", type=POSITIVE, default=1.0, metavar="X", help="Workloads X times as large.")
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="By default one a core.")
@to_file
@as_json
def compare_command(
    workloads: tuple[str, ...] | None,
    machines: tuple[str, ...] | None,
    model: str | None,
    weights_dtype: str | None,
    policy: str | None,
    lanes: int | None,
    seed: int,
    scale: float,
    threads: int | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Say where the time goes, for chat and for agents, on every machine."""
    from kvsim.compare import MACHINES, MODEL, WORKLOADS, compare

    _check_output(output)
    loaded = [_machine(m) for m in machines or MACHINES]
    served: Any = _model(model or MODEL, weights_dtype or "fp8" if model is None else weights_dtype)
    with _progress("comparing") as progress:
        found = compare(
            workloads or WORKLOADS,
            loaded,
            served,
            seed=seed,
            scale=scale,
            lanes=lanes,
            policy=_policies(policy),
            threads=threads,
            progress=progress,
        )
    if output is not None:
        found.save(output)
    if as_json:
        _print_json(found.to_dict())
        return
    from kvsim.reports import comparison

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    bold = (lambda text: click.style(text, bold=True)) if terminal else None
    _say(comparison.text(found, width=width, bold=bold))


@cli.command("replay", short_help="One trace through one machine's memories.")
@click.argument("trace")
@click.option("--machine", required=True, metavar="MACHINE", help="A preset's name or a TOML file.")
@click.option(
    "--model", metavar="MODEL", help="A preset's name, a TOML file or a config.json; a raw access trace needs none."
)
@click.option(
    "--policy", metavar="NAME", help="Eviction, instead of the machine's own; TIER=NAME,... for single tiers."
)
@click.option("--lanes", type=click.IntRange(1, 65536), metavar="N", help="Requests that run at once.")
@click.option(
    "--usable", type=click.Choice(["prefix", "block"]), default="prefix", help="Whether KV behind a miss counts."
)
@of_machine
@of_trace
@to_file
@as_json
def replay_command(
    trace: str,
    machine: str,
    model: str | None,
    policy: str | None,
    lanes: int | None,
    usable: str,
    changes: tuple[tuple[str, str], ...],
    tiers: str | None,
    output: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what of TRACE (a file, a folder or a workload) hits where, and how long the machine stalls on what."""
    from kvsim.replay import LANES, replay
    from kvsim.trace import RequestTrace

    _check_output(output)
    stack, served, evicting = _machine(machine, changes, tiers), _model(model), _policies(policy)
    source = _trace(trace, given)
    if served is None and isinstance(source, RequestTrace):
        raise click.UsageError("--model: found none, expected one: it turns requests into bytes and FLOPs")
    with _progress("replaying") as progress:
        found = replay(
            source,
            machine=stack,
            model=served,
            policy=evicting,
            lanes=lanes or LANES,
            usable=usable,
            seed=given["seed"],
            progress=progress,
        )
    _answer(found, json_wanted=as_json, output=output)


@cli.command("curve", short_help="Hits against capacity, for each policy.")
@click.argument("trace")
@click.option(
    "--policy",
    "policies",
    type=_Names(),
    default="lru",
    metavar="LIST",
    help="One curve each; leaf-NAME evicts leaves only.",
)
@click.option(
    "--hit-rule", type=click.Choice(["block", "prefix"]), default="block", help="Each block, or the run from the start."
)
@click.option("--weight", type=click.Choice(["block", "token", "byte"]), default="block", help="What a hit counts.")
@click.option("--capacity-blocks", type=_Numbers(""), metavar="LIST", help="Capacities in blocks.")
@click.option("--capacity-tokens", type=_Numbers(""), metavar="LIST", help="Capacities in tokens.")
@click.option("--capacity-bytes", type=_Numbers("bytes"), metavar="LIST", help="Capacities in bytes: 64GB,1TB.")
@click.option(
    "--measure-last",
    type=_Share(0, 1, min_open=True),
    default=1.0,
    metavar="F",
    help="Count only this last share of requests.",
)
@click.option("--half-block", is_flag=True, help="Add half of the first missing block (prefix rule, by token).")
@click.option("--model", metavar="MODEL", help="For bytes.")
@of_trace
@to_file
@as_json
def curve_command(
    trace: str,
    policies: tuple[str, ...],
    hit_rule: str,
    weight: str,
    capacity_blocks: list[int] | None,
    capacity_tokens: list[int] | None,
    capacity_bytes: list[int] | None,
    measure_last: float,
    half_block: bool,
    model: str | None,
    output: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Count what each capacity of one tier hits on TRACE (a file, a folder or a workload), under each policy."""
    from kvsim.curve import curve
    from kvsim.policies import choose

    _check_output(output)
    asked = {"blocks": capacity_blocks, "tokens": capacity_tokens, "bytes": capacity_bytes}
    units = [unit for unit, capacities in asked.items() if capacities is not None]
    if len(units) > 1:
        raise click.UsageError(f"--capacity-{units[0]} and --capacity-{units[1]} exclude each other")
    unit = units[0] if units else "blocks"
    for policy in policies:
        choose(policy)
    with _our_words():
        found = curve(
            _trace(trace, given),
            policies=policies,
            capacities=asked[unit],
            unit=unit,
            hit_rule=hit_rule,
            weight=weight,
            measure_last=measure_last,
            half_block=half_block,
            model=_model(model),
            seed=given["seed"],
        )
    _answer(found, json_wanted=as_json, output=output)


@cli.command("fits", short_help="What room a model leaves on a machine.")
@click.argument("model")
@click.argument("machine")
@click.option("--context", type=click.IntRange(1), metavar="TOKENS", help="Tokens in a context.")
@click.option("--weights-dtype", metavar="NAME", help="Precision of the weights: bf16, fp8, int4, ...")
@of_machine
@as_json
def fits_command(
    model: str,
    machine: str,
    context: int | None,
    weights_dtype: str | None,
    changes: tuple[tuple[str, str], ...],
    tiers: str | None,
    as_json: bool,
) -> None:
    """Say what room MODEL's weights leave on MACHINE, and for how many contexts at once."""
    from kvsim.fits import fits

    more = {} if context is None else {"context": context}
    found = fits(_model(model, weights_dtype), _machine(machine, changes, tiers), **more)
    _answer(found, json_wanted=as_json)


@cli.command("generate", short_help="Make a trace of a workload.")
@click.argument("workload")
@click.option("-o", "--output", metavar="FILE", help="Where to; without it only the trace's statistics are shown.")
@click.option("--to", metavar="NAME", help="The file's format; by default its ending says.")
@click.option("--sessions", type=click.IntRange(1), metavar="N", help="How many sessions.")
@click.option("--seed", type=SEED, default=0, metavar="S", help="The same seed gives the same trace.")
@click.option(
    "--param", "params", type=_Pairs(), multiple=True, help="Set a parameter, KEY=VALUE (kvsim show WORKLOAD)."
)
@click.option("--first", type=click.IntRange(1), metavar="N", help="Only the first N requests.")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last N requests.")
@click.option("--rate-scale", type=POSITIVE, metavar="X", help="Arrivals X times as fast.")
@as_json
def generate_command(workload: str, output: str | None, to: str | None, as_json: bool, **given: Any) -> None:
    """Generate a trace of WORKLOAD."""
    from kvsim import workloads

    if workload not in workloads.names() and not workload.endswith(".toml"):
        raise UnknownNameError(workload, workloads.names(), "workload")
    _check_output(output, result=False)
    trace = _trace(workload, given)
    if output is not None:
        from kvsim.traces import write_trace

        with _our_words():
            write_trace(trace, output, format=to)
    _show_trace(trace, output, as_json)


@cli.command("convert", short_help="Write a trace in another format.")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--to", metavar="NAME", help="OUT's format; by default its ending says.")
@of_trace
@as_json
def convert_command(source: str, target: str, to: str | None, as_json: bool, **given: Any) -> None:
    """Read the trace IN in any format and write it to OUT."""
    from kvsim.traces import write_trace

    _check_output(target, result=False)
    trace = _trace(source, given)
    with _our_words():
        write_trace(trace, target, format=to)
    _show_trace(trace, target, as_json)


def _show_trace(trace: Any, written: str | None, as_json: bool) -> None:
    if as_json:
        said = trace.statistics() if hasattr(trace, "statistics") else {}
        _print_json({"name": getattr(trace, "name", None), "written": written, "statistics": said})
        return
    _say(repr(trace))
    if written is not None:
        _say(f"written to {written} ({Path(written).stat().st_size:,} bytes)")


_SORTS = ("machines", "models", "workloads", "policies", "formats")


def _names(sort: str) -> list[str]:
    if sort == "machines":
        from kvsim.machine import Machine

        return list(Machine.names())
    if sort == "models":
        from kvsim.model import Model

        return list(Model.names())
    if sort == "workloads":
        from kvsim import workloads

        return list(workloads.names())
    if sort == "policies":
        from kvsim import policies

        return list(policies.names())
    from kvsim import traces

    return list(traces.FORMATS.names())


@cli.command("list", short_help="The names of presets, policies and formats.")
@click.argument("what", required=False, metavar="[machines|models|workloads|policies|formats]")
@as_json
def list_command(what: str | None, as_json: bool) -> None:
    """List the names that there are."""
    if what is not None and what not in _SORTS:
        raise UnknownNameError(what, _SORTS, "sort of names")
    chosen = {sort: _names(sort) for sort in (_SORTS if what is None else (what,))}
    if as_json:
        _print_json(chosen)
        return
    if what is not None:
        _say("\n".join(chosen[what]))
        return
    for sort, names in chosen.items():
        more = " (leaf-NAME evicts only blocks that no other continues)" if sort == "policies" else ""
        _say(f"{sort}{more}:")
        _say("\n".join(f"  {name}" for name in names))


@cli.command("show", short_help="A preset's numbers, with their sources.")
@click.argument("name")
@as_json
def show_command(name: str, as_json: bool) -> None:
    """Every number of a machine, a model or a workload, with its source and how good it is."""
    from kvsim import workloads
    from kvsim.machine import Machine
    from kvsim.model import Model
    from kvsim.show import Row, Shown, show

    if name in workloads.names():
        preset = workloads.preset(name)
        rows = []
        for key, value in preset.values.items():
            text, quality = preset.sources.get(key, (None, None))
            rows.append(Row(key, value, preset.units.get(key, ""), _written(value), text, quality))
        _answer(Shown(name, "workload", preset.title, tuple(rows)), json_wanted=as_json)
        return
    names = (*Machine.names(), *Model.names(), *workloads.names())
    if name not in names and not Path(name).exists() and not Path(name).suffix:
        raise UnknownNameError(name, names, "machine, model or workload")
    with _our_words():
        found = show(name)
    _answer(found, json_wanted=as_json)


def _written(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
