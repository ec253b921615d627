"""Speed and memory of the dynamic encoder, each figure beside a peer measured in the same run.

python benchmarks/encoder.py            # small sizes on the CPU, real ones in bf16 on a CUDA GPU if there is one
python benchmarks/encoder.py --write    # and put tables and plots into docs/
python benchmarks/encoder.py --only every_encoder preparing_clouds
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _encoder_cases import (
    EncoderBench,
    GroupCost,
    measure_groups,
    measure_kernels,
    measure_loop,
    measure_modulation,
    measure_packing,
    measure_tower,
    missing_case_rows,
)
from _encoder_models import QUICK, SIZES
from _encoder_registry import measure_every_encoder, measure_preparing, missing_registry_rows
from _line_plot import draw_line_plot
from _measure import Row, format_table, measurement_facts, replace_section
from _script import parse_options, write_json

from vilavt_toolkit.registry.plugins import load_builtin

DOCS = Path(__file__).parent.parent / "docs"
CASES: Mapping[str, Callable[[EncoderBench], list[Row]]] = {
    "modulation": measure_modulation,
    "packing": measure_packing,
    "kernels": measure_kernels,
    "loop": measure_loop,
    "tower": measure_tower,
    "every_encoder": measure_every_encoder,
    "preparing_clouds": measure_preparing,
}
GROUPS = "groups"
TITLES = {"cpu": "On a CPU, small sizes, float32", "cuda": "On a CUDA GPU, real sizes, bfloat16"}


def main() -> None:
    """Measure, print, and write the results by the options."""
    options = parse_options((__doc__ or "").splitlines()[0], [*CASES, GROUPS])
    load_builtin()
    sections = []
    for device in ("cpu", "cuda") if options.device == "all" else (options.device,):
        section, cost = _measure_device(device, options.quick, options.only)
        sections.append(section)
        text = _format_section(section)
        print(f"## {TITLES[device]}\n\n{text}\n", flush=True)
        if options.write and not section["missing"]:
            _write_page(device, text, cost)
    write_json(options.json, sections)


def _measure_device(device: str, quick: bool, only: list[str]) -> tuple[dict[str, Any], GroupCost | None]:
    command = " ".join(["python benchmarks/encoder.py", *sys.argv[1:]])
    if device == "cuda" and not torch.cuda.is_available():
        absent = [*missing_case_rows(device), *missing_registry_rows(device)]
        return {"device": device, "missing": True, "rows": [asdict(row) for row in absent]}, None
    bench = EncoderBench(torch.device(device), (QUICK if quick else SIZES)[device])
    rows: list[Row] = []
    cost = None
    for name in (name for name in CASES if name in only):
        rows += CASES[name](bench)
        _report_progress(f"{device}: {name} measured")
    if GROUPS in only:
        found, cost = measure_groups(bench, quick)
        rows += found
    if quick:
        # The targets are not meant for these sizes.
        rows = [replace(row, met=None) for row in rows]
    facts_of = measurement_facts(device, command)
    measured = {"device": device, "missing": False, "size": asdict(bench.size), **facts_of}
    return measured | {"rows": [asdict(row) for row in rows]}, cost


def _report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _format_section(section: dict[str, Any]) -> str:
    """Write the table of one device, and below it the circumstances of its measurement."""
    table = format_table([Row(**row) for row in section["rows"]])
    if section["missing"]:
        return f"{table}\n\nNot measured: there is no CUDA GPU."
    named = ", ".join(f"{name} {version}" for name, version in section["versions"].items() if name != "machine")
    size = ", ".join(f"{name} {value}" for name, value in section["size"].items() if value)
    return (
        f"{table}\n\nMedians, in brackets the quartiles; sides take turns. Plain tower: {size}.\n"
        f"{section['date']}; {section['machine']}; {named}.\nCommand: `{section['command']}`."
    )


def _write_page(device: str, text: str, cost: GroupCost | None) -> None:
    """Replace the device's section of the page, and its plot."""
    if cost is not None:
        name = f"groups-{device}.svg"
        points = [(n, s.median, s.low, s.high) for n, s in zip(cost.counts, cost.spreads, strict=True)]
        title = f"Cost by the number of inquiry groups ({cost.modulator}, {device})"
        (DOCS / name).write_text(draw_line_plot(title, "inquiry groups", "ms, forward and backward", points, cost.line))
        text += f"\n\n![Milliseconds by the number of groups]({name})"
    replace_section(DOCS / "performance.md", device, text)


if __name__ == "__main__":
    main()
