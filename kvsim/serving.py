"""How an engine serves: its batch, its queue, what it does when memory is short, and where requests go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kvsim._fields import Checked, Rule
from kvsim.errors import ConfigError, MachineError, UnknownNameError, shown
from kvsim.retention import Retention

__all__ = ["EXPERTS", "LOADS", "ORDERS", "OVERFLOWS", "ROUTERS", "Serving", "shared_out"]

ORDERS = ("fcfs", "priority", "shortest")
OVERFLOWS = ("wait", "preempt", "stream")
LOADS = ("split", "always", "never", "overlap")
EXPERTS = ("resident", "cached")
ROUTERS = ("round-robin", "least-loaded", "prefix-aware", "session-affine")
_MOST = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Serving(Checked):
    """The options of an inference engine.

    Attributes
    ----------
    max_seqs : requests that one replica runs at once. 256 is vLLM's (0.9 to 0.12) for a server on most devices; it
        takes 1024 on those of 70 GiB and more.
    max_tokens : tokens, decoded and prefilled, that one step computes at most. 8192 is vLLM's for a server on devices
        of 70 GiB and more (2048 on others).
    chunked : whether a prompt may be computed in several steps, as engines do today.
    mixed : whether steps that prefill also decode; False lets prefills interrupt decoding, as before chunked prefill.
    order : who comes first: "fcfs", "priority" (the smallest of the trace's), or "shortest" (prompt).
    kv_overflow : what happens when the nearest memory is full: "preempt" sends the latest request back to the queue
        (as vLLM and SGLang do), "wait" admits only what fits to its end, "stream" lets KV lie in farther tiers, from
        where each step reads it.
    preemption : whether a preempted request's KV is computed again ("recompute", vLLM's only way since V1) or put into
        the next tier ("swap").
    kv_block_tokens : tokens in an engine's block of KV; room is taken in these. 16 is vLLM's.
    kv_blocks : the blocks of KV that one replica has, as an engine's log says; None works them out from the memory.
    experts : "resident": routed experts stay where they lie, near as far as they fit, and the rest is streamed in each
        step; "cached": each is a block at home in a farther tier, and copies of those in use compete with KV for the
        nearest.
    load : for KV found in a farther tier: load as much from the front as makes the request ready first and compute the
        rest ("split"), "always" load, "never", or compute the front while the tail loads ("overlap").
    load_deadline_s : loads that would take longer are not begun; None for no such limit.
    draft_tokens : tokens that a draft proposes each step; 0 for no speculation.
    accepted_tokens : tokens that a sequence gains by a step on average, 1 to draft_tokens + 1.
    draft_s : seconds that the draft model takes in each step.
    router : which replica takes a request: "round-robin", "least-loaded" (fewest requests), "prefix-aware" (most of the
        prompt in memory, then least loaded), or "session-affine" (always the same for a session).
    replicas : "auto" (the pool's devices / (tensor x pipeline)), or how many the pool with attention is divided into.
    concurrency : sessions that run at once, each beginning when another ends; None lets them begin at their arrivals.
    cpu_slots : tool calls that run at once; None takes the machine's.
    retention : what becomes of a session's blocks in its pauses; a rule of :mod:`kvsim.retention`.
    microbatches : parts that a batch is cut into where attention and feed-forward are on different pools, so that
        both are busy.
    partition : by population, its share of the replicas; None lets all populations use all replicas.

    Raises
    ------
    ConfigError, UnknownNameError
        The message names the option.
    """

    max_seqs: int = 256
    max_tokens: int = 8192
    chunked: bool = True
    mixed: bool = True
    order: str = "fcfs"
    kv_overflow: str = "preempt"
    preemption: str = "recompute"
    kv_block_tokens: int = 16
    kv_blocks: int | None = None
    experts: str = "resident"
    load: str = "split"
    load_deadline_s: float | None = None
    draft_tokens: int = 0
    accepted_tokens: float = 1.0
    draft_s: float = 0.0
    router: str = "least-loaded"
    replicas: int | str = "auto"
    concurrency: int | None = None
    cpu_slots: int | None = None
    retention: Retention = field(default_factory=Retention)
    microbatches: int = 2
    partition: Mapping[str, float] | None = field(default=None, hash=False)

    WHAT: ClassVar[str] = "serving"
    RULES: ClassVar[dict[str, Rule]] = {
        "max_seqs": Rule("count", low=1, high=1 << 24, short=("seqs",)),
        "max_tokens": Rule("count", low=1, high=_MOST, short=("tokens",)),
        "chunked": Rule("flag"),
        "mixed": Rule("flag"),
        "order": Rule("word", words=ORDERS),
        "kv_overflow": Rule("word", words=OVERFLOWS, short=("overflow",)),
        "preemption": Rule("word", words=("recompute", "swap")),
        "kv_block_tokens": Rule("count", low=1, high=1 << 20),
        "kv_blocks": Rule("count", low=1, high=1 << 40, optional=True),
        "experts": Rule("word", words=EXPERTS),
        "load": Rule("word", words=LOADS),
        "load_deadline_s": Rule("s", positive=True, high=86400.0, optional=True, short=("load_deadline",)),
        "draft_tokens": Rule("count", high=1024, short=("draft",)),
        "accepted_tokens": Rule("", low=1.0, high=1025.0, short=("accepted",)),
        "draft_s": Rule("s", high=3600.0),
        "router": Rule("word", words=ROUTERS),
        "replicas": Rule("count", low=1, high=1_000_000, words=("auto",)),
        "concurrency": Rule("count", low=1, high=_MOST, optional=True),
        "cpu_slots": Rule("count", low=1, high=1_000_000, optional=True),
        "microbatches": Rule("count", low=1, high=1024),
    }

    def _label(self) -> str:
        return self.WHAT

    def __post_init__(self) -> None:
        put = object.__setattr__
        for key, rule in self.RULES.items():
            if rule.optional and getattr(self, key) == "none":  # what undoes an option on a command line
                put(self, key, None)
        try:
            self._read_fields()
        except MachineError as error:  # what a Rule raises; this is no machine
            raise ConfigError(str(error)) from None
        put(self, "retention", Retention.load(self.retention))
        if self.accepted_tokens > self.draft_tokens + 1:
            raise ConfigError(
                f"serving.accepted_tokens: found {self.accepted_tokens:g}, expected 1 to draft_tokens + 1 "
                f"({self.draft_tokens + 1})"
            )
        if self.partition is not None:
            put(self, "partition", _partition(self.partition))

    @classmethod
    def of(cls, serving: Serving | Mapping[str, Any] | str | Iterable[str] | None) -> Serving:
        """Return the options that an object, a mapping, words for :meth:`parse`, or nothing stands for."""
        if isinstance(serving, Serving):
            return serving
        if serving is None:
            return cls()
        return cls().with_(**serving) if isinstance(serving, Mapping) else cls.parse(serving)

    @classmethod
    def parse(cls, words: str | Iterable[str]) -> Serving:
        """Read the words of a command line: "max_seqs=64", "retention=timeout:60", "partition=chat:1,agents:3".

        Raises
        ------
        UnknownNameError
            An option, or a word for one, of another name.
        ConfigError
            Not KEY=VALUE, an option given twice, or a value that makes no sense.
        """
        given: dict[str, Any] = {}
        for word in (words,) if isinstance(words, str) else words:
            if not isinstance(word, str) or "=" not in word:
                raise ConfigError(f"serving: found {shown(word)}, expected KEY=VALUE")
            key, _, value = word.partition("=")
            name = cls.full_key(key.strip().replace("-", "_"), "serving")
            if name in given:
                raise ConfigError(f"serving.{name}: found it twice, expected it once")
            given[name] = value.strip()
        return cls(**given)

    def with_(self, **changes: Any) -> Serving:
        """Return a copy with some options changed; UnknownNameError with the nearest for one that does not exist."""
        given = {self.full_key(key, "serving"): value for key, value in changes.items()}
        return dataclasses.replace(self, **given)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain Python, retention by its name and its plans."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out["partition"] = None if self.partition is None else dict(self.partition)
        out["retention"] = {
            "name": self.retention.name,
            # infinity is no JSON
            **{
                pause: {k: "pause" if v == float("inf") else v for k, v in dataclasses.asdict(plan).items()}
                for pause, plan in (("think", self.retention.think), ("tool", self.retention.tool))
            },
        }
        return out


def _partition(shares: object) -> dict[str, float] | None:
    """Return shares by population as numbers above 0; text is "chat:1,agents:3", or "none"."""
    at = "serving.partition"
    if isinstance(shares, str):
        if shares.strip() == "none":
            return None
        parts = [part.partition(":") for part in shares.split(",")]
        if not all(name.strip() and colon for name, colon, _ in parts):
            raise ConfigError(f"{at}: found {shown(shares)}, expected POPULATION:SHARE,POPULATION:SHARE")
        if len({name.strip() for name, _, _ in parts}) < len(parts):
            raise ConfigError(f"{at}: found a population twice in {shown(shares)}, expected each once")
        shares = {name.strip(): share for name, _, share in parts}
    if not isinstance(shares, Mapping) or not shares:
        raise ConfigError(f"{at}: found {shown(shares)}, expected shares by population")
    rule = Rule("", positive=True, high=1e6)
    try:
        return {str(name): float(rule.read(share, f"{at}.{name}")) for name, share in shares.items()}
    except MachineError as error:
        raise ConfigError(str(error)) from None


def shared_out(shares: Mapping[str, float], names: Iterable[str], count: int) -> list[list[int]]:
    """Return for each population the numbers of its replicas: in proportion, whole, and at least one.

    Parameters
    ----------
    shares : by population, as :attr:`Serving.partition`; they need not sum to anything.
    names : the trace's populations, in their order.
    count : replicas.

    Raises
    ------
    UnknownNameError, ConfigError
        A share of a population that the trace does not have, none for one that it has, or too few replicas.
    """
    wanted = list(names)
    for name in shares:
        if name not in wanted:
            raise UnknownNameError(name, wanted, "population", place="serving.partition")
    for name in wanted:
        if name not in shares:
            raise ConfigError(f"serving.partition: found no share for {name!r}, expected one for each population")
    if count < len(wanted):
        raise ConfigError(
            f"serving.partition: found {count} replica{'s' * (count != 1)} for {len(wanted)} populations, "
            "expected one each at least"
        )
    # each gets one, the others go by largest remainder; equals in the trace's order
    total = sum(shares[name] for name in wanted)
    ideal = [shares[name] / total * count for name in wanted]
    parts = [max(1, int(part)) for part in ideal]
    while sum(parts) > count:
        parts[max((i for i in range(len(parts)) if parts[i] > 1), key=lambda i: parts[i] - ideal[i])] -= 1
    while sum(parts) < count:
        parts[max(range(len(parts)), key=lambda i: (ideal[i] - parts[i], -i))] += 1
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    return [list(range(end - part, end)) for part, end in zip(parts, ends, strict=True)]
