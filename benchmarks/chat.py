"""Speed and memory of the chat, beside a plain loop over the same weights that reads everything again at every turn.

python benchmarks/chat.py               # a small model on the CPU, 7B sizes in bf16 on a CUDA GPU if there is one
python benchmarks/chat.py --write       # and put the tables into docs/performance.md
python benchmarks/chat.py --device cuda --only turns decoding
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _chat_cases import ChatBench, check_batches, check_logits, measure_batches, measure_turns, missing_turn_rows
from _chat_decoding import measure_decoding, missing_decoding_rows
from _chat_memory import measure_memory, missing_memory_rows
from _chat_models import QUICK, SIZES, Size, build_chat_model
from _measure import Row, format_table, measurement_facts, replace_section
from _script import parse_options, write_json

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
    options = parse_options((__doc__ or "").splitlines()[0], [*EXACT, *CASES])
    sections = []
    for device in ("cpu", "cuda") if options.device == "all" else (options.device,):
        section = _measure_device(device, options.quick, options.only)
        sections.append(section)
        text = _format_section(section)
        print(f"## {TITLES[device]}\n\n{text}\n", flush=True)
        if options.write and not section["missing"]:
            replace_section(PAGE, f"chat {device}", text)
    write_json(options.json, sections)
    if wrong := [row["what"] for section in sections for row in section["rows"][: section["exact"]] if not row["met"]]:
        raise SystemExit(f"The chat fails the checks that it must pass: {', '.join(wrong)}. Fix these first.")


def _measure_device(device: str, quick: bool, only: list[str]) -> dict[str, Any]:
    if device == "cuda" and not torch.cuda.is_available():
        absent = [
            *missing_turn_rows(device, SIZES[device]),
            *missing_decoding_rows(device),
            *missing_memory_rows(device),
        ]
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
