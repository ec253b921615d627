"""Speed and memory of the chat, beside a plain loop over the same weights that reads everything again at every turn.

python benchmarks/chat.py               # a small model on the CPU, 7B sizes in bf16 on a CUDA GPU if there is one
python benchmarks/chat.py --write       # and put the tables into docs/performance.md
python benchmarks/chat.py --device cuda --only turns decoding
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _chat_cases import ChatBench, check_batches, check_logits, measure_batches, measure_turns
from _chat_cases import missing_rows as missing_turns
from _chat_decoding import measure_decoding
from _chat_decoding import missing_rows as missing_decoding
from _chat_memory import measure_memory
from _chat_memory import missing_rows as missing_memory
from _chat_models import QUICK, SIZES, Size, build_chat_model
from _measure import Row, format_table, measurement_facts, replace_section

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
EXACT: Mapping[str, Callable[[ChatBench], list[Row]]] = {"equal": check_logits, "batches_agree": check_batches}
"""Checks in float32 on every device; if one fails, no other figure means anything."""
CASES: Mapping[str, Callable[[ChatBench], list[Row]]] = {
    "turns": measure_turns,
    "batches": measure_batches,
    "decoding": measure_decoding,
    "memory": measure_memory,
}
TITLES = {"cpu": "On a CPU, a small model, float32", "cuda": "On a CUDA GPU, 7B sizes, bfloat16"}


def main() -> None:
    """Measure, print, and write the results by the options."""
    options = _parse_options()
    sections = []
    for device in ("cpu", "cuda") if options.device == "all" else (options.device,):
        section = _measure_device(device, options.quick, options.only)
        sections.append(section)
        text = _format_section(section)
        print(f"## {TITLES[device]}\n\n{text}\n", flush=True)
        if options.write and not section["missing"]:
            replace_section(PAGE, f"chat {device}", text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(sections, indent=2) + "\n")
    if wrong := [row["what"] for section in sections for row in section["rows"][: section["exact"]] if not row["met"]]:
        raise SystemExit(f"The chat fails the checks that it must pass: {', '.join(wrong)}. Fix these first.")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="use tiny sizes, to see that it runs rather than to measure"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    names = [*EXACT, *CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick measures nothing worth writing down. Leave out --quick or --write.")
    if options.write and options.only != names:
        parser.error("--write replaces whole tables. Leave out --only or --write.")
    return options


def _measure_device(device: str, quick: bool, only: list[str]) -> dict[str, Any]:
    if device == "cuda" and not torch.cuda.is_available():
        absent = [*missing_turns(device, SIZES[device]), *missing_decoding(device), *missing_memory(device)]
        return {"device": device, "missing": True, "exact": 0, "rows": [asdict(row) for row in absent]}
    size = (QUICK if quick else SIZES)[device]
    bench = ChatBench(build_chat_model(size, torch.device(device)), size, torch.device(device))
    exact = _run_cases(EXACT, bench, only)
    if device == "cuda":
        bench.model.to(torch.bfloat16)
        torch.cuda.empty_cache()
    rows = exact + [replace(row, met=None if quick else row.met) for row in _run_cases(CASES, bench, only)]
    command = " ".join(["python benchmarks/chat.py", *sys.argv[1:]])
    words = {
        "device": device,
        "missing": False,
        "exact": len(exact),
        "model": _describe_model(bench.model, size),
        **measurement_facts(device, command),
    }
    return {**words, "rows": [asdict(row) for row in rows]}


def _run_cases(cases: Mapping[str, Callable[[ChatBench], list[Row]]], bench: ChatBench, only: list[str]) -> list[Row]:
    rows = []
    for name, case in cases.items():
        if name in only:
            start = time.perf_counter()
            rows += case(bench)
            seconds = time.perf_counter() - start
            print(f"{bench.device.type}: {name} measured in {seconds:.0f} s", file=sys.stderr, flush=True)
    return rows


def _describe_model(model: torch.nn.Module, size: Size) -> str:
    """Describe the model."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    vision, language = size.vision, size.language
    return (
        f"{weights / 1e6:,.1f} M random weights: encoder qwen2_5_vl, {vision.depth} blocks of width "
        f"{vision.hidden_size}, joint_attention late; language model qwen2_5_vl, "
        f"{language['num_hidden_layers']} layers of width {language['hidden_size']}"
    )


def _format_section(section: dict[str, Any]) -> str:
    """Write the table of one device, and below it the circumstances of its measurement."""
    table = format_table([Row(**row) for row in section["rows"]])
    if section["missing"]:
        return f"{table}\n\nNot measured: there is no CUDA GPU."
    named = ", ".join(f"{name} {version}" for name, version in section["versions"].items() if name != "machine")
    return (
        f"{table}\n\nMedians, in brackets the quartiles; sides take turns. {section['model']}.\n"
        f"{section['date']}; {section['machine']}; {named}.\nCommand: `{section['command']}`."
    )


if __name__ == "__main__":
    main()
