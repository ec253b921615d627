"""Damages of a checkpoint's folder: bytes, JSON and YAML values, tensors, whole files."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, 10**30, -(10**30), 0.0, -0.5, 1e308, float("inf"),
    float("nan"), "", "a", "0", "a\0b", "é" * 300, "../../etc/passwd", "/dev/zero", [], {}, [[]], [-1], ["a"], [None],
    {"a": 1}, {"name": "film"}, {"": {}},
]  # fmt: skip
"""Values of every type and size, to be put in place of any other."""
DTYPES = [
    torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64,
    torch.float8_e4m3fn, torch.complex64,
]  # fmt: skip
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345678\n"
)
PAGE = "<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"

Damage = Callable[[Path, random.Random], None]
"""Damages one file in place."""


# --- Bytes and files --------------------------------------------------------------------------------------------------


def truncate(file: Path, chance: random.Random) -> None:
    """Cut a file off, as a copy does that broke off."""
    os.truncate(file, chance.choice([0, 1, 7, 8, 9, chance.randrange(file.stat().st_size + 1)]))


def flip_bits(file: Path, chance: random.Random) -> None:
    """Flip a few bits near the beginning of a file or anywhere."""
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 3, 20])):
        if data:
            data[chance.randrange(chance.choice([min(64, len(data)), len(data)]))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def replace_file(file: Path, chance: random.Random) -> None:
    """Put something else in place of a file: nothing, a folder, a pipe, a link, a pointer of git-lfs, a web page."""
    file.unlink()
    match chance.randrange(7):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to(file)
        case 3 | 4:
            file.write_text(LFS_POINTER, encoding="ascii")
        case 5:
            file.write_text(PAGE, encoding="ascii")
        case _:
            file.write_bytes(chance.randbytes(chance.choice([3, 1000, 100_000])))


def remove_file(file: Path, chance: random.Random) -> None:
    """Remove a file."""
    file.unlink()


def swap_files(file: Path, chance: random.Random) -> None:
    """Put another file of the checkpoint in its place."""
    others = [path for path in sorted(file.parents[1].rglob("*")) if path.is_file() and path != file]
    shutil.copyfile(chance.choice(others), file)


# --- Values -----------------------------------------------------------------------------------------------------------


def list_places(node: Any) -> list[tuple[Any, Any]]:
    """Return every place of a value in nested data: the mapping or list, and the key or index."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    found = [(node, key) for key, _ in items]
    return found + [place for _, value in items for place in list_places(value)]


def damage_values(data: Any, chance: random.Random) -> Any:
    """Change one to three values of nested data, and return it."""
    for _ in range(chance.choice([1, 1, 3])):
        places = list_places(data)
        if not places:
            return chance.choice(HOSTILE)
        # Top values first: below them are thousands of tokens and merges.
        holder, key = chance.choice(places[:60] if chance.random() < 0.7 else places)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"{key}s"] = holder.pop(key)
            case 2 if isinstance(holder[key], int | float):
                holder[key] = chance.choice([-holder[key] - 1, holder[key] * 1000, holder[key] + 0.5, str(holder[key])])
            case 3:
                holder[key] = [holder[key]] * 3
            case _:
                holder[key] = chance.choice(HOSTILE)
    return data


def damage_json(file: Path, chance: random.Random) -> None:
    """Change values of a JSON file, nest it deep, or write numbers that JSON allows and Python cannot hold."""
    text = file.read_text(encoding="utf-8")
    match chance.randrange(8):
        case 0:
            depth = chance.choice([2_000, 100_000])
            text = '{"a": ' * depth + text + "}" * depth
        case 1:
            text = text.replace(": 2,", ": 1e999,").replace(": 4,", f": {'9' * 5000},")
        case 2:
            text = chance.choice(["null", "[]", "3", '"text"', "{}", "", "\ufeff" + text])
        case _:
            text = json.dumps(damage_values(json.loads(text), chance))
    file.write_text(text, encoding="utf-8")


def damage_yaml(file: Path, chance: random.Random) -> None:
    """Change values of the recipe, or nest it deep."""
    if chance.random() < 0.1:
        file.write_text("a: " + "{a: " * 20_000 + "1" + "}" * 20_000, encoding="utf-8")
        return
    data = damage_values(yaml.safe_load(file.read_text(encoding="utf-8")), chance)
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")


# --- Tensors ----------------------------------------------------------------------------------------------------------


def damage_tensors(file: Path, chance: random.Random) -> None:
    """Rename, reshape, retype, drop or add tensors."""
    tensors = {name: value.clone() for name, value in load_file(str(file)).items()}
    names = list(tensors)
    chosen = names if chance.random() < 0.3 else chance.sample(names, chance.choice([1, 1, min(4, len(names))]))
    dtype, action = chance.choice(DTYPES), chance.randrange(7)
    for name in chosen:
        value = tensors.pop(name)
        match action:
            case 0 | 1 | 2:
                tensors[name] = value.to(dtype)
            case 3:
                tensors[f"{name}.x" if chance.random() < 0.5 else name.partition(".")[2] or "x"] = value
            case 4:
                shapes = [value.reshape(-1), value[None], value[..., :1] if value.dim() else value, value.new_zeros(0)]
                tensors[name] = chance.choice(shapes).contiguous()
            case 5:
                tensors[name], tensors["alien"] = value, torch.zeros(3)
            case _:
                pass
    save_file(tensors, str(file))


def damage_header(file: Path, chance: random.Random) -> None:
    """Change the JSON header of a safetensors file: types, shapes and places that do not fit its bytes."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(damage_values(json.loads(data[8 : 8 + size]), chance)).encode()
    length = chance.choice([len(header)] * 4 + [0, 2**40, 2**63, len(data) * 2])
    file.write_bytes(struct.pack("<Q", length) + header + data[8 + size :])


def list_damages(file: Path) -> list[Damage]:
    """Return the damages that a file can take."""
    found: list[Damage] = [truncate, flip_bits, replace_file, remove_file, swap_files]
    if file.suffix == ".json":
        found += [damage_json] * 6
    if file.suffix == ".yaml":
        found += [damage_yaml] * 4
    if file.suffix == ".safetensors":
        found += [damage_tensors] * 6 + [damage_header] * 3
    return found
