"""martlet plan: where the weights of a model would live, and how fast it would be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from martlet.cli.fetching import locate_model
from martlet.cli.options import (
    LoadOptions,
    ServingOptions,
    as_json,
    load_options,
    model_argument,
    serving_options,
)
from martlet.cli.output import print_json
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.memory.plan import Plan

__all__ = ["command"]


class _Rate(click.ParamType):  # type: ignore[type-arg]
    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from martlet.device.bandwidth import parse_flops, parse_rate

        flag = param.opts[0] if param else "rate"
        return (parse_flops if flag == "--gpu-flops" else parse_rate)(value, flag)


@click.command("plan")
@model_argument
@as_json
@load_options
@serving_options
@click.option(
    "--gpu-bandwidth",
    type=_Rate(),
    help="Plan for a GPU that need not be here, of --gpu-memory; its memory's rate, e.g. 150GB/s.",
)
@click.option("--pcie-bandwidth", type=_Rate(), help="Rate of copies to that GPU, e.g. 12GB/s.")
@click.option("--gpu-flops", type=_Rate(), help="Its half-precision rate, e.g. 4.4TFLOPS.")
def command(
    model: str,
    as_json: bool,
    loading: LoadOptions,
    serving: ServingOptions,
    **rates: float | None,
) -> None:
    """Show where the weights of MODEL would live and how fast it would be; loads none of them.

    Rates are those that are reached, about 0.8 of what a data sheet says. With --slots it shows
    what serving so many texts at a time would take.
    """
    locate_model(model)
    if any(rate is not None for rate in rates.values()):
        plan = _plan_for_card(model, loading, serving, **rates)
    else:
        plan = _plan_here(model, loading, serving)
    if as_json:
        print_json({"model": model, **plan.to_dict()})
    else:
        from martlet.cli.plan_picture import print_plan

        print_plan(plan)


def _plan_here(model: str, loading: LoadOptions, serving: ServingOptions) -> Plan:
    from martlet.api.loading import plan

    return plan(model, **loading.arguments(), **serving.arguments())


def _plan_for_card(
    model: str,
    loading: LoadOptions,
    serving: ServingOptions,
    *,
    gpu_bandwidth: float | None,
    pcie_bandwidth: float | None,
    gpu_flops: float | None,
) -> Plan:
    from martlet.api.loading import Card, plan_for_card

    if gpu_bandwidth is None or pcie_bandwidth is None or loading.gpu_memory is None:
        raise UsageError(
            "to plan for a GPU that need not be here, give --gpu-memory, --gpu-bandwidth and "
            "--pcie-bandwidth together"
        )
    if loading.device == "cpu":
        raise UsageError(
            "--gpu-bandwidth and --device cpu exclude each other; leave one of them out"
        )
    card = Card(loading.gpu_memory, gpu_bandwidth, pcie_bandwidth, gpu_flops)
    return plan_for_card(
        model,
        card,
        ram=loading.ram,
        quantize=loading.quantize,
        kv_cache=loading.kv_cache,
        **serving.arguments(),
    )
