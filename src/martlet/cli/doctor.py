"""martlet doctor: what the machine has and whether everything is in order."""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from martlet import __version__
from martlet.cli.options import as_json
from martlet.cli.output import print_json, print_text
from martlet.cli.progress import working
from martlet.device.size import format_bytes
from martlet.errors import MartletError

__all__ = ["Report", "command", "examine"]


@dataclass
class Report:
    """What was found; ``exit_code`` is that of the first problem, 0 where there is none."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    suggestion: str = "martlet tour"
    exit_code: int = 0

    def add_problem(self, problem: str, suggestion: str, exit_code: int = 1) -> None:
        """Note what is wrong; the first one decides the suggestion and the exit code."""
        if not self.problems:
            self.suggestion, self.exit_code = suggestion, exit_code
        self.problems.append(problem)


@click.command("doctor")
@as_json
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check Python, torch, processor, memory, disk and the bundled models.

    The exit code is 0 when Martlet is usable, otherwise that of the first problem.
    """
    with working("looking at this machine"):
        report = examine()
    if as_json:
        print_json(
            {
                **report.facts,
                "problems": report.problems,
                "suggestion": report.suggestion,
                "usable": not report.problems,
            }
        )
    else:
        _print(report)
    context.exit(report.exit_code)


def examine() -> Report:
    """Look at everything once."""
    report = Report()
    report.facts["martlet"] = __version__
    report.facts["python"] = platform.python_version()
    report.facts["platform"] = platform.platform()
    _examine_torch(report)
    _examine_machine(report)
    _examine_models(report)
    return report


def _examine_torch(report: Report) -> None:
    report.facts.update(torch=None, gpus=[], ram_read_bytes_per_second=None, int4_on_cpu=None)
    try:
        import torch
    except (ImportError, OSError) as error:
        report.add_problem(f"torch cannot be imported: {error}", "pip install --upgrade torch")
        return
    from martlet.api.processor import describe_int4_kernel
    from martlet.device.probe import measure_ram_bandwidth, probe_gpus

    report.facts["torch"] = torch.__version__
    report.facts["gpus"] = [asdict(gpu) for gpu in probe_gpus()]
    report.facts["ram_read_bytes_per_second"] = measure_ram_bandwidth()
    report.facts["int4_on_cpu"] = describe_int4_kernel()


def _examine_machine(report: Report) -> None:
    from martlet.device.probe import probe_cpu, probe_ram

    report.facts["cpu"] = asdict(probe_cpu())
    report.facts["ram"] = asdict(probe_ram())
    report.facts["disk"] = {"path": str(Path.cwd()), "free_bytes": shutil.disk_usage(".").free}


def _examine_models(report: Report) -> None:
    from martlet.checkpoint.store import open_store
    from martlet.hub.catalogue import BUNDLED, resolve

    report.facts["models"] = models = []
    for name in BUNDLED:
        problem = None
        try:
            open_store(resolve(name)).verify()
        except MartletError as error:
            problem = str(error)
            report.add_problem(problem, "pip install --force-reinstall .", error.exit_code)
        models.append({"name": name, "verified": problem is None, "problem": problem})


def _print(report: Report) -> None:
    facts = report.facts
    ram, disk = facts["ram"], facts["disk"]
    limit = " (the limit of this container)" if ram["limit_bytes"] is not None else ""
    speed = facts["ram_read_bytes_per_second"]
    lines = [
        ("martlet", facts["martlet"]),
        ("python", f"{facts['python']} on {facts['platform']}"),
        ("torch", facts["torch"] or "missing"),
        ("processor", f"{facts['cpu']['name']}, {facts['cpu']['num_cores']} cores"),
        (
            "memory",
            f"{format_bytes(ram['total_bytes'])}{limit}, "
            f"{format_bytes(ram['available_bytes'])} free",
        ),
        ("memory reads", f"{speed / 1e9:.1f} GB/s" if speed else "not measured"),
        ("int4 on CPU", facts["int4_on_cpu"] or "not known without torch"),
        ("graphics", "; ".join(_gpu_line(gpu) for gpu in facts["gpus"]) or "none that torch uses"),
        ("disk", f"{format_bytes(disk['free_bytes'])} free in {disk['path']}"),
        *(
            (model["name"], "verified" if model["verified"] else model["problem"])
            for model in facts["models"]
        ),
    ]
    for name, value in lines:
        print_text(f"{name:<13} {value}")
    num_problems = len(report.problems)
    verdict = "everything is in order" if not num_problems else f"problems: {num_problems}"
    print_text(f"\n{verdict}; next: {report.suggestion}")


def _gpu_line(gpu: dict[str, Any]) -> str:
    major, minor = gpu["compute_capability"]
    return (
        f"{gpu['name']} (compute capability {major}.{minor}), "
        f"{format_bytes(gpu['free_bytes'])} of {format_bytes(gpu['total_bytes'])} free"
    )
