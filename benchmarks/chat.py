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
from _chat_cases import Bench, batches, batches_agree, equal, turns
from _chat_cases import missing as missing_turns
from _chat_decoding import decoding
from _chat_decoding import missing as missing_decoding
from _chat_memory import memory
from _chat_memory import missing as missing_memory
from _chat_models import QUICK, SIZES, Size, chat_model
from _measure import Row, facts, markdown, put_between

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
EXACT: Mapping[str, Callable[[Bench], list[Row]]] = {"equal": equal, "batches_agree": batches_agree}
"""Measured in float32 everywhere; where one does not hold, no other figure means anything."""
CASES: Mapping[str, Callable[[Bench], list[Row]]] = {
    "turns": turns,
    "batches": batches,
    "decoding": decoding,
    "memory": memory,
}
TITLES = {"cpu": "On a CPU, a small model, float32", "cuda": "On a CUDA GPU, 7B sizes, bfloat16"}


def main() -> None:
    """Measure, print, and write what was asked for."""
    options = _options()
    sections = []
    for device in ("cpu", "cuda") if options.device == "all" else (options.device,):
        section = _measured(device, options.quick, options.only)
        sections.append(section)
        text = _section(section)
        print(f"## {TITLES[device]}\n\n{text}\n", flush=True)
        if options.write and not section["missing"]:
            put_between(PAGE, f"chat {device}", text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(sections, indent=2) + "\n")
    if wrong := [row["what"] for section in sections for row in section["rows"][: section["exact"]] if not row["met"]]:
        raise SystemExit(f"The chat is not what it must be: {'; '.join(wrong)}.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs, not to measure")
    parser.add_argument("--device", choices=("cpu", "cuda", "all"), default="all")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    names = [*EXACT, *CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick measures nothing that is worth writing down; leave out one of --quick and --write.")
    if options.write and options.only != names:
        parser.error("--write puts down whole tables; leave out one of --only and --write.")
    return options


def _measured(device: str, quick: bool, only: list[str]) -> dict[str, Any]:
    if device == "cuda" and not torch.cuda.is_available():
        absent = [*missing_turns(device, SIZES[device]), *missing_decoding(device), *missing_memory(device)]
        return {"device": device, "missing": True, "exact": 0, "rows": [asdict(row) for row in absent]}
    size = (QUICK if quick else SIZES)[device]
    bench = Bench(chat_model(size, torch.device(device)), size, torch.device(device))
    exact = _run(EXACT, bench, only)
    if device == "cuda":
        bench.model.to(torch.bfloat16)
        torch.cuda.empty_cache()
    rows = exact + [replace(row, met=None if quick else row.met) for row in _run(CASES, bench, only)]
    command = " ".join(["python benchmarks/chat.py", *sys.argv[1:]])
    words = {
        "device": device,
        "missing": False,
        "exact": len(exact),
        "model": _words(bench.model, size),
        **facts(device, command),
    }
    return {**words, "rows": [asdict(row) for row in rows]}


def _run(cases: Mapping[str, Callable[[Bench], list[Row]]], bench: Bench, only: list[str]) -> list[Row]:
    rows = []
    for name, case in cases.items():
        if name in only:
            start = time.perf_counter()
            rows += case(bench)
            seconds = time.perf_counter() - start
            print(f"{bench.device.type}: {name} measured in {seconds:.0f} s", file=sys.stderr, flush=True)
    return rows


def _words(model: torch.nn.Module, size: Size) -> str:
    """What the model is."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    vision, language = size.vision, size.language
    return (
        f"{weights / 1e6:,.1f} M random weights: encoder qwen2_5_vl, {vision.depth} blocks of width "
        f"{vision.hidden_size}, joint_attention late; language model qwen2_5_vl, "
        f"{language['num_hidden_layers']} layers of width {language['hidden_size']}"
    )


def _section(section: dict[str, Any]) -> str:
    """The table of one device, and under it what it was measured with."""
    table = markdown([Row(**row) for row in section["rows"]])
    if section["missing"]:
        return f"{table}\n\nNot measured: there is no CUDA GPU."
    named = ", ".join(f"{name} {version}" for name, version in section["versions"].items() if name != "machine")
    return (
        f"{table}\n\nMedians, in brackets the quartiles; sides take turns. {section['model']}.\n"
        f"{section['date']}; {section['machine']}; {named}.\nCommand: `{section['command']}`."
    )


if __name__ == "__main__":
    main()
