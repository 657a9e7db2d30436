"""Requests in, the columns of a RequestTrace out, without ever listing a prompt's blocks.

A request is said as (the request or template whose context it extends, how much of it, its own
length). All requests of a trace are handled as arrays: the work is O(requests + unique blocks).

What becomes a block: a prompt is cut into blocks from its start, the last may be partial. A request
that extends another shares whole blocks only, so a partial tail is a leaf, and the block that the
next turn has at its place is a new one. Where outputs are known, the whole blocks that prompt and
output fill together belong to the context that the next turn extends; a last part of the output
that fills no block stays private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvsim.errors import WorkloadError

if TYPE_CHECKING:
    from kvsim.trace import RequestTrace

__all__ = ["NONE", "THINK", "TOOL", "TrieBuilder", "runs", "segment_cumsum"]

NONE, THINK, TOOL = 0, 1, 2
"""What a pause is (RequestTrace.pause)."""

Ints = npt.NDArray[np.int64]
_COLUMNS = (
    "arrival_ps",
    "input_tokens",
    "output_tokens",
    "session",
    "category",
    "priority",
    "delay_ps",
    "pause",
    "base",
    "keep_tokens",
    "template",
    "known_output",
)
_DEFAULTS: dict[str, Any] = {
    "priority": 0,
    "delay_ps": 0,
    "pause": NONE,
    "base": -1,
    "keep_tokens": 0,
    "template": -1,
    "known_output": True,
}
_MOST_BLOCKS = 2**31 - 1


class TrieBuilder:
    """Collects requests and builds the RequestTrace.

    Parameters
    ----------
    block_tokens : tokens in a block.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._template_blocks: list[int] = []
        self._template_parent: list[int] = []
        self._columns: dict[str, list[Ints]] = {name: [] for name in _COLUMNS}
        self._edges: list[tuple[Ints, Ints]] = []
        self._rows = 0

    def template(self, tokens: int, *, parent: int = -1) -> int:
        """Declare a beginning that many prompts share, `tokens` long in all, and return its number.

        Its whole blocks belong to the first request that begins so. One template may extend
        another.
        """
        blocks = tokens // self.block_tokens
        if parent >= 0:
            blocks = max(blocks, self._template_blocks[parent])
        self._template_blocks.append(blocks)
        self._template_parent.append(parent)
        return len(self._template_blocks) - 1

    def add(self, rows: int, **columns: Any) -> Ints:
        """Add `rows` requests and return their numbers; rows that tie in arrival keep this order.

        Parameters
        ----------
        arrival_ps, input_tokens, output_tokens, session, category : arrays (rows,) or one value for
            all.
        priority, delay_ps, pause : the same; 0 where left out.
        base : the request whose context is extended (-1 none); `keep_tokens` of it are the same.
        template : the template that the prompt begins with, where there is no base (-1 none).
        known_output : whether the next turn may find the output's blocks.
        """
        for name in _COLUMNS:
            value = columns.pop(name) if name in columns else _DEFAULTS[name]
            self._columns[name].append(np.broadcast_to(np.asarray(value, dtype=np.int64), rows))
        if columns:
            raise TypeError(f"unknown columns: {', '.join(columns)}")
        first = self._rows
        self._rows += rows
        return np.arange(first, self._rows)

    def depend(self, rows: npt.ArrayLike, on: npt.ArrayLike) -> None:
        """Let each of `rows` wait for the request at the same place of `on` to complete."""
        self._edges.append((np.asarray(rows, dtype=np.int64), np.asarray(on, dtype=np.int64)))

    def build(
        self, *, name: str, source: str, session_names: tuple[str, ...], category_names: tuple[str, ...]
    ) -> RequestTrace:
        """Sort by arrival, number the blocks in order of first appearance, and make the trace.

        Raises WorkloadError if there are more blocks than an int32 can number, or a request extends
        or waits for a later one.
        """
        from kvsim.trace import RequestTrace

        return RequestTrace(
            name=name,
            source=source,
            session_names=session_names,
            category_names=category_names,
            block_tokens=self.block_tokens,
            **self.columns(),
        )

    def columns(self) -> dict[str, Any]:
        """Return the columns of the trace by the names of RequestTrace's fields."""
        size, n = self.block_tokens, self._rows
        col = {name: np.concatenate([np.zeros(0, np.int64), *parts]) for name, parts in self._columns.items()}
        order = np.argsort(col["arrival_ps"], kind="stable")
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        col = {name: values[order] for name, values in col.items()}
        base = np.where(col["base"] >= 0, place[col["base"]], -1) if n else col["base"]
        if (base >= np.arange(n)).any():
            raise WorkloadError("a request extends a later one: expected an earlier one")

        total = col["input_tokens"] + np.where(col["known_output"] != 0, col["output_tokens"], 0)
        whole, chain = col["input_tokens"] // size, total // size
        keep = np.where(base >= 0, np.minimum(col["keep_tokens"] // size, np.minimum(chain[base], whole)), 0)
        base = np.where(keep > 0, base, -1)
        base, keep = self._begin_with_templates(base, keep, col["template"], whole)
        base = _owners(base, keep)

        partial = (col["input_tokens"] % size > 0).astype(np.int64)
        own_whole, own_output = whole - keep, chain - whole
        count = own_whole + partial + own_output
        blocks = int(count.sum())
        if blocks > _MOST_BLOCKS:
            raise WorkloadError(
                f"found {blocks:,} unique blocks, expected at most {_MOST_BLOCKS:,}: "
                f"ask for fewer sessions or larger blocks"
            )
        start = np.cumsum(count) - count

        def block_at(row: Ints, depth: Ints) -> Ints:
            """Return the block that `row` itself added at `depth` of its context."""
            skip = np.where(depth >= whole[row], partial[row], 0)
            return np.asarray(start[row] + depth - keep[row] + skip)

        joint = np.where(base >= 0, block_at(np.maximum(base, 0), keep - 1), -1)  # where the own blocks hang
        last_whole = np.where(own_whole > 0, start + own_whole - 1, joint)
        last = np.where(partial > 0, start + own_whole, last_whole)
        output = np.where(own_output > 0, start + count - 1, last)

        block_parent = np.arange(-1, blocks - 1, dtype=np.int32)
        block_parent[start[count > 0]] = joint[count > 0]
        has = partial > 0
        block_parent[last[has]] = last_whole[has]
        has = own_output > 0
        block_parent[(start + own_whole + partial)[has]] = last_whole[has]
        # the columns of all blocks are the memory that this takes: none is made wider than it will be kept
        block_position = np.arange(blocks, dtype=np.int32)
        block_position -= np.repeat((start - keep).astype(np.int32), count)
        has = (partial > 0) & (own_output > 0)
        if has.any():  # the blocks of the output stand where the partial tail stands
            runs_of = np.stack(
                [own_whole + partial, np.where(has, own_output, 0), np.where(has, 0, own_output)], axis=1
            )
            block_position -= np.repeat(np.tile(np.array([0, 1, 0], np.int8), n), runs_of.reshape(-1))
        block_length = np.full(blocks, size, np.int32)
        has = partial > 0
        block_length[last[has]] = (col["input_tokens"] % size)[has]

        offsets, after = self._dependencies(place)
        return {
            "arrival_ps": col["arrival_ps"],
            "input_tokens": col["input_tokens"],
            "output_tokens": col["output_tokens"],
            "last_block": last.astype(np.int32),
            "output_block": np.where(col["known_output"] != 0, output, -1).astype(np.int32),
            "session": col["session"].astype(np.int32),
            "category": col["category"].astype(np.int16),
            "priority": col["priority"].astype(np.int16),
            "after_offsets": offsets,
            "after": after,
            "delay_ps": col["delay_ps"],
            "pause": col["pause"].astype(np.int8),
            "block_parent": block_parent,
            "block_position": block_position,
            "block_length": block_length,
            "block_id": np.arange(blocks, dtype=np.int64),
            "block_label": None,
            "block_namespace": np.zeros(blocks, np.int32),
            "namespaces": ("",),
        }

    def _begin_with_templates(self, base: Ints, keep: Ints, template: Ints, whole: Ints) -> tuple[Ints, Ints]:
        """Give requests without a base the earliest request that begins with the same template."""
        rows = np.flatnonzero((base < 0) & (template >= 0))
        if not len(rows):
            return base, keep
        above, blocks = np.array(self._template_parent), np.array(self._template_blocks)
        if (whole[rows] < blocks[template[rows]]).any():
            raise WorkloadError("a prompt is shorter than the beginning it shares: expected it to be longer")
        first = np.full(len(blocks), len(base))
        np.minimum.at(first, template[rows], rows)
        for t in range(len(blocks) - 1, -1, -1):  # a template is declared after its parent
            if above[t] >= 0:
                first[above[t]] = min(first[above[t]], first[t])
        wanted = template[rows]
        while True:  # a request that is the first itself shares what its template's parent has
            own = (wanted >= 0) & (first[np.maximum(wanted, 0)] >= rows)
            if not own.any():
                break
            wanted = np.where(own, above[np.maximum(wanted, 0)], wanted)
        shared = np.where(wanted >= 0, blocks[np.maximum(wanted, 0)], 0)
        found = shared > 0
        base[rows[found]] = first[wanted[found]]
        keep[rows[found]] = shared[found]
        return base, keep

    def _dependencies(self, place: Ints) -> tuple[Ints, npt.NDArray[np.int32]]:
        none = np.zeros(0, np.int64)
        rows = place[np.concatenate([none, *(r for r, _ in self._edges)])]
        on = place[np.concatenate([none, *(o for _, o in self._edges)])]
        if (on >= rows).any():
            raise WorkloadError("a request waits for a later one: expected an earlier one")
        order = np.lexsort((on, rows))
        offsets = np.zeros(self._rows + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=self._rows), out=offsets[1:])
        return offsets, on[order].astype(np.int32)


def _owners(base: Ints, keep: Ints) -> Ints:
    """Follow each request's base to the request that itself added the last block shared."""
    owner = base.copy()
    while True:
        at = np.maximum(owner, 0)
        far = (owner >= 0) & (keep <= keep[at]) & (base[at] >= 0)
        if not far.any():
            return owner
        owner[far] = base[owner[far]]


def runs(lengths: Ints) -> tuple[Ints, Ints]:
    """Return the run, and the place in it, of each element of runs of these lengths."""
    run = np.repeat(np.arange(len(lengths)), lengths)
    return run, np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def segment_cumsum(values: Ints, lengths: Ints) -> Ints:
    """Return the running sum within each of the runs of these lengths laid end to end."""
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)[:-1]])[: len(lengths)]
    return np.asarray(sums[1:] - np.repeat(sums[before], lengths))
