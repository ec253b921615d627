"""Made-up corpora of a few images, laid out on disk as the published ones are."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from vilavt_components.tasks.temporary_folder import make_temporary_folder

_COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "teal": (0, 128, 128)}
_SHAPES = ("circle", "rectangle", "triangle")


@functools.cache
def tiny_easy_vqa() -> str:
    """Return the folder of a made-up easy-VQA, which is removed when the process ends."""
    return _write_temporary(write_easy_vqa)


@functools.cache
def tiny_nlvr() -> str:
    """Return the folder of a made-up NLVR, which is removed when the process ends."""
    return _write_temporary(write_nlvr)


def _write_temporary(write: Callable[[Path], None]) -> str:
    folder = make_temporary_folder()
    write(folder)
    return str(folder)


def write_easy_vqa(root: Path, images: int = 9) -> None:
    """Write train and test with `images` images each, every colour and shape by turns, and four questions an image."""
    root.mkdir(exist_ok=True)
    (root / "answers.txt").write_text("\n".join([*_COLOURS, *_SHAPES, "yes", "no"]), encoding="utf-8")
    for split, shift in (("train", 0), ("test", 1)):
        (root / split / "images").mkdir(parents=True)
        rows: list[tuple[str, str, int]] = []
        looks = list(itertools.product(_COLOURS, _SHAPES))
        for number in range(images):
            # Shifted for the test split, so that it repeats no image of the training split.
            colour, shape = looks[(number + shift) % len(looks)]
            _draw_shape(colour, shape, shift).save(root / split / "images" / f"{number}.png")
            rows += [(question, answer, number) for question, answer in _image_questions(colour, shape)]
        (root / split / "questions.json").write_text(json.dumps(rows), encoding="utf-8")


def _image_questions(colour: str, shape: str) -> list[tuple[str, str]]:
    other = _SHAPES[(_SHAPES.index(shape) + 1) % len(_SHAPES)]
    return [
        (f"what color is the {shape}?", colour),
        ("what shape is in the image?", shape),
        (f"is there a {other}?", "no"),
        (f"is no {other} present?", "yes"),
    ]


def _draw_shape(colour: str, shape: str, shift: int) -> Image.Image:
    picture = Image.new("RGB", (64, 64), "white")
    drawing, place = ImageDraw.Draw(picture), (8 + shift, 8, 40 + shift, 40)
    if shape == "circle":
        drawing.ellipse(place, fill=_COLOURS[colour])
    elif shape == "rectangle":
        drawing.rectangle(place, fill=_COLOURS[colour])
    else:
        drawing.polygon([(8 + shift, 40), (40 + shift, 40), (24 + shift, 8)], fill=_COLOURS[colour])
    return picture


def write_nlvr(root: Path, sentences: int = 6) -> None:
    """Write train and dev, with four pairs for every sentence, the first two true, and six images for every pair."""
    for split, first in (("train", 0), ("dev", 1000)):
        rows = []
        for group in range(first, first + sentences):
            directory = str(group % 2)
            (root / split / "images" / directory).mkdir(parents=True, exist_ok=True)
            for member in range(4):
                # Files are named as published, since the reader checks every name.
                for permutation in range(6):
                    name = f"{split}-{group}-{member}-{permutation}.png"
                    _draw_boxes(group, member, permutation).save(root / split / "images" / directory / name)
                rows.append(
                    {
                        "sentence": f"there are {group % 7} black items",
                        "label": "true" if member < 2 else "false",
                        "identifier": f"{group}-{member}",
                        "directory": directory,
                    }
                )
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (root / split / f"{split}.json").write_text(lines, encoding="utf-8")


def _draw_boxes(group: int, member: int, permutation: int) -> Image.Image:
    """Draw three boxes, 400 x 100, with a black item each, in one of their six orders."""
    picture = Image.new("RGBA", (400, 100), "grey")
    drawing = ImageDraw.Draw(picture)
    order = list(itertools.permutations(range(3)))[permutation]
    for place, box in enumerate(order):
        left = 150 * place
        drawing.rectangle((left, 0, left + 99, 99), fill="lightgrey")
        side = 10 + 4 * box + member
        drawing.rectangle((left + 10 + group % 50, 10, left + 10 + group % 50 + side, 10 + side), fill="black")
    return picture
