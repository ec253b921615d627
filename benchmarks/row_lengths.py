"""Time and memory of a token in rows of 256 to 16,384: `python benchmarks/row_lengths.py [--write]`.

pip install matplotlib    # for --write, which draws a plot; not a dependency of the toolkit

Forward and backward of a row of the supervised stage, on one thread: many dialogues of 256 tokens that share the row,
and one dialogue as long as the row. Attention is told apart, since in one dialogue it alone grows with the length.
Every figure is of a process of its own, so that no row finds memory that another one left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _measure import describe_machine, measurement_facts, replace_section
from _script import write_json
from plan_time import RECIPE
from sft import watched_memory

from vilavt_toolkit.checkpoints.loading import build_model
from vilavt_toolkit.checkpoints.native import load_run_recipe
from vilavt_toolkit.planning.dialogues import invent_dialogues
from vilavt_toolkit.training.supervised.data import build_step_collator
from vilavt_toolkit.training.supervised.module import SupervisedModule
from vilavt_toolkit.training.supervised.validation import score_targets

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
LENGTHS = (256, 512, 1_024, 2_048, 4_096, 8_192, 16_384)
KINDS = ("dialogues of 256", "one dialogue")
REPEATS = 3


def main() -> None:
    """Measure every length in a process of its own, print a table and write it by the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="rows of up to 1,024 tokens, to see that it runs")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    parser.add_argument("--write", action="store_true", help="put the table and the plot into docs/")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_row(options.one[0], int(options.one[1]))))
        return
    lengths = LENGTHS[:3] if options.quick else LENGTHS
    found = {kind: [measure_apart(kind, length) for length in lengths] for kind in KINDS}
    table = format_lengths(found)
    print(table)
    write_json(options.json, {**measurement_facts("cpu", "python benchmarks/row_lengths.py"), "rows": found})
    if options.write:
        draw_lengths(found, PAGE.with_name("row-lengths.svg"))
        replace_section(PAGE, "row lengths", f"{table}\n\n{describe_machine('cpu')}")


def measure_apart(kind: str, length: int) -> dict[str, float]:
    """Measure one row in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, str(length)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(kind, found, file=sys.stderr, flush=True)
    return found


def measure_row(kind: str, length: int) -> dict[str, float]:
    """Return tokens of a row, its seconds, those of attention, and the bytes it takes above weights and gradients."""
    torch.set_num_threads(1)
    overrides = [f"train.pack_tokens={length}", "train.micro_batch=null", "train.accelerator=cpu"]
    overrides += [f"model.language_model.config.max_position_embeddings={length}"]
    recipe = load_run_recipe("quickstart", [*RECIPE, *overrides])
    section, model = recipe.recipe.train, build_model(recipe, torch.float32)
    module = SupervisedModule(model, section.optimizer.build(), section)
    of_one, count = (256, length // 256) if kind == KINDS[0] else (length, 1)
    batch = build_step_collator(model, section)(invent_dialogues(model, of_one, count).dialogues)
    (row,) = batch.micro_batches

    def run() -> None:
        logprobs, _ = score_targets(model, row)
        (-logprobs.sum() / batch.produced_tokens).backward()
        # The gradients stay, as memory that every row finds.
        module.zero_grad(set_to_none=False)

    # A short row first, or else what is made once would count as the row's.
    short = build_step_collator(model, section)(invent_dialogues(model, 256, 1).dialogues).micro_batches[0]
    (-score_targets(model, short)[0].sum()).backward()
    seconds = []
    with watched_memory() as peak:
        for _ in range(REPEATS):
            begin = time.process_time()
            run()
            seconds.append(time.process_time() - begin)
    return {
        "tokens": of_one * count,
        "seconds": sorted(seconds)[REPEATS // 2],
        "attention": measure_attention(run),
        "memory": float(peak[0]),
    }


def measure_attention(run: Any) -> float:
    """Return the seconds that attention takes of a run, forward and backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    named = (each for each in profile.key_averages() if each.key.startswith("aten::_scaled_dot_product"))
    return sum(each.self_cpu_time_total for each in named) / 1e6


def format_lengths(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the Markdown table of all rows."""
    lines = ["| row | tokens | ms a token | of which attention | KiB a token |", "| --- | ---: | ---: | ---: | ---: |"]
    for kind, rows in found.items():
        for row in rows:
            tokens, rest = row["tokens"], row["seconds"] - row["attention"]
            cells = [kind, f"{tokens:,.0f}", f"{1e3 * row['seconds'] / tokens:.3f}"]
            cells += [f"{1e3 * (row['seconds'] - rest) / tokens:.3f}", f"{row['memory'] / tokens / 1024:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_lengths(found: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Draw time and memory of a token by the length of its row."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for kind, rows in found.items():
        tokens = [row["tokens"] for row in rows]
        (line,) = left.plot(tokens, [1e3 * row["seconds"] / row["tokens"] for row in rows], "o-", label=kind)
        rest = [1e3 * (row["seconds"] - row["attention"]) / row["tokens"] for row in rows]
        left.plot(tokens, rest, "o:", color=line.get_color(), label=f"{kind}, without attention")
        right.plot(tokens, [row["memory"] / row["tokens"] / 1024 for row in rows], "o-", label=kind)
    for axes, name in ((left, "ms a token"), (right, "KiB a token")):
        axes.set(xscale="log", xlabel="tokens of a row", ylabel=name, ylim=(0, None))
        axes.set_xticks(tokens, [f"{each:,.0f}" for each in tokens], rotation=45, minor=False)
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
