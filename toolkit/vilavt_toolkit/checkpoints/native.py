"""Checkpoints: one self-contained folder each, written whole or not at all; nothing in them is pickled.

RUN/checkpoints/step-00000700/
    checkpoint.json        format, step, versions
    recipe.yaml            resolved; plugins/ holds the files it names
    model.safetensors      tied tensors once
    language_model/        architecture and tokenizer
    inquiry_encoder/       what it saves: its own tokenizer, where it has one
    resume.safetensors     optimizer and random state, with resume.json; only where training can go on
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model

from vilavt_toolkit.checkpoints.run_folder import run_folder
from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.parsing import to_plain
from vilavt_toolkit.config.recipe import CheckedRecipe, dump, load_recipe
from vilavt_toolkit.errors import InputError, RunError, VilavtError
from vilavt_toolkit.models.assemble import INQUIRY_ENCODER, LANGUAGE_MODEL, PARTS, STOPPING, assemble
from vilavt_toolkit.models.meta import assign, converted, differs, listed_in_short, without_weights
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.utils.files import write_json, write_text
from vilavt_toolkit.utils.versions import versions

log = logging.getLogger(__name__)


FORMAT = 1
"""Rises when an older toolkit could not read a checkpoint rightly."""


KEPT = 2
"""Newest checkpoints that stay in a run."""


_FOLDER = re.compile(r"step-(\d{8})")


def save(
    run: Path, model: VisualChatModel, recipe: CheckedRecipe, step: int, state: TrainingState | None = None
) -> Path:
    """Write the checkpoint of `step`, then drop all but the newest; raises InputError where the disk refuses."""
    parent = run / "checkpoints"
    final = parent / f"step-{step:08d}"
    temporary = parent / f".{final.name}.{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        _write(temporary, model, recipe, step, state)
        if final.exists():  # out of the way whole, so that no half of it is ever seen
            os.replace(final, temporary.with_name(f"{temporary.name}.old"))
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{final} cannot be written ({error}); make room, then resume.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # Hidden ones were replaced, or left by a process that was killed while it wrote.
    for old in [*_checkpoints(run)[:-KEPT], *parent.glob(".step-*")]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(folder: Path, model: VisualChatModel, recipe: CheckedRecipe, step: int, state: TrainingState | None) -> None:
    write_model(folder, model, recipe)
    if state is not None:
        save_file(state.tensors, str(folder / "resume.safetensors"))
        write_json(folder / "resume.json", state.data)
    write_json(folder / "checkpoint.json", {"format": FORMAT, "step": step, "versions": versions()})


def write_model(folder: Path, model: VisualChatModel, recipe: CheckedRecipe) -> None:
    """Write all that loading a model needs, which names nothing outside the folder any more."""
    (folder / LANGUAGE_MODEL).mkdir()
    model.language_model.save_assets(folder / LANGUAGE_MODEL)
    if model.encoder.inquiry_encoder is not None:
        (folder / INQUIRY_ENCODER).mkdir()
        model.encoder.inquiry_encoder.save_assets(folder / INQUIRY_ENCODER)
    save_model(model, str(folder / "model.safetensors"))
    write_text(folder / "recipe.yaml", dump(_with_plugins(_alone(_with_texts(recipe, model)), folder)))


def _alone(recipe: CheckedRecipe) -> CheckedRecipe:
    """Take out of the recipe which checkpoint its model was laid over: its shapes are spelled out."""
    section = {**recipe.resolved["model"], "checkpoint": ""}
    return replace(recipe, resolved={**recipe.resolved, "model": section})


def _with_texts(recipe: CheckedRecipe, model: VisualChatModel) -> CheckedRecipe:
    """Write the dialogue's texts into the recipe, where its settings name a file of them."""
    settings = model.dialogue.contained()
    if settings is None:
        return recipe
    section = recipe.resolved["model"]
    dialogue = {"name": section["dialogue"]["name"], **to_plain(settings)}
    return replace(recipe, resolved={**recipe.resolved, "model": {**section, "dialogue": dialogue}})


def _with_plugins(recipe: CheckedRecipe, folder: Path) -> CheckedRecipe:
    """Copy the plugin files of a recipe into the checkpoint, and name the copies."""
    names: list[str] = []
    for number, plugin in enumerate(recipe.recipe.plugins):
        if plugin.endswith(".py"):
            name = f"plugins/{Path(plugin).name}"
            if name in names:  # two of one name, from two folders
                name = f"plugins/{number}/{Path(plugin).name}"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plugin, folder / name)
            plugin = name
        names.append(plugin)
    return replace(recipe, resolved={**recipe.resolved, "plugins": names})


def _checkpoints(run: Path) -> list[Path]:
    folder = run / "checkpoints"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if _FOLDER.fullmatch(path.name)]


def find(path: str | os.PathLike[str]) -> Path:
    """The newest checkpoint of a run folder, or the checkpoint folder itself; raises RunError."""
    given = run_folder(path)
    try:
        if (given / "checkpoint.json").is_file():
            return given
        if not given.exists():
            raise RunError(f"{given} does not exist; give the folder of a run, as `vilavt train` prints it.")
        found = _checkpoints(given)
    except OSError as error:
        raise RunError(
            f"{given} cannot be read ({error.strerror}); give the folder of a run, as `vilavt train` prints it."
        ) from error
    if not found:
        raise RunError(f"{given} holds no checkpoint; train it first, or give the folder of another run.")
    return found[-1]


def read_step(folder: Path) -> int:
    """Check a checkpoint's format and return its step; raises RunError."""
    file = folder / "checkpoint.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        made, step = int(facts["format"]), int(facts["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}); use another checkpoint of the run.") from error
    if made > FORMAT:
        raise RunError(
            f"{file}: format {made} is newer than {FORMAT}, which this version reads; update vilavt-toolkit."
        )
    return step


def load(
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    overrides: Sequence[str] = (),
) -> tuple[VisualChatModel, CheckedRecipe]:
    """Load the model of a run or checkpoint folder with its recipe; raises RunError, RecipeErrors for `overrides`.

    Its weights are in `dtype`, or in the type they were saved in. Of the model, overrides may change `stopping` only.
    """
    folder = find(path)
    read_step(folder)
    file = folder / "recipe.yaml"
    with _loading(folder):
        recipe = load_recipe(file)
    if overrides:
        recipe = load_recipe(file, overrides)
    with _loading(folder):
        model = assemble(recipe.recipe.model, str(file), saved=folder, filled=PARTS)
    if new := load_into(model, folder, dtype, other_stopping=bool(overrides)):
        raise RunError(
            f"{folder} holds no weights {listed_in_short(new)}, which a stopping policy has to learn first; train it, "
            f"with train.start={path}."
        )
    return model.to(device).eval(), recipe


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except VilavtError as error:
        raise RunError(f"{folder} cannot be loaded: {error}") from error


def load_into(
    model: VisualChatModel, folder: Path, dtype: torch.dtype | None = None, other_stopping: bool = False
) -> list[str]:
    """Load a checkpoint's weights into a model of the same recipe; raises RunError.

    Into one that has no weights yet they are mapped from their file, in `dtype` or as they were saved. With
    `other_stopping` its stopping policies may be others: the names of their weights that the checkpoint lacks, and
    that stay as they are, come back.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise RunError(f"{file} is missing; use another checkpoint of the run.")
    try:
        missing, unexpected = _fill(model, file, dtype)
        if strange := [name for name in unexpected if not (other_stopping and name.startswith(f"{STOPPING}."))]:
            raise RuntimeError(f"the recipe has no {listed_in_short(strange)}.")
        if lacking := [name for name in missing if not (other_stopping and name.startswith(f"{STOPPING}."))]:
            raise RuntimeError(f"it lacks {listed_in_short(lacking)}.")
        return missing
    except (SafetensorError, RuntimeError, OSError, KeyError) as error:
        if found := _difference(model, file):
            raise RunError(
                f"{file} does not fit its recipe, whose model is of another architecture ({found}); set `model` as in "
                f"{folder / 'recipe.yaml'}, or name another checkpoint."
            ) from error
        reason = " ".join(str(error).split())[:400]
        raise RunError(f"{file} does not fit its recipe or is damaged: {reason}; use another checkpoint.") from error


def _fill(model: VisualChatModel, file: Path, dtype: torch.dtype | None) -> tuple[list[str], list[str]]:
    """Fill a model from a file; the names that the file lacks, and those that the model does."""
    if without_weights(model):
        return _map_into(model, file, dtype)
    missing, unexpected = load_model(model, str(file), strict=False)
    return sorted(missing), sorted(unexpected)


def _difference(model: VisualChatModel, file: Path) -> str:
    """Which tensors of a file are not those of a model, the first of each kind; empty where it cannot be read."""
    own = {name: list(value.shape) for name, value in model.state_dict().items()}
    try:
        with safe_open(str(file), "pt") as stored:
            given = {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return ""
    # What is tied to another tensor is not in the file, which is no fault of it.
    kinds = {
        "unexpected": [name for name in given if name not in own],
        "mis-shaped": [
            f"{name} {shape} for {own[name]}" for name, shape in given.items() if own.get(name, shape) != shape
        ],
    }
    missing = [name for name in own if name not in given]
    kinds = ({"missing": missing} if missing else {}) | kinds if any(kinds.values()) else {}
    return "; ".join(
        f"{kind}: {', '.join(names[:2])}" + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        for kind, names in kinds.items()
        if names
    )


def _map_into(model: VisualChatModel, file: Path, dtype: torch.dtype | None) -> tuple[list[str], list[str]]:
    """Assign a file's tensors, each of the shape that its place has; as `_fill`. Raises RuntimeError for shapes."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    weights, unexpected = {}, []
    with safe_open(str(file), "pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            if name not in shapes:
                unexpected.append(name)
                continue
            value = stored.get_tensor(name)
            if value.shape != shapes[name]:
                raise RuntimeError(f"{name} is {list(value.shape)}, where the recipe has {list(shapes[name])}.")
            weights[name] = converted(file, name, dtype) if differs(value, dtype) else value
    return assign(model, weights), unexpected


def load_state(folder: Path) -> TrainingState:
    """What `save` was given to go on from; raises RunError."""
    tensors, data = folder / "resume.safetensors", folder / "resume.json"
    if not tensors.is_file() or not data.is_file():
        raise RunError(f"{folder} cannot be resumed: it holds weights but no training state.")
    try:
        return TrainingState(load_file(str(tensors)), json.loads(data.read_text(encoding="utf-8")))
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{folder}: its training state cannot be read ({error}); use another checkpoint.") from error
