"""Command-line options and result files of the benchmark scripts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_options(description: str, cases: Sequence[str]) -> argparse.Namespace:
    """Parse the options of a script that measures cases on two devices and can write them into docs/performance.md."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="use tiny sizes, to see that it runs rather than to measure"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--write", action="store_true", help="put tables and plots into docs/performance.md")
    names = list(cases)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    options = parser.parse_args()
    # A page with figures of tiny sizes, or with half of its rows, would look like a measurement.
    if options.quick and options.write:
        parser.error("--quick measures nothing worth writing down. Leave out --quick or --write.")
    if options.write and options.only != names:
        parser.error("--write replaces whole tables. Leave out --only or --write.")
    return options


def write_json(path: Path | None, content: Any) -> None:
    """Write content as JSON, unless `path` is None; missing folders are made."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
