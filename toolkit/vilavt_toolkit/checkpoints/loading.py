"""Models by what a user has: a run, a checkpoint that others wrote, or a recipe."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vilavt_toolkit.checkpoints import native as checkpoints
from vilavt_toolkit.checkpoints.run_folder import run_folder
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.config.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.assemble import assemble, load_weights
from vilavt_toolkit.models.meta import as_dtype, listed_in_short, without_weights
from vilavt_toolkit.models.model import VisualChatModel

log = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    device: torch.device | str = "auto",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> VisualChatModel:
    """Load a model, ready to be asked: of a run (its newest checkpoint), a folder, or a hub name like owner/name.

    A folder may hold a checkpoint of ours, what `vilavt export` wrote, or weights of a known format (ViLaVT,
    Qwen2.5-VL). Device `auto` is a GPU if there is one; weights are in `dtype`, or in the type they are stored in. On
    the CPU they are mapped from their files. `revision` and `local_files_only` are for the hub. Raises VilavtError.
    """
    wanted, chosen = as_dtype(dtype), best_device() if device == "auto" else _reached(device)
    text = os.fspath(path)
    hub = foreign.Hub(revision, local_files_only)
    folder = foreign.fetched(text, hub) if foreign.is_hub_name(text) else run_folder(path)
    if _is_run(folder):
        return checkpoints.load(folder, chosen, wanted)[0]
    return _load_foreign(text, folder, wanted).to(chosen).eval()


def best_device() -> str:
    """The device of `auto`: CUDA, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _reached(device: torch.device | str) -> torch.device:
    """A device that is there; raises InputError."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}); give auto, cpu, cuda or mps.") from error


def _is_run(folder: Path) -> bool:
    """Whether it is for `checkpoints.load` to read a folder, or to say what is wrong with it."""
    try:
        ours = any((folder / name).exists() for name in ("checkpoints", "checkpoint.json", "recipe.yaml"))
        return ours or not (folder / "config.json").is_file()
    except OSError:
        return True


def _load_foreign(name: str, folder: Path, dtype: torch.dtype | None) -> VisualChatModel:
    found = foreign.find(folder)
    section = parse_config(ModelSection, found.section(), f"checkpoint {name}")
    torch.manual_seed(0)  # of parts that no checkpoint holds
    return _filled(section, found, name, dtype)


def build(recipe: str | os.PathLike[str], overrides: Sequence[str] = ()) -> VisualChatModel:
    """Build the model of a recipe by name or path, pretrained where it says so, else at random; raises RecipeErrors."""
    checked = load_recipe(os.fspath(recipe), overrides)
    torch.manual_seed(checked.recipe.seed)
    return build_model(checked).eval()


def build_model(checked: CheckedRecipe, dtype: torch.dtype | None = torch.float32) -> VisualChatModel:
    """Assemble the model of a checked recipe; tokenizers are trained and weights loaded where it says so.

    The weights of a `model.checkpoint` come in `dtype`, or in the type they are stored in.
    """
    section = checked.recipe.model
    if section.checkpoint:
        model = _filled(section, foreign.find(section.checkpoint), str(checked.path), dtype)
    else:
        model = assemble(section, str(checked.path))
    task: Task = checked.recipe.task.entry.cls(checked.recipe.task.config)
    fixed = model.dialogue.fixed_strings(section.source.entry.cls.box_key)
    model.language_model.fit_tokenizer(task.corpus(), fixed)
    load_weights(model)
    return model


def _filled(section: ModelSection, found: foreign.Foreign, label: str, dtype: torch.dtype | None) -> VisualChatModel:
    """The model of a section with a checkpoint's weights; those of parts that it does not hold are new."""
    filled = found.format.filled(section, found.folder)
    model = assemble(section, label, filled=filled)
    found.format.load(model, found.folder, filled, dtype)
    if missing := without_weights(model):
        raise InputError(f"checkpoint {found.name!r} holds no weights for {listed_in_short(missing)}.")
    if new := _with_weights(model) - filled:
        log.warning(
            "checkpoint %r has no weights for the recipe's %s: new, or loaded from where it says.",
            found.name,
            ", ".join(sorted(new)).replace("_", " "),
        )
    return model


def _with_weights(model: VisualChatModel) -> frozenset[str]:
    """The kinds of parts that have weights which are used."""
    listening = next(model.encoder.modulators.parameters(), None) is not None
    modules: dict[str, torch.nn.Module | None] = {
        "encoder": model.encoder.encoder,
        "modulator": model.encoder.modulators,
        "inquiry_encoder": model.encoder.inquiry_encoder if listening else None,
        "projector": model.projector,
        "language_model": model.language_model,
        "stopping": model.stopping,
    }
    return frozenset(
        kind for kind, module in modules.items() if module is not None and next(module.parameters(), None) is not None
    )
