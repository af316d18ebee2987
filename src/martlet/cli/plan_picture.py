"""A plan for people, 80 columns wide: a table, a picture of the blocks, a bar of GPU memory."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from martlet.cli.output import duration, print_table, print_text
from martlet.device.bandwidth import format_rate
from martlet.device.size import format_bytes
from martlet.memory.parts import STACKS, Placement, block_index, stack_of

if TYPE_CHECKING:
    from martlet.memory.plan import Plan

__all__ = ["print_plan"]

_WIDTH = 80
_NAMES = {"fixed": "fixed", "encoder": "encoder", "decoder": "decoder", "once": "decoder once"}
_PLACES = {"gpu": "GPU", "ram": "RAM", "disk": "disk"}
_STAYS, _STREAMED = "█", "░"


def print_plan(plan: Plan) -> None:
    """Write where everything lives, what that takes of the budget, and the times to expect."""
    print_table(
        [("blocks", "number", "each", "together", "where", "read in"), *_rows(plan)],
        right=[1, 2, 3],
    )
    print_text("")
    for line in _blocks_picture(plan):
        print_text(line)
    print_text("")
    for line in _memory_picture(plan):
        print_text(line)
    print_text("")
    for line in (plan.describe(), *_speed(plan)):
        print_text(textwrap.fill(line, _WIDTH))


def _rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """One row for the parts of a stack that live in the same place."""
    read_in: dict[str, list[str]] = {}
    for phase in plan.phases:
        for part in phase.placements:
            if part.computed_on is not None:
                read_in.setdefault(part.block, []).append(phase.phase)
    groups: dict[tuple[int, str], list[Placement]] = {}
    for part in plan.phases[0].placements:
        where = _PLACES[part.tier]
        groups.setdefault((STACKS.index(stack_of(part.block)), where), []).append(part)
    for (stack, where), parts in sorted(groups.items(), key=lambda group: group[0]):
        yield (
            _NAMES[STACKS[stack]],
            str(len(parts)),
            format_bytes(max(part.nbytes for part in parts)),
            format_bytes(sum(part.nbytes for part in parts)),
            where,
            ", ".join(read_in.get(parts[0].block, ())),
        )


def _blocks_picture(plan: Plan) -> Iterator[str]:
    """A row of cells for each stack, one cell a block; long stacks take several rows."""
    label_width = max(map(len, _NAMES.values())) + 2
    row_length = _WIDTH - label_width
    for stack in STACKS[1:]:
        parts = [p for p in plan.phases[0].placements if stack_of(p.block) == stack]
        parts.sort(key=lambda part: block_index(part.block))
        cells = "".join(_STAYS if part.tier == plan.compute_tier else _STREAMED for part in parts)
        for start in range(0, len(cells), row_length):
            label = "" if start else _NAMES[stack]
            yield label.ljust(label_width) + cells[start : start + row_length]
    stays = "in GPU memory" if plan.device == "cuda" else "in RAM"
    waits = f"   {_STREAMED} streamed from RAM" if plan.num_slots else ""
    yield " " * label_width + f"{_STAYS} {stays}{waits}"


def _memory_picture(plan: Plan) -> Iterator[str]:
    """A bar of the budget, a letter for each use of it, and what the letters stand for."""
    tier = plan.compute_tier
    weights = [p for p in plan.phases[0].placements if p.tier == tier]
    fixed_bytes = sum(p.nbytes for p in weights if p.block == "fixed")
    budget_bytes, total_bytes = plan.budget.of(tier), plan.total_bytes(tier)
    uses = [
        ("C", "driver context", plan.demand.context_bytes),
        ("F", "fixed", fixed_bytes),
        ("B", "blocks", sum(p.nbytes for p in weights) - fixed_bytes),
        ("S", f"{plan.num_slots} slots", plan.slots_bytes),
        ("K", _cache_name(plan), plan.demand.kv_cache_bytes),
        ("W", "workspace", plan.demand.workspace_bytes),
    ]
    uses = [use for use in uses if use[2]]
    name = "GPU memory" if tier == "gpu" else "RAM"
    yield f"{name}: {format_bytes(total_bytes)} of {format_bytes(budget_bytes)}"
    uses.append((".", "free", budget_bytes - total_bytes))
    letters = [letter for letter, _, _ in uses]
    cells = _shares([amount for _, _, amount in uses], _WIDTH)
    yield "".join(letter * count for letter, count in zip(letters, cells, strict=True))
    words = [f"{letter} {name} {format_bytes(amount)}" for letter, name, amount in uses]
    yield from _wrapped(words)


def _cache_name(plan: Plan) -> str:
    demand = plan.demand
    texts = f" of {demand.num_texts} x {demand.text_tokens:,} tokens"
    form = "" if demand.kv_cache == "none" else f" {demand.kv_cache}"
    return f"KV cache{form}" + (texts if demand.num_texts > 1 else "")


def _shares(amounts: Sequence[int], width: int) -> list[int]:
    """Cells for each amount, ``width`` together; what is not nothing gets one at least."""
    total = sum(amounts)
    cells = [max(1, round(width * amount / total)) if amount else 0 for amount in amounts]
    cells[cells.index(max(cells))] += width - sum(cells)
    return cells


def _wrapped(words: Sequence[str]) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + 3 + len(word) > _WIDTH:
            yield line
            line = ""
        line += ("   " if line else "") + word
    yield line


def _speed(plan: Plan) -> Iterator[str]:
    prediction = plan.prediction
    if prediction is None:
        return
    seconds, first = prediction.seconds_per_token, prediction.time_to_first_token_seconds
    if seconds is not None:
        copied = plan.streamed_bytes("decode")
        yield (
            f"predicted: {1 / seconds:,.1f} tokens/s ({seconds * 1e3:,.2f} ms a token"
            + (f", {format_bytes(copied)} copied)" if copied else ")")
        )
    if first is not None:
        tokens = max(prediction.work.encoder_tokens, prediction.work.prompt_tokens)
        yield f"predicted: first token after {duration(first)} for a prompt of {tokens} tokens"
    rates = prediction.bandwidth
    named = (
        ("GPU memory", rates.gpu_bytes_per_second),
        ("copies to it", rates.pcie_bytes_per_second),
        ("RAM", rates.ram_bytes_per_second),
    )
    known = [f"{name} {format_rate(rate)}" for name, rate in named if rate]
    if rates.flops_per_second:
        known.append(f"products {rates.flops_per_second / 1e12:,.1f} TFLOPS")
    yield "at rates of " + ", ".join(known)
