"""Rows that dialogues share: how full they are, and what attention within them costs, beside the alternatives.

python benchmarks/packing.py            # a mixed set of 512 dialogues, attention in rows of 4,096 columns, one thread
python benchmarks/packing.py --quick    # small sizes, to see that it runs
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from _measure import Row, Work, compare_sides, describe_machine, format_table, measurement_facts
from _script import write_json
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_components.language_models.document_attention import DocumentRow, register_document_attention
from vilavt_components.language_models.layer_windows import LayerWindows
from vilavt_toolkit.data.row_budget import RowBudget, RowSize
from vilavt_toolkit.training.supervised.packing import fill_rows

HEADS, KEY_HEADS, WIDTH = 12, 2, 64
PATCHES_A_FEATURE = 4


def main() -> None:
    """Print how full rows are and the times of attention, and write them by the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="use small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, tokens, repeats = (64, 2_048, 3) if options.quick else (512, 4_096, 15)
    sizes = draw_mixed_set(count)
    rows = measure_fill(sizes, tokens) + measure_attention(sizes, tokens, repeats)
    print(f"{describe_machine('cpu')}\n\n{format_table(rows)}")
    facts = measurement_facts("cpu", "python benchmarks/packing.py" + " --quick" * options.quick)
    write_json(options.json, {**facts, "rows": [row.numbers | {"what": row.what} for row in rows]})


def draw_mixed_set(count: int) -> list[RowSize]:
    """Return the sizes of dialogues of one to six images and 60 to 2,000 tokens, short ones being more frequent."""
    generator = random.Random(0)
    sizes = []
    for _ in range(count):
        images = generator.randint(1, 6)
        tokens = int(60 * (2_000 / 60) ** generator.random())
        # Features are at most three quarters of a dialogue.
        features = min(images * generator.randint(8, 256), 3 * tokens // 4)
        sizes.append(RowSize(tokens, features * PATCHES_A_FEATURE))
    return sizes


def measure_fill(sizes: Sequence[RowSize], tokens: int, step: int = 32) -> list[Row]:
    """Return what share of the columns is padding, packed and padded in micro-batches of four, over steps of 32."""
    budget = RowBudget(tokens, tokens * PATCHES_A_FEATURE, "alone", lambda view: 0)
    computed = packed = sorted_columns = drawn = rows = 0
    for start in range(0, len(sizes), step):
        part = sizes[start : start + step]
        shared = fill_rows(part, budget)
        rows += len(shared)
        # A row is as long as its dialogues are together, so none of its columns is empty.
        packed += sum(part[number].tokens for row in shared for number in row)
        computed += sum(size.tokens for size in part)
        lengths = [size.tokens for size in part]
        sorted_columns += _padded_columns(sorted(lengths), 4)
        drawn += _padded_columns(lengths, 4)
    shares = {
        "packed": 1 - computed / packed,
        "sorted by length": 1 - computed / sorted_columns,
        "as drawn": 1 - computed / drawn,
    }
    return [
        Row(
            "cpu",
            "padding of all columns, rows that dialogues share",
            f"{shares['packed']:.1%}",
            f"{rows} rows of at most {tokens:,}, {packed / rows / tokens:.0%} full",
            "micro-batches of four: " + ", ".join(f"{name} {shares[name]:.1%}" for name in list(shares)[1:]),
            "below 3%",
            shares["packed"] < 0.03,
            {"padding": shares, "rows": rows, "fill": packed / rows / tokens},
        )
    ]


def _padded_columns(lengths: Sequence[int], rows: int) -> int:
    parts = [lengths[start : start + rows] for start in range(0, len(lengths), rows)]
    return sum(max(part) * len(part) for part in parts)


def measure_attention(sizes: Sequence[RowSize], tokens: int, repeats: int) -> list[Row]:
    """Time attention of one row, forward and backward: dialogue by dialogue, under a mask of blocks, and padded."""
    budget = RowBudget(tokens, None, "alone", lambda view: 0)
    fullest = fill_rows(sizes, budget)[0]
    lengths = [sizes[number].tokens for number in fullest]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(lengths), WIDTH, generator=generator, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    states = (query, key, value)
    what = f"attention of {len(lengths)} dialogues, {sum(lengths):,} columns, forward and backward"
    ours = partial(_run_backward, partial(attend_documents, lengths, *states))
    beside: dict[str, Work] = {
        "under a mask of blocks": partial(_run_backward, partial(attend_blocks, lengths, *states)),
        "padded": partial(_run_backward, partial(attend_padded, lengths, *states)),
    }
    sides = (compare_sides(torch.device("cpu"), f"{what}, {name}", {"one by one": ours, name: other}, repeats, 1.0)
             for name, other in beside.items())  # fmt: skip
    return list(sides)


def _run_backward(attend: partial[Tensor]) -> None:
    attend().square().sum().backward()


def attend_documents(lengths: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend as a language model does in training."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    row = DocumentRow(lengths, LayerWindows(("full_attention",), {}), query.device)
    module = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    attention = ALL_ATTENTION_FUNCTIONS[register_document_attention("sdpa")]
    found: Tensor = attention(module, query, key, value, None, documents=row)[0]
    return found


def attend_blocks(lengths: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend in one call under a mask [L, L] whose blocks are the dialogues."""
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask = (owner[:, None] == owner).tril()
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True).transpose(1, 2)


def attend_padded(lengths: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend causally in a batch of the dialogues, padded to the longest."""

    def pad(states: Tensor) -> Tensor:
        parts = [part[0].transpose(0, 1) for part in torch.split(states, list(lengths), dim=2)]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True).transpose(1, 2)

    out = F.scaled_dot_product_attention(pad(query), pad(key), pad(value), is_causal=True, enable_gqa=True)
    return torch.cat([row[:, :length] for row, length in zip(out, lengths, strict=True)], dim=1)


if __name__ == "__main__":
    main()
