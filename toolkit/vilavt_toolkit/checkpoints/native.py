"""Checkpoints: one self-contained folder each, written whole or not at all; nothing in them is pickled.

RUN/checkpoints/step-00000700/
    checkpoint.json        format, step, versions
    recipe.yaml            resolved; plugins/ holds the files it names
    model.safetensors      tied tensors once, in one file or several with an index (`tensor_files.py`)
    language_model/        architecture and tokenizer
    inquiry_encoder/       its own tokenizer, where it has one
    resume.safetensors     optimizer and random state, with resume.json; only where training can be resumed
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file, save_model

from vilavt_toolkit.checkpoints import format1
from vilavt_toolkit.checkpoints.facts import ADAPTERS_KEY, FORMAT, is_format1, read_adapters, read_step
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.checkpoints.staging import StagedCheckpoint, list_checkpoints, remove_old_checkpoints
from vilavt_toolkit.checkpoints.tensor_files import choose_shown_file, list_tensor_files
from vilavt_toolkit.checkpoints.training_state import STATE, TENSORS_KEY, TrainingState, describe_tensors
from vilavt_toolkit.checkpoints.weights import RenameWeight, describe_mismatch, fill_weights
from vilavt_toolkit.config.parsing import to_plain
from vilavt_toolkit.config.recipe import CheckedRecipe, ConvertRecipe, dump_recipe, load_recipe
from vilavt_toolkit.config.recipe_plugins import PLUGIN_FOLDER
from vilavt_toolkit.config.schema import PARTS_WITH_WEIGHTS
from vilavt_toolkit.config.yaml_reading import read_yaml
from vilavt_toolkit.contracts import Dialogue
from vilavt_toolkit.errors import InputError, RecipeErrors, RunError, UntrustedPlugins, VilavtError
from vilavt_toolkit.models.adapters import Adapters, add_adapters, merge_adapters
from vilavt_toolkit.models.assemble import INQUIRY_ENCODER, LANGUAGE_MODEL, STOPPING, assemble_model
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.weight_types import TYPES_KEY, list_float_types
from vilavt_toolkit.utils.files import write_bytes, write_json, write_text
from vilavt_toolkit.utils.text import shorten_list, shorten_text
from vilavt_toolkit.utils.versions import collect_versions

WEIGHTS = "model"
"""Name of the files of the weights."""

_MOST_ERRORS = 4
"""Errors of a checkpoint's recipe that are told."""


# --- Writing -------------------------------------------------------------------------------------------


def save_checkpoint(
    run: Path,
    model: VisualChatModel,
    recipe: CheckedRecipe,
    step: int,
    state: TrainingState | None = None,
    kept_steps: Collection[int | None] = (),
    keep: int = 2,
) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep` and those of `kept_steps`; return its folder.

    One process does so. Raises InputError for a full disk.
    """
    staged = StagedCheckpoint(run, step)
    try:
        with staged.explained():
            staged.create()
            write_model(staged.folder, model, recipe, step)
            if state is not None:
                save_file(state.tensors, str(staged.folder / f"{STATE}.safetensors"))
                write_training_facts(staged.folder, state)
        final = staged.move_into_place()
    # After a move there is nothing left to discard.
    finally:
        staged.discard()
    remove_old_checkpoints(run, keep, kept_steps)
    return final


def write_training_facts(folder: Path, state: TrainingState) -> None:
    """Write the plain data of a training state, and what its tensors are; raises InputError."""
    write_json(folder / f"{STATE}.json", {**state.data, TENSORS_KEY: describe_tensors(state.tensors)})


def write_model(folder: Path, model: VisualChatModel, recipe: CheckedRecipe, step: int) -> None:
    """Write everything that loading a model needs; afterwards nothing in the folder refers to a file outside it."""
    write_model_assets(folder, model, recipe, step)
    # `save_model` writes tensors that share memory once, which safetensors otherwise refuses.
    types = list_float_types(model.state_dict().values())
    save_model(model, str(folder / f"{WEIGHTS}.safetensors"), {TYPES_KEY: types})


def write_model_assets(folder: Path, model: VisualChatModel, recipe: CheckedRecipe, step: int) -> None:
    """Write everything that loading a model needs but its weights."""
    (folder / LANGUAGE_MODEL).mkdir()
    model.language_model.save_assets(folder / LANGUAGE_MODEL)
    if model.vision.inquiry_encoder is not None:
        (folder / INQUIRY_ENCODER).mkdir()
        model.vision.inquiry_encoder.save_assets(folder / INQUIRY_ENCODER)
    write_recipe(folder, contain_recipe(recipe, model.dialogue))
    adapters = {} if model.adapters is None else {ADAPTERS_KEY: model.adapters.to_json()}
    write_json(folder / "checkpoint.json", {**checkpoint_facts(step), **adapters})


def checkpoint_facts(step: int) -> dict[str, Any]:
    """Return what checkpoint.json says: format, step and versions."""
    return {"format": FORMAT, "step": step, "versions": collect_versions()}


def contain_recipe(recipe: CheckedRecipe, dialogue: Dialogue | None = None) -> CheckedRecipe:
    """Return the recipe as a checkpoint holds it: no base checkpoint, and the dialogue's texts in place of their file.

    Without `dialogue` the recipe's is built.
    """
    section = recipe.recipe.model
    return _without_base_checkpoint(_with_dialogue_texts(recipe, dialogue or section.dialogue.build()))


def _without_base_checkpoint(recipe: CheckedRecipe) -> CheckedRecipe:
    """Clear `model.checkpoint`: the resolved recipe spells out every shape, and the weights are in the folder."""
    section = {**recipe.resolved["model"], "checkpoint": ""}
    return replace(recipe, resolved={**recipe.resolved, "model": section})


def _with_dialogue_texts(recipe: CheckedRecipe, own: Dialogue) -> CheckedRecipe:
    """Put the dialogue's texts into the recipe, where its settings name a file of them."""
    settings = own.self_contained_config()
    if settings is None:
        return recipe
    section = recipe.resolved["model"]
    dialogue = {"name": section["dialogue"]["name"], **to_plain(settings)}
    return replace(recipe, resolved={**recipe.resolved, "model": {**section, "dialogue": dialogue}})


def write_recipe(folder: Path, recipe: CheckedRecipe) -> None:
    """Write a resolved recipe into a run or checkpoint, and the code of its plugins as it was loaded."""
    folders: dict[Path, Path] = {}
    names: list[str] = []
    for number, plugin in enumerate(recipe.plugins):
        if plugin.code is None:
            names.append(plugin.name)
            continue
        # Files of one folder stay together, since they import each other. Another folder may have the same names.
        inside = Path(PLUGIN_FOLDER) / str(number) if folders else Path(PLUGIN_FOLDER)
        inside = folders.setdefault(plugin.code.path.parent, inside)
        # The files themselves may have been edited or deleted since.
        for name, data in plugin.code.files.items():
            write_bytes(folder / inside / name, data)
        names.append((inside / plugin.code.path.name).as_posix())
    contained = replace(recipe, resolved={**recipe.resolved, "plugins": names})
    write_text(folder / "recipe.yaml", dump_recipe(contained))


# --- Finding and describing ----------------------------------------------------------------------------


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the newest checkpoint of a run folder, or `path` if it is a checkpoint itself; raises RunError."""
    given = expand_home(path)
    try:
        if (given / "checkpoint.json").is_file():
            return given
        if not given.exists():
            raise RunError(f"{given} does not exist. Give the folder of a run, as `vilavt train` prints it.")
        # A folder that may not be read raises here, or already at `is_file`.
        found = list_checkpoints(given)
    except OSError as error:
        raise RunError(
            f"{given} cannot be read ({error.strerror}). Give the folder of a run, as `vilavt train` prints it."
        ) from error
    if not found:
        raise RunError(f"{given} holds no checkpoint. Train it first, or give the folder of another run.")
    return found[-1]


def _weight_names(folder: Path) -> RenameWeight:
    """Return the function from the names in a checkpoint's files of weights to today's."""
    return format1.current_weight_name if is_format1(folder) else lambda name: name


def _recipe_converter(folder: Path) -> ConvertRecipe | None:
    return format1.rename_old_keys if is_format1(folder) else None


# --- Reading -------------------------------------------------------------------------------------------


def load_checkpoint_recipe(folder: Path, overrides: Sequence[str] = ()) -> CheckedRecipe:
    """Read the recipe of a checkpoint, of whatever format; raises RunError, RecipeErrors, BadRecipe."""
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder / 'recipe.yaml'} is missing. Use another checkpoint of the run.")
    return load_recipe(folder / "recipe.yaml", overrides, _recipe_converter(folder))


def read_saved_recipe(folder: Path) -> dict[str, Any]:
    """Read the recipe of a checkpoint as plain data with today's keys, its plugins not imported; raises BadRecipe."""
    found = read_yaml(folder / "recipe.yaml")
    convert = _recipe_converter(folder)
    return convert(found) if convert is not None else found


def load_run_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> CheckedRecipe:
    """Read a recipe as `load_recipe` does; the recipe.yaml of a run may be of an earlier checkpoint format.

    A run writes no format number beside its recipe, so that of its newest checkpoint counts.
    """
    path = Path(name_or_path)
    convert = None
    if path.name == "recipe.yaml":
        # Without a checkpoint there is nothing to resume, and the file is a recipe like any other.
        with suppress(RunError):
            convert = _recipe_converter(find_checkpoint(path.parent))
    return load_recipe(name_or_path, overrides, convert)


def load_checkpoint(
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    overrides: Sequence[str] = (),
    as_trained: bool = False,
) -> tuple[VisualChatModel, CheckedRecipe]:
    """Load the model of a run or checkpoint folder, in evaluation mode, and its recipe.

    The weights are in `dtype`, or in the type they were saved in; with `as_trained` in the type that training computed
    in. Of the model, overrides may change `stopping` only. Raises RunError, and RecipeErrors for `overrides`.
    """
    folder = find_checkpoint(path)
    # The format is checked before a recipe of a newer one is refused for its keys.
    read_step(folder)
    # Read twice, so that an error says whether the checkpoint or the override is at fault.
    with _as_run_error(folder):
        recipe = load_checkpoint_recipe(folder)
    if overrides:
        recipe = load_checkpoint_recipe(folder, overrides)
    with _as_run_error(folder):
        model = assemble_model(
            recipe.recipe.model, str(folder / "recipe.yaml"), saved=folder, filled=PARTS_WITH_WEIGHTS
        )
    add_saved_adapters(model, folder, empty=True)
    wanted = dtype or (computing_dtype(recipe) if as_trained else None)
    # Adapters are merged in the types that they were trained in, and the sum is rounded once.
    given = wanted if model.adapters is None else None
    if new := load_weights_into(model, folder, given, other_stopping=bool(overrides)):
        raise RunError(
            f"{folder} holds no weights {shorten_list(new)}, which a stopping policy must learn first. Train it with "
            f"train.init_from={path}."
        )
    if model.adapters is not None:
        merge_adapters(model)
        model.to(wanted or _widest_type(model))
    return model.to(device).eval(), recipe


def add_saved_adapters(model: VisualChatModel, folder: Path, empty: bool = False) -> None:
    """Put the adapters of a checkpoint on a model, so that it has the checkpoint's weights; raises RunError.

    `empty` is that of `add_adapters`.
    """
    saved = read_adapters(folder)
    if saved is None:
        return
    try:
        add_adapters(model, Adapters.from_json(saved), empty)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = shorten_text(f"{type(error).__name__}: {error}")
        raise RunError(
            f"{folder / 'checkpoint.json'}: its adapters do not fit the recipe ({reason}). Use another checkpoint."
        ) from error


def _widest_type(model: VisualChatModel) -> torch.dtype:
    """Return the type that loses nothing of any weight: frozen weights may be narrower than trained ones."""
    return functools.reduce(torch.promote_types, {weight.dtype for weight in model.parameters()})


def computing_dtype(recipe: CheckedRecipe) -> torch.dtype | None:
    """Return the type in which training with a recipe computes, where it is not that of the saved weights; else None.

    Under `16-mixed` the sums between blocks stay in float32, whose range float16 does not have, so that weights in
    float16 would compute something else.
    """
    return torch.bfloat16 if recipe.recipe.train.precision == "bf16-mixed" else None


@contextmanager
def _as_run_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except UntrustedPlugins:
        raise
    except RecipeErrors as error:
        # A file of something else gives thousands. Nobody mends the recipe of a checkpoint one by one.
        more = len(error.errors) - _MOST_ERRORS
        told = [each.report() for each in error.errors[:_MOST_ERRORS]] + ([f"and {more} more"] if more > 0 else [])
        raise RunError(f"{folder} cannot be loaded: " + "\n".join(told)) from error
    except VilavtError as error:
        raise RunError(f"{folder} cannot be loaded: {error}") from error


def load_weights_into(
    model: VisualChatModel, folder: Path, dtype: torch.dtype | None = None, other_stopping: bool = False
) -> list[str]:
    """Load a checkpoint's weights into a model of the same recipe; raises RunError.

    If the model has no weights yet, they are mapped from the files, in `dtype` or as they were saved. With
    `other_stopping` its stopping policies may differ from the checkpoint's. The names of the weights that the
    checkpoint lacks are returned; these weights keep their values.
    """
    files, rename = list_tensor_files(folder, WEIGHTS), _weight_names(folder)
    if not files[0].is_file():
        raise RunError(f"{files[0]} is missing. Use another checkpoint of the run.")

    def list_wrong(names: Sequence[str]) -> str:
        return shorten_list([name for name in names if not (other_stopping and name.startswith(f"{STOPPING}."))])

    try:
        missing, unexpected = fill_weights(model, files, dtype, rename)
        if strange := list_wrong(unexpected):
            raise RuntimeError(f"the recipe has no {strange}.")
        if lacking := list_wrong(missing):
            raise RuntimeError(f"it lacks {lacking}.")
        return missing
    except InputError as error:
        raise RunError(f"{choose_shown_file(files, WEIGHTS)}: {error}, or use another checkpoint.") from error
    except (SafetensorError, RuntimeError, OSError, KeyError) as error:
        file = choose_shown_file(files, WEIGHTS)
        # Torch names every tensor in one long sentence. The first two of each kind say as much.
        if found := describe_mismatch(model, files, rename):
            raise RunError(
                f"{file} does not fit its recipe, whose model is of another architecture ({found}). Set `model` as in "
                f"{folder / 'recipe.yaml'}, or name another checkpoint."
            ) from error
        reason = " ".join(str(error).split())[:400].removesuffix(".")
        raise RunError(f"{file} does not fit its recipe or is damaged: {reason}. Use another checkpoint.") from error
