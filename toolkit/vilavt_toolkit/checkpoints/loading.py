"""Models from what a user has: a run, another project's checkpoint, or a recipe."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from vilavt_toolkit.checkpoints.native import add_saved_adapters, load_checkpoint, load_weights_into
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.config.parsing import Location, parse_config
from vilavt_toolkit.config.recipe import CheckedRecipe, load_recipe
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.adapters import merge_adapters
from vilavt_toolkit.models.assemble import assemble_model, load_weights
from vilavt_toolkit.models.meta import copy_weights, parse_dtype, unfilled_parameters
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.registry.trust import trusting_plugins
from vilavt_toolkit.utils.text import shorten_list

log = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    device: torch.device | str = "auto",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    trust_plugins: bool = False,
) -> VisualChatModel:
    """Load a model in evaluation mode from a run (its newest checkpoint), a folder, or a hub name like owner/name.

    A folder may hold a checkpoint of ours, what `vilavt export` wrote, or weights of a known format (ViLaVT,
    Qwen2.5-VL). Device `auto` is a GPU if there is one. Weights are in `dtype`, or in the type they are stored in;
    those of a run that was trained in bf16-mixed are in bfloat16. On the CPU they are mapped from their files where
    their type stays. `revision` and `local_files_only` are for the hub. `trust_plugins`
    allows the plugins of a checkpoint that was not trained here. Raises VilavtError.
    """
    # Both are checked before anything is fetched or read.
    wanted, chosen = parse_dtype(dtype), best_device() if device == "auto" else _require_device(device)
    with trusting_plugins(trust_plugins):
        return _load(path, chosen, wanted, foreign.HubAccess(revision, local_files_only), as_trained=True)


def load_as_stored(path: str | os.PathLike[str], dtype: torch.dtype | str | None = None) -> VisualChatModel:
    """Load a model as `load` does, on the CPU, in `dtype` or in the type that its weights are stored in."""
    return _load(path, "cpu", parse_dtype(dtype), foreign.HubAccess(), as_trained=False)


def _load(
    path: str | os.PathLike[str],
    device: torch.device | str,
    dtype: torch.dtype | None,
    hub: foreign.HubAccess,
    as_trained: bool,
) -> VisualChatModel:
    text = os.fspath(path)
    folder = foreign.fetch_folder(text, hub) if foreign.is_hub_name(text) else expand_home(path)
    if _is_run(folder):
        return load_checkpoint(folder, device, dtype, as_trained=as_trained)[0]
    return _load_foreign(text, folder, dtype).to(device).eval()


def best_device() -> str:
    """Return the device that `auto` stands for: CUDA, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _require_device(device: torch.device | str) -> torch.device:
    """Return a device that can be used; raises InputError."""
    try:
        # Torch says only on use that a device is missing. An empty tensor is the cheapest use.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}). Give auto, cpu, cuda or mps.") from error


def _is_run(folder: Path) -> bool:
    """Return True if a folder is ours, or nobody's: then `load_checkpoint` reads it or says what is wrong."""
    try:
        ours = any((folder / name).exists() for name in ("checkpoints", "checkpoint.json", "recipe.yaml"))
        return ours or not (folder / "config.json").is_file()
    except OSError:
        return True


def _load_foreign(name: str, folder: Path, dtype: torch.dtype | None) -> VisualChatModel:
    found = foreign.find_foreign_checkpoint(folder)
    section = parse_config(ModelSection, found.read_section(), f"checkpoint {name}")
    # Parts that the checkpoint does not hold are drawn at random, the same on every call.
    torch.manual_seed(0)
    return _assemble_with_weights(section, found, name, dtype)


def build(
    recipe: str | os.PathLike[str], overrides: Sequence[str] = (), trust_plugins: bool = False
) -> VisualChatModel:
    """Build the model of a recipe, given by name or path, in evaluation mode; raises RecipeErrors.

    Its weights are pretrained where the recipe says so, and else random, drawn from the recipe's seed. `trust_plugins`
    is that of `load`, for the recipe of a checkpoint.
    """
    checked = load_recipe(os.fspath(recipe), overrides, trust_plugins=trust_plugins)
    torch.manual_seed(checked.recipe.seed)
    return build_model(checked).eval()


def build_model(
    checked: CheckedRecipe, dtype: torch.dtype | None = torch.float32, copy: bool = False
) -> VisualChatModel:
    """Build the model of a checked recipe; train its tokenizer and load pretrained weights where the recipe says so.

    The weights of `model.checkpoint` are in `dtype`; None: in the type they are stored in. With `copy` none is mapped
    from its file, which training needs: it takes hours, and the file may change meanwhile.
    """
    section = checked.recipe.model
    if section.checkpoint:
        model = _assemble_with_weights(
            section, foreign.find_foreign_checkpoint(section.checkpoint), checked.where, dtype
        )
    else:
        model = assemble_model(section, checked.where)
    # A tokenizer without a file is trained on the task's text; the dialogue's fixed strings become tokens of their own.
    task: Task = checked.recipe.task.build()
    fixed = model.dialogue.fixed_strings(section.source.entry.cls.box_key)
    model.language_model.fit_tokenizer(task.corpus(), fixed)
    load_weights(model)
    if copy:
        copy_weights(model)
    return model


def _assemble_with_weights(
    section: ModelSection, found: foreign.ForeignCheckpoint, where: str | Location, dtype: torch.dtype | None
) -> VisualChatModel:
    """Build the model of a section with another project's weights; parts that it does not hold are new."""
    # Parts that the checkpoint fills are built on the meta device, so that no weight is drawn to be overwritten.
    filled = found.format.filled_parts(section, found.folder)
    model = assemble_model(section, where, filled=filled)
    found.format.load(model, found.folder, filled, dtype)
    if missing := unfilled_parameters(model):
        raise InputError(f"checkpoint {found.name!r} holds no weights for {shorten_list(missing)}.")
    _match_new_parts(model, filled)
    if new := _kinds_with_weights(model) - filled:
        log.warning(
            "checkpoint %r has no weights for the recipe's %s: new, or loaded from where it says.",
            found.name,
            ", ".join(sorted(new)).replace("_", " "),
        )
    return model


def _match_new_parts(model: VisualChatModel, filled: frozenset[str]) -> None:
    """Give the parts that a checkpoint does not hold the number type that most of its weights have."""
    counts: Counter[torch.dtype] = Counter()
    for weight in (
        weight for kind, module in model.parts().items() if kind in filled for weight in module.parameters()
    ):
        counts[weight.dtype] += weight.numel()
    # They would be float32 beside bfloat16, also where nothing uses them.
    for kind, module in model.parts().items():
        if kind not in filled and counts:
            module.to(counts.most_common(1)[0][0])


def find_new_parts(section: ModelSection) -> frozenset[str]:
    """Return the parts between encoder and language model whose weights a model of these settings draws at random.

    Neither has pretrained weights of its own, so that only `model.checkpoint` can hold them.
    """
    between = frozenset({"modulator", "projector"})
    if not section.checkpoint:
        return between
    found = foreign.find_foreign_checkpoint(section.checkpoint, weights=False)
    return between - found.format.filled_parts(section, found.folder)


def _kinds_with_weights(model: VisualChatModel) -> frozenset[str]:
    """Return the kinds of parts that have weights and use them."""
    kinds = frozenset(kind for kind, module in model.parts().items() if next(module.parameters(), None) is not None)
    # Without a modulator that has weights nothing reads what the inquiry encoder gives, so its weights are not used.
    return kinds if "modulator" in kinds else kinds - {"inquiry_encoder"}


def load_checkpoint_model(recipe: CheckedRecipe, folder: Path, resume: bool = False) -> VisualChatModel:
    """Build a recipe's model with the weights of a checkpoint of ours; raises VilavtError if they do not fit.

    Unless training is to `resume`, stopping policies may differ from the checkpoint's, and adapters are merged. A
    policy that it has no weights for starts with new ones.
    """
    model, new = load_matching_weights(recipe, folder, other_stopping=not resume)
    if not resume:
        merge_adapters(model)
    if new:
        log.warning("%s has no weights of the recipe's stopping policies. New are %s.", folder, shorten_list(new))
    return model


def load_matching_weights(
    recipe: CheckedRecipe, folder: Path, other_stopping: bool
) -> tuple[VisualChatModel, list[str]]:
    """Build a recipe's model with a checkpoint's weights; return it and the names that `load_weights_into` left new.

    If the checkpoint has adapters, the model has them too.
    """
    model = assemble_model(recipe.recipe.model, recipe.where, saved=folder)
    add_saved_adapters(model, folder)
    return model, load_weights_into(model, folder, other_stopping=other_stopping)
