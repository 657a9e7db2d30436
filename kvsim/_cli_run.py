"""The commands `run` and `diff`: requests served on a machine, and what changed between two results."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvsim._cli_shared import (
    Pairs,
    answer,
    as_json,
    check_output,
    is_workload,
    load_machine,
    load_model,
    of_machine,
    of_trace,
    our_words,
    policies_of,
    print_json,
    progress_bar,
    trace_of,
)
from kvsim.errors import ConfigError, MachineError, ModelError, UnknownNameError

if TYPE_CHECKING:
    from kvsim.population import Population
    from kvsim.trace import RequestTrace

__all__ = ["diff_command", "run_command"]

_SERVE = """How the engine serves, OPTION=VALUE: max_seqs, max_tokens, chunked, mixed, order, kv_overflow, preemption,
kv_block_tokens, kv_blocks, experts, load, load_deadline_s, draft_tokens, accepted_tokens, draft_s, router, replicas,
concurrency, cpu_slots, retention, microbatches, partition."""
_RETENTION = """What becomes of a session's blocks while a person thinks or a tool runs: keep, pin, timeout:S, demote:S,
demote:S:TIER, drop, prefetch, lead:S, foresight, oracle; or think=RULE,tool=RULE."""
_GOAL = """What a population asks for, NAME:GOAL=VALUE,...: chat:ttft=1s,tpot=50ms; goals are ttft, tpot, e2e, cost,
makespan. Of a single trace without populations NAME is its own, all, or left out."""
_SHORTS = ("retention", "concurrency", "replicas", "router")


class _Interrupted(click.ClickException):
    """Ctrl-C, with the exit code that shells give to what it ended: 128 + SIGINT."""

    exit_code = 130


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise _Interrupted("interrupted") from None


@contextlib.contextmanager
def _option_words() -> Iterator[None]:
    """Turn an option that does not fit the trace or the machine into wrong words; a machine too small is none."""
    try:
        yield
    except (UnknownNameError, MachineError, ModelError):
        raise
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


@click.command("run", short_help="Requests on a machine, closed loop: both views of the stall.")
@click.argument("sources", nargs=-1, required=True, metavar="TRACE...")
@click.option("--machine", required=True, metavar="MACHINE", help="A preset's name or a TOML file.")
@click.option("--model", required=True, metavar="MODEL", help="A preset's name, a TOML file or a config.json.")
@click.option("--serve", type=Pairs(), multiple=True, help=_SERVE)
@click.option("--goal", "goals", multiple=True, metavar="GOALS", help=_GOAL)
@click.option("--retention", metavar="RULE", help=_RETENTION)
@click.option("--concurrency", metavar="N", help="Sessions at once, each beginning when another ends.")
@click.option("--replicas", metavar="N", help="By default as many as each hold the weights and the longest request.")
@click.option("--router", metavar="NAME", help="round-robin, least-loaded, prefix-aware or session-affine.")
@click.option(
    "--policy", metavar="NAME", help="Eviction, instead of the machine's own; TIER=NAME,... for single tiers."
)
@of_machine
@of_trace
@click.option("--check", is_flag=True, help="Derive all books again at the end.")
@click.option("-o", "--output", "--save", "output", metavar="FILE", help="Save the result too, as .npz or .json.")
@click.option("--report", metavar="FILE", help="Write one self-contained page, .html.")
@click.option("--perfetto", metavar="FILE", help="Record the run and write its timeline, .json.gz or .json.")
@as_json
@click.option("--requests", is_flag=True, help="With --json: the rows of requests and tasks too.")
def run_command(
    sources: tuple[str, ...],
    machine: str,
    model: str,
    serve: tuple[tuple[str, str], ...],
    goals: tuple[str, ...],
    policy: str | None,
    changes: tuple[tuple[str, str], ...],
    tiers: str | None,
    check: bool,
    output: str | None,
    report: str | None,
    perfetto: str | None,
    as_json: bool,
    requests: bool,
    **given: Any,
) -> None:
    """Serve the requests of TRACE (a file, a folder or a workload) and say where the time went.

    The machine's view: every second of every replica, stalls by tier, kind and cause. The request's: what it waited
    for, from ready to done. Several TRACEs share the machine, each a population of its own.
    """
    from kvsim.population import Population
    from kvsim.serving import Serving

    if requests and not as_json:
        raise click.UsageError("--requests: found no --json, expected both: its rows are printed as JSON alone")
    _check_outputs(output, report, perfetto)
    with our_words():
        wanted = [Population.parse(goal) for goal in goals]
        words = [f"{key}={value}" for key, value in serve]
        serving = Serving.parse(words + [f"{key}={given[key]}" for key in _SHORTS if given[key] is not None])
    stack, served, evicting = load_machine(machine, changes, tiers), load_model(model), policies_of(policy)
    with _until_interrupted():
        from kvsim.run import run

        traces = _requests(sources, given)
        with progress_bar("running") as progress, _option_words():
            found = run(
                traces,
                machine=stack,
                model=served,
                serving=serving,
                populations=[_named(goal, traces) for goal in wanted],
                policy=evicting,
                seed=given["seed"],
                record=perfetto is not None,
                check=check,
                progress=progress,
            )
        if output is not None:
            found.save(output)
        if report is not None:
            from kvsim.reports import run_page

            run_page.write(found, report)
        if perfetto is not None:
            from kvsim.reports import perfetto as timeline

            timeline.write(found, perfetto)
        if as_json:
            print_json(found.to_dict(requests=requests))
        else:
            answer(found, json_wanted=False)


def _requests(sources: Sequence[str], given: dict[str, Any]) -> list[RequestTrace]:
    """Return the traces, cut and scaled as asked; each workload is drawn by a seed of its own."""
    from kvsim.trace import RequestTrace

    traces = []
    drawn = any(is_workload(source) for source in sources)
    for place, source in enumerate(sources):
        own = {**given, "seed": given["seed"] + place}
        if drawn and not is_workload(source):
            own["sessions"] = None  # meant for the workloads beside it
        trace = trace_of(source, own)
        if not isinstance(trace, RequestTrace):
            raise click.UsageError(f"{source}: found steps, expected requests: steps are replayed (kvsim replay)")
        traces.append(trace)
    return traces


def _named(goal: Population, traces: Sequence[RequestTrace]) -> Population:
    """Return a goal under its population's name: a single trace's may be "all", and is meant by the trace's name."""
    (only,) = traces if len(traces) == 1 else (None,)
    if only is not None and only.population_names == ("all",) and goal.name == only.name:
        return dataclasses.replace(goal, name="all")
    return goal


def _check_outputs(output: str | None, report: str | None, perfetto: str | None) -> None:
    """Refuse files that cannot be written, or that are one file, before the work starts."""
    check_output(output)
    for option, path, endings in (
        ("--report", report, (".html", ".htm")),
        ("--perfetto", perfetto, (".json.gz", ".json")),
    ):
        if path is not None and not path.lower().endswith(endings):
            raise click.UsageError(
                f"{option}: found {path!r}, expected a file name that ends in {' or '.join(endings)}"
            )
        check_output(path, result=False)
    places = {"--output": output, "--report": report, "--perfetto": perfetto}
    seen: dict[str, str] = {}
    for option, path in places.items():
        if path is None:
            continue
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise click.UsageError(f"{option}: found {path!r}, the file of {other} too, expected one file each")


@click.command("diff", short_help="What changed between two results, and why.")
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@as_json
def diff_command(old: str, new: str, as_json: bool) -> None:
    """Say what changed from A to B, two results saved by `kvsim run` or by `kvsim replay`, and why."""
    for path in (old, new):
        if not Path(path).is_file():
            raise click.UsageError(f"{path or 'A'}: found no such file, expected a result saved with --output")
    from kvsim.diff import diff

    answer(diff(old, new), json_wanted=as_json)
