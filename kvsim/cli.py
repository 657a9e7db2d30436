"""The command `kvsim`: one sub-command a question.

Standard output carries the answer alone (with `--json`, one JSON document); notices, progress and errors go to
standard error, an error in one line. Exit codes: 0 done, 1 the run failed, 2 the words of the command were wrong, 130
a run that Ctrl-C ended. Click and Rich are imported here and in the modules `_cli_*`, nowhere else in kvsim.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kvsim._cli_run import diff_command, run_command
from kvsim._cli_shared import (
    POSITIVE,
    SEED,
    Names,
    Numbers,
    Pairs,
    Share,
    answer,
    as_json,
    check_output,
    load_machine,
    load_model,
    of_machine,
    of_trace,
    our_words,
    policies_of,
    print_json,
    progress_bar,
    say,
    to_file,
    trace_of,
)
from kvsim.errors import KvsimError, UnknownNameError

__all__ = ["cli", "main"]

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
    """Run LLM inference through any stack of memories, or replay its KV-cache and weight traffic.

    A machine, a model or a workload is a preset's name (kvsim list) or a path to a file of your own.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("compare", short_help="Workloads on machines: where the time goes.")
@click.option(
    "--workload", "workloads", type=Names(), metavar="LIST", help="By default chat, coding-agent, overnight-batch."
)
@click.option("--machine", "machines", type=Names(), metavar="LIST", help="By default six, from SRAM to SSD.")
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

    check_output(output)
    loaded = [load_machine(m) for m in machines or MACHINES]
    served: Any = load_model(model or MODEL, weights_dtype or "fp8" if model is None else weights_dtype)
    with progress_bar("comparing") as progress:
        found = compare(
            workloads or WORKLOADS,
            loaded,
            served,
            seed=seed,
            scale=scale,
            lanes=lanes,
            policy=policies_of(policy),
            threads=threads,
            progress=progress,
        )
    if output is not None:
        found.save(output)
    if as_json:
        print_json(found.to_dict())
        return
    from kvsim.reports import comparison

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    bold = (lambda text: click.style(text, bold=True)) if terminal else None
    say(comparison.text(found, width=width, bold=bold))


cli.add_command(run_command)


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

    check_output(output)
    stack, served, evicting = load_machine(machine, changes, tiers), load_model(model), policies_of(policy)
    source = trace_of(trace, given)
    if served is None and isinstance(source, RequestTrace):
        raise click.UsageError("--model: found none, expected one: it turns requests into bytes and FLOPs")
    with progress_bar("replaying") as progress:
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
    answer(found, json_wanted=as_json, output=output)


@cli.command("curve", short_help="Hits against capacity, for each policy.")
@click.argument("trace")
@click.option(
    "--policy",
    "policies",
    type=Names(),
    default="lru",
    metavar="LIST",
    help="One curve each; leaf-NAME evicts leaves only.",
)
@click.option(
    "--hit-rule", type=click.Choice(["block", "prefix"]), default="block", help="Each block, or the run from the start."
)
@click.option("--weight", type=click.Choice(["block", "token", "byte"]), default="block", help="What a hit counts.")
@click.option("--capacity-blocks", type=Numbers(""), metavar="LIST", help="Capacities in blocks.")
@click.option("--capacity-tokens", type=Numbers(""), metavar="LIST", help="Capacities in tokens.")
@click.option("--capacity-bytes", type=Numbers("bytes"), metavar="LIST", help="Capacities in bytes: 64GB,1TB.")
@click.option(
    "--measure-last",
    type=Share(0, 1, min_open=True),
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

    check_output(output)
    asked = {"blocks": capacity_blocks, "tokens": capacity_tokens, "bytes": capacity_bytes}
    units = [unit for unit, capacities in asked.items() if capacities is not None]
    if len(units) > 1:
        raise click.UsageError(f"--capacity-{units[0]} and --capacity-{units[1]} exclude each other")
    unit = units[0] if units else "blocks"
    for policy in policies:
        choose(policy)
    with our_words():
        found = curve(
            trace_of(trace, given),
            policies=policies,
            capacities=asked[unit],
            unit=unit,
            hit_rule=hit_rule,
            weight=weight,
            measure_last=measure_last,
            half_block=half_block,
            model=load_model(model),
            seed=given["seed"],
        )
    answer(found, json_wanted=as_json, output=output)


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
    found = fits(load_model(model, weights_dtype), load_machine(machine, changes, tiers), **more)
    answer(found, json_wanted=as_json)


@cli.command("generate", short_help="Make a trace of a workload.")
@click.argument("workload")
@click.option("-o", "--output", metavar="FILE", help="Where to; without it only the trace's statistics are shown.")
@click.option("--to", metavar="NAME", help="The file's format; by default its ending says.")
@click.option("--sessions", type=click.IntRange(1), metavar="N", help="How many sessions.")
@click.option("--seed", type=SEED, default=0, metavar="S", help="The same seed gives the same trace.")
@click.option(
    "--param", "params", type=Pairs(), multiple=True, help="Set a parameter, KEY=VALUE (kvsim show WORKLOAD)."
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
    check_output(output, result=False)
    trace = trace_of(workload, given)
    if output is not None:
        from kvsim.traces import write_trace

        with our_words():
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

    check_output(target, result=False)
    trace = trace_of(source, given)
    with our_words():
        write_trace(trace, target, format=to)
    _show_trace(trace, target, as_json)


def _show_trace(trace: Any, written: str | None, as_json: bool) -> None:
    if as_json:
        said = trace.statistics() if hasattr(trace, "statistics") else {}
        print_json({"name": getattr(trace, "name", None), "written": written, "statistics": said})
        return
    say(repr(trace))
    if written is not None:
        say(f"written to {written} ({Path(written).stat().st_size:,} bytes)")


cli.add_command(diff_command)

_SORTS = ("machines", "models", "workloads", "policies", "retention", "routers", "formats")
_REMARKS = {
    "policies": "leaf-NAME evicts only blocks that no other continues",
    "retention": "written timeout:SECONDS, demote:SECONDS[:TIER], lead:SECONDS; the others bare",
}


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
    if sort == "retention":
        from kvsim.retention import RULES

        return list(RULES)
    if sort == "routers":
        from kvsim.serving import ROUTERS

        return list(ROUTERS)
    from kvsim import traces

    return list(traces.FORMATS.names())


@cli.command("list", short_help="The names of presets, policies, rules and formats.")
@click.argument("what", required=False, metavar="[machines|models|workloads|policies|retention|routers|formats]")
@as_json
def list_command(what: str | None, as_json: bool) -> None:
    """List the names that there are."""
    if what is not None and what not in _SORTS:
        raise UnknownNameError(what, _SORTS, "sort of names")
    chosen = {sort: _names(sort) for sort in (_SORTS if what is None else (what,))}
    if as_json:
        print_json(chosen)
        return
    if what is not None:
        say("\n".join(chosen[what]))
        return
    for sort, names in chosen.items():
        say(f"{sort} ({_REMARKS[sort]}):" if sort in _REMARKS else f"{sort}:")
        say("\n".join(f"  {name}" for name in names))


@cli.command("show", short_help="A preset's numbers with their sources, or a saved result.")
@click.argument("name")
@as_json
def show_command(name: str, as_json: bool) -> None:
    """Every number of a machine, a model or a workload, with its source and how good it is; or a saved result."""
    if _is_saved(Path(name)):
        from kvsim.result import load

        answer(load(name), json_wanted=as_json)
        return
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
        answer(Shown(name, "workload", preset.title, tuple(rows)), json_wanted=as_json)
        return
    names = (*Machine.names(), *Model.names(), *workloads.names())
    if name not in names and not Path(name).exists() and not Path(name).suffix:
        raise UnknownNameError(name, names, "machine, model or workload")
    with our_words():
        found = show(name)
    answer(found, json_wanted=as_json)


def _is_saved(path: Path) -> bool:
    """Whether this is a file of kvsim's results, and no configuration: those are TOML, or a model's config.json."""
    if path.suffix.lower() not in (".npz", ".json") or not path.is_file():
        return False
    if path.suffix.lower() == ".npz":
        return True
    with path.open("rb") as file:
        return b'"format": "kvsim ' in file.read(200)


def _written(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
