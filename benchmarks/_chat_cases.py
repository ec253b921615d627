"""Turns, batches: the loop that keeps what it has read beside the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from _chat_counts import operations
from _chat_loops import Again, Given, differing, free_memory, largest_difference
from _chat_models import (
    TOKENS,
    ReadyModel,
    Script,
    Size,
    corner_zooms,
    frame_zooms,
    image,
    image_zooms,
    script,
    video,
)
from _measure import Row, Spread, compared, interleaved

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Bench:
    """What is measured, where."""

    model: ReadyModel
    """float32 while `equal` and the check of `batches` run, then of the type that is measured."""
    size: Size
    device: torch.device


def image_script(bench: Bench) -> Script:
    """One image, zoomed into with two crops at a time."""
    size = bench.size
    return script(bench.model, image(size.image), image_zooms(size.image, size.zooms[0]), TOKENS)


def video_script(bench: Bench) -> Script:
    """A video, zoomed into frame by frame."""
    size = bench.size
    zooms = frame_zooms(size.frames, size.side, size.zooms[1])
    return script(bench.model, video(size.frames, size.side), zooms, TOKENS)


def chat_scripts(bench: Bench) -> list[Script]:
    """Many chats of three turns, each about its own image."""
    size = bench.size
    zooms = corner_zooms(size.side, 2)
    return [script(bench.model, image((size.side, size.side), seed), zooms, TOKENS) for seed in range(size.chats)]


def image_words(size: Size) -> str:
    """What is done with the image."""
    return f"{size.image[0]} x {size.image[1]} image, {size.zooms[0]} zooms of two crops"


def video_words(size: Size) -> str:
    """What is done with the video."""
    return f"{size.frames}-frame {size.side} x {size.side} video, {size.zooms[1]} zooms"


def chats_words(size: Size) -> str:
    """What the many chats are."""
    return f"{size.chats} chats ({size.side} x {size.side}, 3 turns, {TOKENS} tokens a turn)"


def equal(bench: Bench) -> list[Row]:
    """The same logits and tokens as the plain loop, float32."""
    dialogue = image_script(bench)
    ours, theirs = Given(bench.model, [dialogue]), Again(bench.model, [dialogue])
    for loop in (ours, theirs):
        loop.listens = loop.keeps_logits = True
        loop.alone_each()
    found = largest_difference(ours.said[0], theirs.said[0])
    count, gap = differing(ours.said[0], theirs.said[0])
    places = len(ours.said[0])
    return [
        Row(
            bench.device.type,
            f"logits of {places} tokens of {len(dialogue.replies)} turns, {image_words(bench.size)}, float32",
            f"{found:.1e} apart at most; {places - count} of {places} likeliest tokens the same",
            target=f"at most {TOLERANCE:g}",
            met=max(found, gap) <= TOLERANCE,
            numbers={"difference": found, "tokens": places, "differing": count, "gap": gap},
        )
    ]


def turns(bench: Bench) -> list[Row]:
    """Encoding and prefill with replies given, and the whole with decoding, of an image and of a video."""
    image_rows = _turns(bench, image_words(bench.size), image_script, 0.9, bench.size.repeats)
    return image_rows + _turns(bench, video_words(bench.size), video_script, 0.8, bench.size.long_repeats)


def _turns(bench: Bench, words: str, make: Callable[[Bench], Script], share: float, repeats: int) -> list[Row]:
    bench.model.forget()
    dialogue = make(bench)
    (session,) = Given(bench.model, [dialogue], at_once=True).alone_each()
    ours, theirs = operations(bench.model, session)
    counted = theirs / ours
    rows = []
    for at_once, times in ((True, repeats), (False, bench.size.long_repeats)):
        sides = {
            "what is new": Given(bench.model, [dialogue], at_once).alone_each,
            "everything again": Again(bench.model, [dialogue], at_once).alone_each,
        }
        what = "encoding and prefill, replies given" if at_once else f"with decoding, {TOKENS} tokens a turn"
        least = share * counted if at_once else 1.0
        row = compared(bench.device, f"{words}: {what}", sides, times, at_least=least, warm=1)
        if at_once:
            found = f"{row.found}; of operations {counted:.2f} x"
            target = f"at least {share:g} of that of operations, {least:.2f} x"
            tokens = len(session.trajectory.ids)
            more = {"operations": [ours, theirs], "counted": counted, "tokens": tokens}
            row = replace(row, found=found, target=target, numbers={**row.numbers, **more})
        else:
            row = replace(row, target="", met=None)
        rows.append(row)
    free_memory(bench.device)
    return rows


def batches_agree(bench: Bench) -> list[Row]:
    """In a batch the same tokens as one by one, float32."""
    bench.model.forget()
    scripts = chat_scripts(bench)
    together, alone = Given(bench.model, scripts), Given(bench.model, scripts)
    together.listens = alone.listens = True
    together.together()
    alone.alone_each(bench.size.alone)
    pairs = [differing(together.said[number], said) for number, said in alone.said.items()]
    count, gap = sum(number for number, _ in pairs), max(gap for _, gap in pairs)
    places = sum(len(said) for said in alone.said.values())
    found = f"{places - count} of {places} likeliest tokens the same"
    if count:
        found += f"; where they differ, the two best logits are {gap:.1e} apart at most"
    return [
        Row(
            bench.device.type,
            f"{chats_words(bench.size)} in a batch, {bench.size.alone} of them one by one, float32",
            found,
            target=f"the same, but where the two best logits are closer than {TOLERANCE:g}",
            met=gap <= TOLERANCE,
            numbers={"tokens": places, "differing": count, "gap": gap},
        )
    ]


def batches(bench: Bench) -> list[Row]:
    """Throughput of many chats in a batch, beside one by one."""
    bench.model.forget()
    size, scripts = bench.size, chat_scripts(bench)
    together, alone = Given(bench.model, scripts), Given(bench.model, scripts)
    sides = {"batch": together.together, "one by one": lambda: alone.alone_each(size.alone)}
    seconds = interleaved(sides, bench.device, size.long_repeats, warm=1)
    times = size.chats / size.alone
    pairs = zip(seconds["batch"], seconds["one by one"], strict=True)
    ratio = Spread.of([times * theirs / ours for ours, theirs in pairs])
    target = 8.0 if bench.device.type == "cuda" else 2.0
    rates = {
        "batch": Spread.of([size.chats / s for s in seconds["batch"]]),
        "one by one": Spread.of([size.alone / s for s in seconds["one by one"]]),
    }
    ours, theirs = (f"{name}: {rate.text()} chats a second" for name, rate in rates.items())
    some = "" if size.alone == size.chats else f", {size.alone} of them one by one"
    return [
        Row(
            bench.device.type,
            f"{chats_words(size)} in a batch{some}",
            f"{ratio.text()} x",
            ours,
            theirs,
            f"at least {target:g} x",
            ratio.median >= target,
            {"ratio": asdict(ratio), "chats_a_second": {name: asdict(rate) for name, rate in rates.items()}},
        )
    ]


def missing(device: str, size: Size) -> list[Row]:
    """What would be measured on a device that is not here."""
    what = "encoding and prefill, replies given"
    targets: Sequence[tuple[str, str]] = (
        (f"logits beside the plain loop's, {image_words(size)}, float32", f"at most {TOLERANCE:g}"),
        (
            f"{chats_words(size)} in a batch: tokens as one by one, float32",
            f"the same, but for gaps below {TOLERANCE:g}",
        ),
        (f"{image_words(size)}: {what}", "at least 0.9 of the ratio of operations"),
        (f"{image_words(size)}: with decoding, {TOKENS} tokens a turn", ""),
        (f"{video_words(size)}: {what}", "at least 0.8 of the ratio of operations"),
        (f"{video_words(size)}: with decoding, {TOKENS} tokens a turn", ""),
        (f"{chats_words(size)} in a batch, beside one by one", "at least 8 x"),
    )
    return [Row(device, words, target=target) for words, target in targets]
