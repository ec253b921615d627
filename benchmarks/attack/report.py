"""Put the outcomes of campaigns, written with --json, into the table of docs/reliability.md.

python benchmarks/attack/report.py runs/attack/*.json
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
START, END = "<!-- attack -->", "<!-- end of attack -->"
HEADER = "| campaign | cases | outcomes | tracebacks | hangs | growth above 1 GB | slowest |"


def main() -> None:
    """Write one row for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="files that campaigns wrote")
    found: list[dict[str, Any]] = []
    for file in parser.parse_args().files:
        found += json.loads(file.read_text(encoding="utf-8"))
    day, machine = datetime.now(UTC).date(), f"{platform.machine()}, Python {platform.python_version()}"
    lines = [HEADER, "| --- | ---: | --- | ---: | ---: | ---: | ---: |", *map(write_row, found)]
    table = "\n".join([START, *lines, "", f"Measured on {day}, {machine}, on a CPU.", END])
    text = PAGE.read_text(encoding="utf-8")
    # A function, since the table may hold backslashes.
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")
    print(table)


def write_row(campaign: dict[str, Any]) -> str:
    """Return the row of a campaign."""
    outcomes: dict[str, int] = campaign["outcomes"]
    faults = [outcomes.get(name, 0) for name in ("traceback", "hang", "growth")]
    good = [f"{count:,} {name}" for name, count in outcomes.items() if name not in ("traceback", "hang", "growth")]
    cells = [campaign["name"], f"{sum(outcomes.values()):,}", "; ".join(good), *map(str, faults)]
    return f"| {' | '.join(cells)} | {campaign['slowest']:.1f} s |"


if __name__ == "__main__":
    main()
