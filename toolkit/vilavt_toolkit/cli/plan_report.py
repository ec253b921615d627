"""The report of `vilavt plan`: parameters, memory by kind and phase, operations, time, and whether a step fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vilavt_toolkit.planning.measured import MeasuredRates
from vilavt_toolkit.planning.memory import KINDS, Peak
from vilavt_toolkit.planning.operations import format_operations
from vilavt_toolkit.planning.plan import PlanRequest, StagePlan
from vilavt_toolkit.planning.remedies import TriedRemedy

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_HOUR = 3600


def print_plan(console: Console, name: str, plan: StagePlan, request: PlanRequest) -> None:
    """Print the plan of one stage."""
    console.print(_make_parameter_table(name, plan))
    console.print(_make_memory_table(plan))
    for line in _describe_plan(plan, request):
        console.print(line)


def print_remedies(console: Console, tried: Sequence[TriedRemedy]) -> None:
    """Print what a recipe could change, each change with its own simulated memory and time."""
    table = Table(title="what to change")
    table.add_column("change", min_width=14)
    for column in ("most memory", "fits", "time of a step"):
        table.add_column(column, justify="right", no_wrap=True)
    # A narrow terminal folds the settings, which are to be typed, and never leaves them out.
    table.add_column("settings", min_width=24, overflow="fold")
    for each in tried:
        simulation = each.plan.simulation
        table.add_row(
            each.name,
            format_bytes(simulation.peak.bytes),
            "yes" if each.plan.fits else "no",
            _format_seconds(simulation.cost.seconds),
            " ".join(f"'{text}'" if " " in text else text for text in each.overrides),
        )
    console.print(table)


def format_bytes(size: int) -> str:
    """Return a number of bytes with a unit, as `31.1 GiB`."""
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


def print_rates(console: Console, rates: MeasuredRates, file: Path) -> None:
    """Print the rates that were measured, and where they are kept."""
    table = Table(title="rates of this machine", title_justify="left")
    table.add_column("work")
    table.add_column("rate by size", justify="right")
    for kind, curve in rates.curves.items():
        unit = "GB/s" if kind.startswith(("simple", "function")) else "Gop/s"
        points = ", ".join(f"{size:,.0f}: {rate / 1e9:,.1f}" for size, rate in curve)
        table.add_row(f"{kind} ({unit})", points)
    console.print(table)
    console.print(f"{rates.name}: an operation takes {1e6 * rates.start_seconds:.1f} us without its numbers")
    console.print(f"kept in {file}; plans use them with --device here", soft_wrap=True)


def _make_parameter_table(name: str, plan: StagePlan) -> Table:
    parameters = {part: counts for part, counts in plan.simulation.parameters.items() if any(counts)}
    trained, frozen = (sum(column) for column in zip(*parameters.values(), strict=True))
    table = Table(title=f"{name}, {plan.stage}: {trained + frozen:,} parameters")
    table.add_column("part", no_wrap=True)
    for column in ("trained", "frozen"):
        table.add_column(column, justify="right", no_wrap=True)
    for part, counts in parameters.items():
        table.add_row(part.replace("_", " "), *(f"{count:,}" if count else "" for count in counts))
    table.add_section()
    table.add_row("all", f"{trained:,}", f"{frozen:,}")
    return table


def _make_memory_table(plan: StagePlan) -> Table:
    """Return a table of the peak of every phase, and what it is made of."""
    peaks = {phase: peak for phase, peak in plan.simulation.peaks.items() if peak.bytes}
    table = Table(title="most memory at once in a step")
    table.add_column("what takes it", no_wrap=True)
    for phase in peaks:
        table.add_column(phase, justify="right", no_wrap=True)
    for kind in KINDS:
        if any(peak.by_kind.get(kind) for peak in peaks.values()):
            table.add_row(kind, *(_format_share(peak, kind) for peak in peaks.values()))
    table.add_section()
    table.add_row("all", *(format_bytes(peak.bytes) for peak in peaks.values()))
    return table


def _format_share(peak: Peak, kind: str) -> str:
    held = {str(name): size for name, size in peak.by_kind.items()}.get(kind, 0)
    return format_bytes(held) if held else ""


def _describe_plan(plan: StagePlan, request: PlanRequest) -> Iterator[str]:
    simulation, cost = plan.simulation, plan.simulation.cost
    lengths = plan.lengths
    yield f"lengths: {plan.origin}, {sum(lengths) / len(lengths):,.0f} tokens on average, {max(lengths):,} at most"
    verdict = "fits into" if plan.fits else "does not fit into"
    yield (
        f"{verdict} {request.rates.name}: {format_bytes(simulation.peak.bytes)} of {format_bytes(plan.limit)} that can "
        "be filled"
    )
    operations = ", ".join(f"{format_operations(count)} {kind}" for kind, count in cost.operations.most_common())
    yield f"operations of a step: {operations}"
    phases = ", ".join(f"{phase} {_format_seconds(part.seconds)}" for phase, part in simulation.phases.items())
    hours = cost.seconds * plan.steps / _HOUR
    yield (
        f"time of a step by the rates of {request.rates.name}: {_format_seconds(cost.seconds)} ({phases}); "
        f"all {plan.steps:,} together {_format_hours(hours)}"
    )
    waits = ", ".join(f"{count} at {place}" for place, count in cost.waits.most_common())
    yield f"{cost.launches:,} kernels are started, and the device is waited for {cost.waits.total()} times: {waits}"
    for note in plan.notes:
        yield f"note: {note}"


def _format_seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


def _format_hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
