"""Made-up data files with their images, in a temporary folder that goes when the process ends."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from vilavt_components.tasks.temporary_folder import make_temporary_folder

_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


@functools.cache
def tiny_conversations() -> str:
    """Write train.jsonl and test.json into a folder: zooms with inquiries, plain questions, and text alone."""
    folder = make_temporary_folder()
    _write_images(folder, 12)
    write_lines(folder / "train.jsonl", (conversation_row(number) for number in range(10)))
    rows = [conversation_row(number) for number in range(10, 14)]
    (folder / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder)


@functools.cache
def tiny_questions() -> str:
    """Write rl.jsonl, rl_test.jsonl, benchmark.json and benchmark_train.json into a folder."""
    folder = make_temporary_folder()
    _write_images(folder, 12)
    write_lines(folder / "rl.jsonl", (rl_row(number) for number in range(10)))
    write_lines(folder / "rl_test.jsonl", (rl_row(number) for number in range(10, 15)))
    for name, numbers in (("benchmark", range(6)), ("benchmark_train", range(6, 12))):
        rows = [benchmark_row(number) for number in numbers]
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder)


@functools.cache
def tiny_plain_rows() -> str:
    """Write traces.jsonl, questions.jsonl and questions.csv into a folder."""
    folder = make_temporary_folder()
    _write_images(folder, 12)
    write_lines(folder / "traces.jsonl", (trace_row(number) for number in range(10)))
    write_lines(folder / "questions.jsonl", (question_row(number) for number in range(10, 14)))
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=("id", "question", "image", "answer", "options"))
        writer.writeheader()
        for number in range(10):
            row = question_row(number)
            options = {"options": json.dumps(row["options"])} if "options" in row else {}
            writer.writerow({name: row.get(name) for name in writer.fieldnames} | options)
    return str(folder)


def trace_row(number: int) -> dict[str, Any]:
    """Make a row of task `traces`: by turns with a zoom, with a zoom into it, with an answer alone; some ask again."""
    colour = _COLOURS[number % len(_COLOURS)]
    zooms: list[dict[str, Any]] = [
        {"thought": "too small", "inquiry": "the colour", "boxes": [[0, 0, 8, 8]]},
        {"thought": "still small", "inquiry": "the middle", "boxes": {"index": 1, "box": [2, 2, 6.5, 6]}},
    ]
    turns = [*zooms[: number % 3], {"thought": "it is plain", "answer": colour}]
    if number % 5 == 4:
        more = {"question": "and in the corner?", "inquiry": "the corner", "boxes": [[0, 0, 4, 4]]}
        turns += [more, {"answer": "the same"}]
    return {
        "id": number,
        "image": f"images/{number % 12}.png",
        "question": f"which colour is {number}?",
        "turns": turns,
    }


def question_row(number: int) -> dict[str, Any]:
    """Make a row of task `questions`: by turns with free text and with options."""
    colour = _COLOURS[number % len(_COLOURS)]
    row = {"id": number, "image": f"images/{number % 12}.png", "question": f"which colour is {number}?"}
    # The answer may be an option's letter or its text.
    return {**row, "answer": colour} | ({"options": list(_COLOURS[:4]), "answer": "A"} if number % 2 else {})


def conversation_row(number: int) -> dict[str, Any]:
    """Make a row of the conversation format: by turns with a zoom, with one image, and text alone."""
    colour, picture = _COLOURS[number % len(_COLOURS)], f"images/{number % 12}.png"
    if number % 3 == 2:
        texts = [("human", f"which colour is number {number}?"), ("gpt", f"{colour}, as number {number} is.")]
        return {"id": number, "conversations": [{"from": role, "value": text} for role, text in texts]}
    question = {"from": "human", "value": f"<image>\nwhich colour is this, number {number}?"}
    if number % 3 == 1:
        reply = {"from": "gpt", "value": f"<think>it is plain</think>\n<answer>{colour}</answer>"}
        return {"id": number, "images": [picture], "conversations": [question, reply]}
    # The crop is given as a second image, as in the paper's data: what the call names is not cut out again.
    call = '{"region": [{"index": 0, "bbox_2d": [0, 0, 8, 8]}], "query": "the colour"}'
    return {
        "id": number,
        "images": [picture, picture],
        "queries": ["", "the colour"],
        "image_to_query_mapping": [0, 1],
        "max_pixels": 200704,
        "conversations": [
            {"from": "system", "value": "You may zoom."},
            question,
            {"from": "gpt", "value": f"<think>too small</think>\n<tool> {call} </tool>"},
            {"from": "human", "value": "<tool_response><image></tool_response>"},
            {"from": "gpt", "value": f"<think>now it is plain</think>\n<answer>{colour}</answer>"},
        ],
    }


def rl_row(number: int) -> dict[str, Any]:
    """Make a row of the format for reinforcement learning, of each question type by turns."""
    kinds = [
        ("multiple choice", "Which colour?\nA. red\nB. blue", "B"),
        ("math", "What is a half of one?", "\\frac{1}{2}"),
        ("numerical", "How many?", "3"),
        ("regression", "How far in metres?", "2.5"),
        ("judgment", "Is it red?", "No"),
    ]
    # Five rows in a row have all question types, so a tiny file tests each.
    kind, question, answer = kinds[number % len(kinds)]
    return {
        "question": f"{question} (number {number})",
        "answer": answer,
        "image_path": [f"images/{number % 12}.png"],
        "question_type": kind,
        "data_type": "image",
        "max_pixels": 200704,
        "max_num_steps": 3,
    }


def benchmark_row(number: int) -> dict[str, Any]:
    """Make a row of the benchmark format: by turns with options, with a tag and options inside, and with a number."""
    row: dict[str, Any] = {"question_id": str(number), "images": [f"images/{number % 12}.png"]}
    if number % 3 == 0:
        options = ["A. red", "B. blue", "C. green"]
        return {**row, "question": f"Which colour, {number}?", "options": options, "answer": "A. red",
                "problem_type": "multiple choice", "category": "colour"}  # fmt: skip
    if number % 3 == 1:
        return {**row, "question": f"<image>Which one is {number}? Choices: A. this. B. that.", "options": None,
                "answer": "B", "problem_type": "multiple choice", "category": "place"}  # fmt: skip
    return {**row, "question": f"How large is {number}?", "answer": "2.5", "problem_type": "regression",
            "category": "size"}  # fmt: skip


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _write_images(folder: Path, count: int) -> None:
    (folder / "images").mkdir()
    for number in range(count):
        size = (16 + 4 * (number % 3), 16)
        Image.new("RGB", size, _COLOURS[number % len(_COLOURS)]).save(folder / "images" / f"{number}.png")
