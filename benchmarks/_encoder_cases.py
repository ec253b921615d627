"""The comparisons of the encoder's benchmark, each a function from a device to rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _encoder_models import (
    INQUIRY_TOKENS,
    Size,
    WholeGroup,
    build_modulated,
    build_plain_vit,
    build_qwen_tower,
    default_modulator,
    make_step,
    make_views,
    noise_view,
)
from _loop_attention import loop_attention
from _measure import NOT_MEASURED, Row, Spread, compare_sides, time_interleaved, with_cudnn_attention
from torch import Tensor

from vilavt_toolkit.contracts import Encoder
from vilavt_toolkit.packed.attention import attend_segments
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.registry import encoders, modulators

GROUPS = 4
_AGAINST_PLAIN = {"film": 1.15, "lora_gated": 1.15, "cross_attention": 1.15, "joint_attention": 1.10}


@dataclass(frozen=True)
class EncoderBench:
    """A device and the sizes that are measured on it."""

    device: torch.device
    size: Size

    @property
    def dtype(self) -> torch.dtype:
        """float32 on a CPU, bfloat16 on a GPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def measure_modulation(bench: EncoderBench) -> list[Row]:
    """Compare every registered modulator with the plain tower on the same tokens: late, 32 words, both passes."""
    encoder = build_plain_vit(bench.size, bench.device, bench.dtype)
    views = make_views(encoder, bench.size)
    groups = [region * GROUPS // len(views) for region in range(len(views))]
    rows = []
    for name in [name for name in modulators.names() if name != "none"]:
        part = default_modulator(name)
        # A modulator that attends over the whole group is compared with plain attention over the whole group.
        together = part[0].span == "group"
        peer = build_modulated(encoder, [(WholeGroup, None)] if together else [], bench.size.inquiry_width)
        mine = build_modulated(encoder, [part], bench.size.inquiry_width)
        sides = {
            name: make_step(mine, views, groups),
            "plain, whole groups" if together else "plain": make_step(peer, views, groups),
        }
        what = f"`{name}`, late, T = {INQUIRY_TOKENS}, forward and backward"
        rows.append(compare_sides(bench.device, what, sides, bench.size.repeats, at_most=_AGAINST_PLAIN.get(name, 0)))
    return rows


def measure_packing(bench: EncoderBench) -> list[Row]:
    """Compare one packed call with one call per region."""
    encoder = build_plain_vit(bench.size, bench.device, bench.dtype)
    views = make_views(encoder, bench.size)
    dynamic = build_modulated(encoder, [], bench.size.inquiry_width)
    at_least = 2.0 if bench.device.type == "cuda" else 1.0

    def encode(parts: Sequence[Sequence[Any]]) -> Tensor:
        found = [dynamic.encode(part, range(len(part)), [[]] * len(part))[0] for part in parts]
        return torch.cat(found)

    def forward(parts: Sequence[Sequence[Any]]) -> None:
        with torch.no_grad():
            encode(parts)

    def both(parts: Sequence[Sequence[Any]]) -> None:
        dynamic.zero_grad(set_to_none=True)
        encode(parts).float().square().mean().backward()

    rows, single = [], [[one] for one in views]
    for name, work in (("forward", forward), ("forward and backward", both)):
        sides = {"one call": lambda work=work: work([views]), "a call each": lambda work=work: work(single)}
        what = f"{len(views)} regions of mixed size in one call, {name}"
        rows.append(compare_sides(bench.device, what, sides, bench.size.repeats, at_least=at_least))
    return rows


def measure_kernels(bench: EncoderBench) -> list[Row]:
    """Compare the packed kernel with buckets, the two that `attention: auto` chooses between."""
    if bench.device.type != "cuda":
        return []
    encoder = build_plain_vit(bench.size, bench.device, bench.dtype)
    views = make_views(encoder, bench.size)
    groups = [region * GROUPS // len(views) for region in range(len(views))]
    rows = []
    for name in [name for name in ("none", "joint_attention", "cross_attention") if name in modulators]:
        sides = {}
        for attention in ("varlen", "buckets"):
            dynamic = build_modulated(encoder, [default_modulator(name)], bench.size.inquiry_width, "all")
            dynamic.attention = attention
            sides[attention] = make_step(dynamic, views, groups)
        what = f"attention kernels, `{name}` in all blocks, forward and backward"
        rows.append(compare_sides(bench.device, what, sides, bench.size.repeats, at_least=1.0))
        # Both kernels, since torch chooses for each of them by itself.
        for attention, work in sides.items():
            what = f"cuDNN attention off, {attention}, `{name}` in all blocks, forward and backward"
            choices = {f"cuDNN {name}": with_cudnn_attention(work, name == "on") for name in ("off", "on")}
            rows.append(compare_sides(bench.device, what, choices, bench.size.repeats))
    return rows


def measure_loop(bench: EncoderBench) -> list[Row]:
    """Compare packed modulated attention with a loop over segments: 33 segments, 16 layers, forward and backward."""
    large = bench.device.type == "cuda"
    rng = np.random.default_rng(0)
    lengths = rng.integers(64, 1025, 33).tolist() if large else rng.integers(8, 65, 33).tolist()
    heads, width, layers = (16, 80, 16) if large else (4, 64, 16)

    def random(count: int) -> Tensor:
        return torch.randn(count, heads, width, device=bench.device, dtype=bench.dtype, requires_grad=True)

    q, k, v = (random(sum(lengths)) for _ in range(3))
    words = random(33 * INQUIRY_TOKENS), random(33 * INQUIRY_TOKENS)
    ends = torch.tensor([0, *np.cumsum(lengths).tolist()], device=bench.device)
    group_of_word = torch.arange(33, device=bench.device).repeat_interleave(INQUIRY_TOKENS)

    def ours() -> None:
        layout = Layout.build([(n,) for n in lengths], lengths, range(33))
        x = q
        for _ in range(layers):
            x = attend_segments(x, k, v, layout, "group", [words], [[INQUIRY_TOKENS] * 33])
        x.float().square().mean().backward()

    def peer() -> None:
        x = q
        for _ in range(layers):
            x = loop_attention(x, k, v, ends, *words, group_of_word)
        x.float().square().mean().backward()

    what = f"modulated attention of 33 segments, {sum(lengths)} tokens, {layers} layers, forward and backward"
    return [
        compare_sides(bench.device, what, {"packed": ours, "loop over segments": peer}, bench.size.repeats, at_least=1)
    ]


@dataclass(frozen=True)
class GroupCost:
    """Milliseconds by the number of groups, and the straight line a + b x fitted to them."""

    counts: list[int]
    spreads: list[Spread]
    line: tuple[float, float]
    modulator: str


def measure_groups(bench: EncoderBench, quick: bool) -> tuple[list[Row], GroupCost]:
    """Measure the cost by the number of inquiry groups, each of two regions under an inquiry of its own."""
    name = "joint_attention" if "joint_attention" in modulators else "film"
    encoder = build_plain_vit(bench.size, bench.device, bench.dtype)
    counts = [1, 2, 3, 4] if quick else [1, 2, 4, 8, 12, 16, 24, 32]
    # All groups are alike, so that only their number changes.
    pair = make_views(encoder, bench.size, 2)
    dynamic = build_modulated(encoder, [default_modulator(name)], bench.size.inquiry_width)
    sides = {str(n): make_step(dynamic, pair * n, [group for group in range(n) for _ in pair]) for n in counts}
    seconds = time_interleaved(sides, bench.device, bench.size.repeats)
    spreads = [Spread.from_values([1e3 * s for s in seconds[str(n)]]) for n in counts]
    x, y = np.asarray(counts, dtype=float), np.asarray([spread.median for spread in spreads])
    slope, start = np.polyfit(x, y, 1)
    fit = 1 - ((y - start - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    row = Row(
        device=bench.device.type,
        what=f"1 to {counts[-1]} groups under `{name}`, forward and backward",
        found=f"{start:.1f} + {slope:.2f} ms a group, R² {fit:.4f}",
        target="R² at least 0.98",
        met=bool(fit >= 0.98),
        numbers={"groups": counts, "ms": y.tolist(), "start_ms": start, "ms_a_group": slope, "r2": fit},
    )
    return [row], GroupCost(counts, spreads, (float(start), float(slope)), name)


def measure_tower(bench: EncoderBench) -> list[Row]:
    """Compare Qwen2.5-VL-7B's tower with the rate of matrix products in the same run, and measure its memory."""
    if bench.device.type != "cuda" or "qwen2_5_vl" not in encoders:
        return []
    rows = []
    for what, pad, compiled, target in (("as it is", 1, False, 0.50), ("MLP padded, compiled", 128, True, 0.55)):
        encoder = build_qwen_tower(bench.device, bench.dtype, pad)
        dynamic = build_modulated(encoder, [], bench.size.inquiry_width)
        if compiled:
            dynamic.compile_blocks()
        sides = (bench.size.qwen_side, bench.size.qwen_side)
        views = [noise_view(sides, 14, bench.device) for _ in range(8)]
        rows += _tower_rows(bench, f"Qwen2.5-VL-7B's tower, {what}, forward and backward", dynamic, views, target)
        del encoder, dynamic
        torch.cuda.empty_cache()
    return rows


def _tower_rows(bench: EncoderBench, what: str, dynamic: Any, views: Sequence[Any], target: float) -> list[Row]:
    tokens = sum(dynamic.backbone.token_count(each.size) for each in views)
    work = make_step(dynamic, views, list(range(len(views))), words=0)
    side = 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    seconds = time_interleaved({"tower": work, "matrices": lambda: a @ b}, bench.device, bench.size.repeats, warm=3)
    flops = count_tower_flops(dynamic.backbone, [each.size for each in views])
    rates = [flops / s / 1e12 for s in seconds["tower"]]
    peak = Spread.from_values([2 * side**3 / s / 1e12 for s in seconds["matrices"]])
    share = Spread.from_values([rate / peak.median for rate in rates])
    memory = _peak_memory(bench.device, dynamic, work) / tokens
    times = Spread.from_values([1e3 * s for s in seconds["tower"]])
    shared = Row(
        device="cuda",
        what=f"{what}, {tokens} tokens",
        found=f"{100 * share.median:.1f}% [{100 * share.low:.1f}, {100 * share.high:.1f}] of the matrix-product rate",
        ours=f"{times.to_text('.1f')} ms, {Spread.from_values(rates).to_text('.0f')} TFLOP/s",
        peer=f"bf16 products of {side} x {side}: {peak.to_text('.0f')} TFLOP/s",
        target=f"at least {100 * target:.0f}%",
        met=share.median >= target,
        numbers={"share": share.median, "tflops": Spread.from_values(rates).median, "matmul_tflops": peak.median},
    )
    memory_row = Row(
        "cuda", f"{what}: peak memory", f"{memory / 1e6:.2f} MB a token", numbers={"bytes_a_token": memory}
    )
    return [shared, memory_row]


def count_tower_flops(encoder: Encoder, sizes: Sequence[tuple[int, ...]]) -> float:
    """Count the useful operations of one forward and backward: matrix products and attention, without padding."""
    shape: Any = encoder.shape
    width, hidden, unit = shape.hidden_size, shape.intermediate_size, shape.spatial_merge_size**2
    tokens = sum(encoder.token_count(size) for size in sizes)
    partitions = encoder.partitions(sizes)
    seen = {name: sum(n * n for n in lengths) for name, lengths in partitions.items()}
    attention = sum(4 * width * seen[encoder.block_partition(index)] for index in range(shape.depth))
    block = 2 * width * (4 * width + 3 * hidden)
    pixels = 3 * shape.temporal_patch_size * shape.patch_size**2
    merger = 2 * (unit * width) * (unit * width + shape.out_hidden_size) / unit
    forward = tokens * (shape.depth * block + merger) + attention
    # A backward pass costs two products for each of the forward pass, except that pixels need no gradient.
    return 3 * forward + 2 * tokens * 2 * pixels * width


def _peak_memory(device: torch.device, dynamic: Any, work: Any) -> int:
    """Return the peak memory in bytes beyond weights and their gradients."""
    dynamic.zero_grad(set_to_none=True)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    weights = sum(p.numel() * p.element_size() for p in dynamic.parameters())
    return int(torch.cuda.max_memory_allocated(device) - before - weights)


def missing_case_rows(device: str) -> list[Row]:
    """Return the rows of a device that is not available."""
    whats = [f"`{name}`, late, T = {INQUIRY_TOKENS}, forward and backward" for name in _AGAINST_PLAIN]
    whats += ["64 regions of mixed size in one call, forward", "attention kernels: one call against buckets"]
    whats += [f"cuDNN attention off, {kernel}, against on" for kernel in ("varlen", "buckets")]
    whats += [f"Qwen2.5-VL-7B's tower, {how}, forward and backward" for how in ("as it is", "MLP padded, compiled")]
    whats += ["Qwen2.5-VL-7B's tower: peak memory per token"]
    whats += ["modulated attention of 33 segments, 16 layers, against a loop over segments"]
    whats += ["1 to 32 groups, forward and backward"]
    return [Row(device, what, NOT_MEASURED) for what in whats]
