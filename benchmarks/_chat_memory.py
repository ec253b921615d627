"""What a chat holds, and whether it is given back."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import torch
from _chat_cases import Bench
from _chat_models import QUESTION, image
from _measure import Row

from vilavt_toolkit.chat.chat import Chat
from vilavt_toolkit.contracts import Source
from vilavt_toolkit.generation.sampling import Decoding

_STATM = Path("/proc/self/statm")
_SHORT = Decoding(max_new_tokens=4)
_QUESTIONS, _SIDE = 24, 112
_LONG = " ".join([QUESTION] * 25)
_STRAIGHT = 0.95
"""Of the line through what is held: room is made by a quarter at a time, so that it is one of steps."""
_NOISE = 0.01
"""Of the memory that the process has, growth that is none: allocators keep some pages more or less."""


def memory(bench: Bench) -> list[Row]:
    """Bytes by tokens in a chat that goes on, and memory after many chats in a row."""
    bench.model.forget()
    rows = [_held(bench)]
    row = _given_back(bench)
    return rows if row is None else [*rows, row]


def _held(bench: Bench) -> Row:
    """What a chat's keys and values take while it goes on."""
    size = bench.size
    chat = _chat(bench, image((size.side, size.side)))
    tokens, held = [], []
    for number in range(_QUESTIONS):
        chat.ask(f"question {number}: {_LONG}")
        tokens.append(chat.kept.length)
        held.append(chat.kept.bytes)
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


def _chat(bench: Bench, source: Source) -> Chat:
    """A chat about an image; the model, which knows no answer, is asked for one after its first turn."""
    chat = Chat(bench.model, [source], _SHORT)
    chat.session.max_turns = 1
    return chat


def _given_back(bench: Bench) -> Row | None:
    """Memory after chats in a row, each with an image of its own; None where it cannot be read."""
    if _used(bench.device) is None:
        return None
    count = bench.size.row
    warm, marks = max(1, count // 5), []
    for number in range(count):
        bench.model.forget()
        _chat(bench, image((_SIDE, _SIDE), number)).ask("what is it?")
        if number >= warm - 1 and (number + 1 - warm) % max(1, count // 10) == 0:
            gc.collect()
            marks.append(_used(bench.device) or 0)
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


def _used(device: torch.device) -> int | None:
    """Bytes that tensors take on a GPU, or that the process has in memory."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    if not _STATM.is_file():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def missing(device: str) -> list[Row]:
    """What would be measured on a device that is not here."""
    return [
        Row(device, f"a chat of {_QUESTIONS} questions: what it holds by tokens", target=f"R² at least {_STRAIGHT}"),
        Row(device, "1,000 chats in a row: memory allocated on the GPU", target="no growth"),
    ]
