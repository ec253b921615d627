"""Recipes mutated at random, through `vilavt check`: each is right, or is refused in sentences.

python benchmarks/attack/recipes.py                      # 5,000 recipes, about half an hour on one core
python benchmarks/attack/recipes.py --first 17 --count 1 # one case again
"""

from __future__ import annotations

import copy
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from _campaign import Campaign, parse_options, run_quietly

from vilavt_toolkit.cli import app as cli
from vilavt_toolkit.config.recipe import load_recipe, recipe_folder, recipe_names
from vilavt_toolkit.registry import REGISTRIES

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1000, 10**6, 10**9, 10**30, -(10**30), 0.0, -0.5, 1.5, 1e-30, 1e30, 1e308,
    float("inf"), float("nan"), "", " ", "a", "0", "-1", "null", "all", "a\0b", "\x1b[31m", "é", "x" * 5000, "${seed}",
    "${run}", "${model}", "${", "~", "~nobody-at-all", "/", "/dev/zero", "..", "owner/name", "film", "timm", [], {},
    [[]], [0], [-1], [1, 2, 3], ["a"], {"name": "film"}, {"name": None}, {"a": 1}, {"config": {}}, [None], [{}],
]  # fmt: skip
"""Values of every type and size, to be put in place of any other."""

Place = tuple[Any, Any]
"""A mapping or list, and the key or index of a value in it."""


def list_places(node: Any) -> Iterator[Place]:
    """Yield every place of a value in nested data."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from list_places(value)


def mutate_recipe(data: Any, chance: random.Random, donors: list[Any]) -> None:
    """Change one place of a recipe's plain data."""
    places = list(list_places(data))
    # Most places are sections and lists, and most faults come from single values.
    leaves = [(holder, key) for holder, key in places if not isinstance(holder[key], dict | list)]
    numbers = [(holder, key) for holder, key in leaves if type(holder[key]) in (int, float)]
    # A number that becomes another one passes the parser, and is met by what is built from it.
    if numbers and chance.random() < 0.4:
        return scale_value(*chance.choice(numbers), chance)
    places = leaves if leaves and chance.random() < 0.8 else places
    if not places:
        return
    holder, key = chance.choice(places)
    match chance.randrange(8):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(chance.choice(HOSTILE))
        case 3:
            scale_value(holder, key, chance)
        case 4:
            other, taken = chance.choice(list(list_places(chance.choice(donors))))
            holder[key] = copy.deepcopy(other[taken])
        case 5:
            del holder[key]
        case 6 if isinstance(holder, dict):
            known = [name for registry in REGISTRIES.values() for name in registry.names()]
            holder[chance.choice([*known, "name", "config", "path", str(key) + "s", 3, None])] = holder.pop(key)
        case _:
            holder[key] = [copy.deepcopy(holder[key])] * chance.randrange(1, 4)


def scale_value(holder: Any, key: Any, chance: random.Random) -> None:
    """Make a number another one, and a name that of another component."""
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int | float):
        known = [1, 2, 3, 5, 8, 16, 64, 100, 1000, 4096, 10**6, 0, -1]
        holder[key] = chance.choice([-value, value * 2, value + 1, value - 1, value * 1000, value // 3, *known])
    else:
        kinds = [registry for registry in REGISTRIES.values() if value in registry] or list(REGISTRIES.values())
        holder[key] = chance.choice(chance.choice(kinds).names())


def copy_recipes(target: Path) -> Path:
    """Copy the recipes of the package with the files that they name, and return the folder of the copies."""
    folder = recipe_folder()
    assert folder is not None
    shutil.copytree(folder, target / "recipes")
    (target / "tests").symlink_to(Path(__file__).parents[2] / "tests")
    return target / "recipes"


def read_donors(folder: Path) -> list[tuple[Path, Any]]:
    """Return the plain data of the recipes that are right here, each with the folder that it has to lie in.

    Each recipe comes as its file has it, and with every default filled in. Some need data or a network.
    """
    found = []
    for name in recipe_names():
        file = folder / f"{name}.yaml"
        if check_recipe(file) == "right":
            found.append((file.parent, yaml.safe_load(file.read_text(encoding="utf-8"))))
            found.append((file.parent, load_recipe(file).resolved))
    return found


def check_recipe(file: Path) -> str:
    """Check a recipe, and return what came of it."""
    codes: list[int] = []
    shown = run_quietly(lambda: codes.append(cli.run(["check", str(file)])))
    if "Traceback" in shown:
        raise RuntimeError(shown)
    return "right" if codes == [0] else "refused"


def write_mutant(donors: list[tuple[Path, Any]], chance: random.Random) -> Path:
    """Write a recipe of one to three mutations beside the one that it was made of."""
    folder, data = copy.deepcopy(chance.choice(donors))
    for _ in range(chance.choice([1, 1, 2, 3])):
        mutate_recipe(data, chance, [donor for _, donor in donors])
    file = folder / "mutated.yaml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return file


def main() -> int:
    """Run the campaign and return its exit code."""
    options = parse_options("Mutate recipes and check them.", 5_000)
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    campaign = Campaign("mutated recipes")
    with tempfile.TemporaryDirectory() as folder:
        # Some recipes name files relative to the current folder.
        os.chdir(folder)
        donors = read_donors(copy_recipes(Path(folder)))
        print(f"{len(donors)} recipes to mutate", flush=True)
        for number in range(options.first, options.first + options.count):
            file = write_mutant(donors, random.Random(f"{options.seed} {number}"))
            campaign.run_case(f"seed {options.seed}, case {number}", lambda file=file: check_recipe(file))
            if number % 250 == 249:
                print(f"{number + 1 - options.first} cases: {dict(campaign.outcomes)}", flush=True)
        os.chdir("/")
    return campaign.report(options.json)


if __name__ == "__main__":
    sys.exit(main())
