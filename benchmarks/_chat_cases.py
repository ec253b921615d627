"""The chat's benchmark of turns and batches: the loop with a KV cache beside the plain one, which reads all again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from _chat_counts import count_operations
from _chat_loops import RereadingLoop, ScriptedLoop, count_differences, free_memory, largest_difference
from _chat_models import (
    TOKENS,
    CachedViewsModel,
    Script,
    Size,
    corner_zooms,
    frame_zooms,
    image_zooms,
    noise_image,
    noise_video,
    write_script,
)
from _measure import Row, Spread, compare_sides, time_interleaved

TOLERANCE = 1e-4


@dataclass(frozen=True)
class ChatBench:
    """A model, its load, and the device that is measured."""

    model: CachedViewsModel
    """float32 for the checks of logits and batches, then of the type that is measured."""
    size: Size
    device: torch.device


def image_script(bench: ChatBench) -> Script:
    """Write a dialogue that zooms into one image with two crops at a time."""
    size = bench.size
    return write_script(bench.model, noise_image(size.image), image_zooms(size.image, size.zooms[0]), TOKENS)


def video_script(bench: ChatBench) -> Script:
    """Write a dialogue that zooms into a video frame by frame."""
    size = bench.size
    zooms = frame_zooms(size.frames, size.side, size.zooms[1])
    return write_script(bench.model, noise_video(size.frames, size.side), zooms, TOKENS)


def chat_scripts(bench: ChatBench) -> list[Script]:
    """Write many chats of three turns, each about an image of its own."""
    size = bench.size
    zooms = corner_zooms(size.side, 2)
    return [
        write_script(bench.model, noise_image((size.side, size.side), seed), zooms, TOKENS)
        for seed in range(size.chats)
    ]


def describe_image_load(size: Size) -> str:
    """Describe the dialogue about the image."""
    return f"{size.image[0]} x {size.image[1]} image, {size.zooms[0]} zooms of two crops"


def describe_video_load(size: Size) -> str:
    """Describe the dialogue about the video."""
    return f"{size.frames}-frame {size.side} x {size.side} video, {size.zooms[1]} zooms"


def describe_chats_load(size: Size) -> str:
    """Describe the many chats."""
    return f"{size.chats} chats ({size.side} x {size.side}, 3 turns, {TOKENS} tokens a turn)"


def check_logits(bench: ChatBench) -> list[Row]:
    """Check that logits and tokens are those of the plain loop, in float32."""
    dialogue = image_script(bench)
    ours, theirs = ScriptedLoop(bench.model, [dialogue]), RereadingLoop(bench.model, [dialogue])
    for loop in (ours, theirs):
        loop.records_choices = loop.records_logits = True
        loop.run_one_by_one()
    found = largest_difference(ours.choices[0], theirs.choices[0])
    count, gap = count_differences(ours.choices[0], theirs.choices[0])
    places = len(ours.choices[0])
    return [
        Row(
            bench.device.type,
            f"logits of {places} tokens of {len(dialogue.replies)} turns, {describe_image_load(bench.size)}, float32",
            f"{found:.1e} apart at most; {places - count} of {places} likeliest tokens the same",
            target=f"at most {TOLERANCE:g}",
            met=max(found, gap) <= TOLERANCE,
            numbers={"difference": found, "tokens": places, "differing": count, "gap": gap},
        )
    ]


def measure_turns(bench: ChatBench) -> list[Row]:
    """Measure encoding and prefill with replies given, then all with decoding, for an image and for a video."""
    image_rows = _measure_dialogue(bench, describe_image_load(bench.size), image_script, 0.9, bench.size.repeats)
    return image_rows + _measure_dialogue(
        bench, describe_video_load(bench.size), video_script, 0.8, bench.size.long_repeats
    )


def _measure_dialogue(
    bench: ChatBench, words: str, make: Callable[[ChatBench], Script], share: float, repeats: int
) -> list[Row]:
    bench.model.forget_views()
    dialogue = make(bench)
    (session,) = ScriptedLoop(bench.model, [dialogue], at_once=True).run_one_by_one()
    ours, theirs = count_operations(bench.model, session)
    counted = theirs / ours
    rows = []
    for at_once, times in ((True, repeats), (False, bench.size.long_repeats)):
        sides = {
            "what is new": ScriptedLoop(bench.model, [dialogue], at_once).run_one_by_one,
            "everything again": RereadingLoop(bench.model, [dialogue], at_once).run_one_by_one,
        }
        what = "encoding and prefill, replies given" if at_once else f"with decoding, {TOKENS} tokens a turn"
        least = share * counted if at_once else 1.0
        row = compare_sides(bench.device, f"{words}: {what}", sides, times, at_least=least, warm=1)
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


def check_batches(bench: ChatBench) -> list[Row]:
    """Check that a batch gives the same tokens as chats one by one, in float32."""
    bench.model.forget_views()
    scripts = chat_scripts(bench)
    together, alone = ScriptedLoop(bench.model, scripts), ScriptedLoop(bench.model, scripts)
    together.records_choices = alone.records_choices = True
    together.run_together()
    alone.run_one_by_one(bench.size.alone)
    pairs = [count_differences(together.choices[number], said) for number, said in alone.choices.items()]
    count, gap = sum(number for number, _ in pairs), max(gap for _, gap in pairs)
    places = sum(len(said) for said in alone.choices.values())
    found = f"{places - count} of {places} likeliest tokens the same"
    if count:
        found += f"; where they differ, the two best logits are {gap:.1e} apart at most"
    return [
        Row(
            bench.device.type,
            f"{describe_chats_load(bench.size)} in a batch, {bench.size.alone} of them one by one, float32",
            found,
            target=f"the same, but where the two best logits are closer than {TOLERANCE:g}",
            met=gap <= TOLERANCE,
            numbers={"tokens": places, "differing": count, "gap": gap},
        )
    ]


def measure_batches(bench: ChatBench) -> list[Row]:
    """Measure the throughput of many chats in a batch, beside one by one."""
    bench.model.forget_views()
    size, scripts = bench.size, chat_scripts(bench)
    together, alone = ScriptedLoop(bench.model, scripts), ScriptedLoop(bench.model, scripts)
    sides = {"batch": together.run_together, "one by one": lambda: alone.run_one_by_one(size.alone)}
    seconds = time_interleaved(sides, bench.device, size.long_repeats, warm=1)
    times = size.chats / size.alone
    pairs = zip(seconds["batch"], seconds["one by one"], strict=True)
    ratio = Spread.from_values([times * theirs / ours for ours, theirs in pairs])
    target = 8.0 if bench.device.type == "cuda" else 2.0
    rates = {
        "batch": Spread.from_values([size.chats / s for s in seconds["batch"]]),
        "one by one": Spread.from_values([size.alone / s for s in seconds["one by one"]]),
    }
    ours, theirs = (f"{name}: {rate.to_text()} chats a second" for name, rate in rates.items())
    some = "" if size.alone == size.chats else f", {size.alone} of them one by one"
    return [
        Row(
            bench.device.type,
            f"{describe_chats_load(size)} in a batch{some}",
            f"{ratio.to_text()} x",
            ours,
            theirs,
            f"at least {target:g} x",
            ratio.median >= target,
            {"ratio": asdict(ratio), "chats_a_second": {name: asdict(rate) for name, rate in rates.items()}},
        )
    ]


def missing_turn_rows(device: str, size: Size) -> list[Row]:
    """Return the rows of a device that is not available."""
    what = "encoding and prefill, replies given"
    targets: Sequence[tuple[str, str]] = (
        (f"logits beside the plain loop's, {describe_image_load(size)}, float32", f"at most {TOLERANCE:g}"),
        (
            f"{describe_chats_load(size)} in a batch: tokens as one by one, float32",
            f"the same, but for gaps below {TOLERANCE:g}",
        ),
        (f"{describe_image_load(size)}: {what}", "at least 0.9 of the ratio of operations"),
        (f"{describe_image_load(size)}: with decoding, {TOKENS} tokens a turn", ""),
        (f"{describe_video_load(size)}: {what}", "at least 0.8 of the ratio of operations"),
        (f"{describe_video_load(size)}: with decoding, {TOKENS} tokens a turn", ""),
        (f"{describe_chats_load(size)} in a batch, beside one by one", "at least 8 x"),
    )
    return [Row(device, words, target=target) for words, target in targets]
