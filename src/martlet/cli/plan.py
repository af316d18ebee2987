"""martlet plan: where the weights of a model would live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from martlet.cli.options import LoadOptions, as_json, load_options, model_argument
from martlet.cli.output import print_json, print_table, print_text
from martlet.device.size import format_bytes

if TYPE_CHECKING:
    from martlet.memory.plan import Plan

__all__ = ["command"]


@click.command("plan")
@model_argument
@as_json
@load_options
def command(model: str, as_json: bool, loading: LoadOptions) -> None:
    """Show where the weights of MODEL would live; loads none of them."""
    from martlet.api import plan as make_plan

    plan = make_plan(model, **loading.arguments())
    if as_json:
        print_json({"model": model, **plan.to_dict()})
    else:
        _print(plan)


def _print(plan: Plan) -> None:
    phases = {phase.phase: {p.block: p for p in phase.placements} for phase in plan.phases}
    rows = [("block", "size", *phases)]
    for placement in plan.phases[0].placements:
        cells = []
        for placements in phases.values():
            here = placements[placement.block]
            used = f"computed on {here.computed_on}" if here.computed_on else "idle"
            cells.append(f"{here.tier}, {used}")
        rows.append((placement.block, format_bytes(placement.nbytes), *cells))
    print_table(rows, right=[1])
    print_text("")
    tier = plan.compute_tier
    for name, num_bytes in (
        ("weights", plan.weight_bytes(tier)),
        ("KV cache", plan.demand.kv_cache_bytes),
        ("workspace", plan.demand.workspace_bytes),
        ("together", plan.total_bytes(tier)),
        ("budget", plan.budget.of(tier)),
    ):
        print_text(f"{name:<10} {format_bytes(num_bytes):>10}  of {tier}")
    print_text(plan.describe())
