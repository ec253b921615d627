"""The chat's benchmark of memory: the KV cache of one chat as it grows, and what many chats leave behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import torch
from _chat_cases import ChatBench
from _chat_models import QUESTION, noise_image
from _measure import Row

from vilavt_toolkit.chat.chat import Chat
from vilavt_toolkit.contracts import Source
from vilavt_toolkit.generation.sampling import Decoding

_STATM = Path("/proc/self/statm")
_SHORT = Decoding(max_new_tokens=4)
_QUESTIONS, _SIDE = 24, 112
_LONG = " ".join([QUESTION] * 25)
_STRAIGHT = 0.95
"""Least R² of memory against tokens: the KV cache grows in steps of a quarter, so the line is not exact."""
_NOISE = 0.01
"""Share of the process's memory below which growth does not count: allocators keep some pages more or less."""


def measure_memory(bench: ChatBench) -> list[Row]:
    """Measure the bytes of a growing chat by its tokens, and the memory after many chats in a row."""
    bench.model.forget_views()
    rows = [_measure_growth(bench)]
    row = _measure_release(bench)
    return rows if row is None else [*rows, row]


def _measure_growth(bench: ChatBench) -> Row:
    """Measure the KV cache of a chat while it grows."""
    size = bench.size
    chat = _make_chat(bench, noise_image((size.side, size.side)))
    tokens, held = [], []
    for number in range(_QUESTIONS):
        chat.ask(f"question {number}: {_LONG}")
        tokens.append(chat.cached_prefix.length)
        held.append(chat.cached_prefix.bytes)
    x, y = np.asarray(tokens, dtype=float), np.asarray(held, dtype=float)
    slope, start = np.polyfit(x, y, 1)
    fit = float(1 - ((y - start - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    return Row(
        bench.device.type,
        f"a chat of {_QUESTIONS} questions, {tokens[0]} to {tokens[-1]} tokens: what it holds",
        f"{slope / 1e3:.2f} kB a token, R² {fit:.4f}",
        target=f"R² at least {_STRAIGHT}",
        met=fit >= _STRAIGHT,
        numbers={"tokens": tokens, "bytes": held, "bytes_a_token": float(slope), "r2": fit},
    )


def _make_chat(bench: ChatBench, source: Source) -> Chat:
    """Make a chat about an image; the untrained model never answers, so the answer is demanded after one turn."""
    chat = Chat(bench.model, [source], _SHORT)
    chat.session.max_turns = 1
    return chat


def _measure_release(bench: ChatBench) -> Row | None:
    """Measure the memory after chats in a row, each with an image of its own; None if it cannot be measured."""
    if _used_memory(bench.device) is None:
        return None
    count = bench.size.row
    warm, marks = max(1, count // 5), []
    for number in range(count):
        bench.model.forget_views()
        _make_chat(bench, noise_image((_SIDE, _SIDE), number)).ask("what is it?")
        if number >= warm - 1 and (number + 1 - warm) % max(1, count // 10) == 0:
            gc.collect()
            marks.append(_used_memory(bench.device) or 0)
    grown, whole = marks[-1] - marks[0], marks[0]
    kind = "allocated on the GPU" if bench.device.type == "cuda" else "resident"
    return Row(
        bench.device.type,
        f"{count:,} chats in a row: memory {kind}, after the first {warm} and at the end",
        f"{whole / 1e6:.1f} MB, then {grown / 1e6:+.1f} MB",
        target="no growth",
        met=grown <= (0 if bench.device.type == "cuda" else _NOISE * whole),
        numbers={"bytes": marks},
    )


def _used_memory(device: torch.device) -> int | None:
    """Return the bytes of tensors on a GPU, or of the process's memory; None if the system does not say."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    if not _STATM.is_file():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def missing_memory_rows(device: str) -> list[Row]:
    """Return the rows of a device that is not available."""
    return [
        Row(device, f"a chat of {_QUESTIONS} questions: what it holds by tokens", target=f"R² at least {_STRAIGHT}"),
        Row(device, "1,000 chats in a row: memory allocated on the GPU", target="no growth"),
    ]
