"""Speed and memory of the dynamic encoder, each figure beside a peer measured in the same run.

python benchmarks/encoder.py            # small sizes on the CPU, real ones in bf16 on a CUDA GPU if there is one
python benchmarks/encoder.py --write    # and put tables and plots into docs/
python benchmarks/encoder.py --only every_encoder preparing_clouds
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _cases import GroupCost, Place, groups_cost, kernels, loop, missing, modulation, packing, tower
from _encoders import every_encoder, preparing_clouds
from _encoders import missing as missing_encoders
from _measure import Row, facts, markdown, put_between
from _models import QUICK, SIZES
from _plot import line_plot

from vilavt_toolkit.registry.plugins import load_builtin

DOCS = Path(__file__).parent.parent / "docs"
CASES = (modulation, packing, kernels, loop, tower, every_encoder, preparing_clouds)
GROUPS = "groups"
TITLES = {"cpu": "On a CPU, small sizes, float32", "cuda": "On a CUDA GPU, real sizes, bfloat16"}


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _options()
    load_builtin()
    sections = []
    for device in ("cpu", "cuda") if options.device == "all" else (options.device,):
        section, cost = _measured(device, options.quick, options.only)
        sections.append(section)
        text = _section(section)
        print(f"## {TITLES[device]}\n\n{text}\n", flush=True)
        if options.write and not section["missing"]:
            _write(device, text, cost)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(sections, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs, not to measure")
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md, and the plot")
    names = [*(case.__name__ for case in CASES), GROUPS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick measures nothing that is worth writing down; leave out one of --quick and --write.")
    if options.write and options.only != names:
        parser.error("--write puts down whole tables; leave out one of --only and --write.")
    return options


def _measured(device: str, quick: bool, only: list[str]) -> tuple[dict[str, Any], GroupCost | None]:
    command = " ".join(["python benchmarks/encoder.py", *sys.argv[1:]])
    if device == "cuda" and not torch.cuda.is_available():
        absent = [*missing(device), *missing_encoders(device)]
        return {"device": device, "missing": True, "rows": [asdict(row) for row in absent]}, None
    place = Place(torch.device(device), (QUICK if quick else SIZES)[device])
    rows: list[Row] = []
    cost = None
    for case in (case for case in CASES if case.__name__ in only):
        rows += case(place)
        _say(f"{device}: {case.__name__} measured")
    if GROUPS in only:
        found, cost = groups_cost(place, quick)
        rows += found
    if quick:  # sizes at which no target was meant
        rows = [replace(row, met=None) for row in rows]
    facts_of = facts(device, command)
    measured = {"device": device, "missing": False, "size": asdict(place.size), **facts_of}
    return measured | {"rows": [asdict(row) for row in rows]}, cost


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _section(section: dict[str, Any]) -> str:
    """The table of one device, and under it what it was measured with."""
    table = markdown([Row(**row) for row in section["rows"]])
    if section["missing"]:
        return f"{table}\n\nNot measured: there is no CUDA GPU."
    named = ", ".join(f"{name} {version}" for name, version in section["versions"].items() if name != "machine")
    size = ", ".join(f"{name} {value}" for name, value in section["size"].items() if value)
    return (
        f"{table}\n\nMedians, in brackets the quartiles; sides take turns. Plain tower: {size}.\n"
        f"{section['date']}; {section['machine']}; {named}.\nCommand: `{section['command']}`."
    )


def _write(device: str, text: str, cost: GroupCost | None) -> None:
    """Replace the device's part of the page, and its plot."""
    if cost is not None:
        name = f"groups-{device}.svg"
        points = [(n, s.median, s.low, s.high) for n, s in zip(cost.counts, cost.spreads, strict=True)]
        title = f"Cost by the number of inquiry groups ({cost.modulator}, {device})"
        (DOCS / name).write_text(line_plot(title, "inquiry groups", "ms, forward and backward", points, cost.line))
        text += f"\n\n![Milliseconds by the number of groups]({name})"
    put_between(DOCS / "performance.md", device, text)


if __name__ == "__main__":
    main()
