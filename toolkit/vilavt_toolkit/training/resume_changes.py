"""Differences between a checkpoint and the run that resumes from it: settings, plugins, data files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vilavt_toolkit.checkpoints.native import contain_recipe, read_saved_recipe
from vilavt_toolkit.checkpoints.training_state import TrainingState
from vilavt_toolkit.config.parsing import KeyPath, format_path, parse_config, to_plain
from vilavt_toolkit.config.recipe import CheckedRecipe
from vilavt_toolkit.config.schema import Recipe
from vilavt_toolkit.contracts import Task
from vilavt_toolkit.errors import RecipeErrors, RunError
from vilavt_toolkit.utils.text import shorten_list, shorten_text

log = logging.getLogger(__name__)

_SPEED_AND_OUTPUT = frozenset(
    {
        "accelerator",
        "best_by",
        "checkpoint_every",
        "compile",
        "gradient_checkpointing",
        "init_from",
        "keep_checkpoints",
        "kl_reference",
        "language_model_checkpointing",
        "log_every",
        "offload_activations",
        "peak_tflops",
        "preprocess",
        "reward_seconds",
        "rollout_batch",
        "run",
        "sample_cache",
        "save_in_background",
        "save_rollouts_every",
        "threads",
        "trackers",
        "validate_dialogues",
        "validate_every",
        "validate_samples",
        "worker_seconds",
        "workers",
    }
)
"""Settings of a stage that may differ without a word. `init_from` was used when the run began."""
_TOLD = frozenset(
    {
        "devices",
        "max_bad_samples",
        "max_skipped",
        "micro_batch",
        "nodes",
        "pack_patches",
        "pack_tokens",
        "patience",
        "share_prompts",
        "steps",
        "strategy",
    }
)
"""Settings of a stage that may differ and are told: more steps, for example, stretch the schedule."""
_ROW_SIZES = ("pack_patches", "pack_tokens")
_FREE_IN_MODEL = frozenset({"checkpoint", "cudnn_attention", "norms", "path", "tokenizer"})
"""Settings of the model that say where weights and tokenizers came from, of which the checkpoint has its own, or what
computes."""
_MOST_LISTED, _MOST_CHARACTERS = 8, 60
_UNSET = object()


def check_settings(recipe: CheckedRecipe, folder: Path, stage: str, allow_changes: bool) -> None:
    """Compare a recipe with that of the checkpoint from which `stage` (`train` or `rl`) is resumed.

    Settings that change what is learned are refused, all in one RunError; with `allow_changes` they are only told.
    """
    saved, told, refused = read_saved_recipe(folder), list[str](), list[str]()
    try:
        # Parsed, so that settings which an earlier version did not have get their defaults. Its plugins are not
        # imported: those of the recipe bring the same components.
        before = to_plain(parse_config(Recipe, {**saved, "plugins": []}))
    except RecipeErrors as error:
        reason = str(error.errors[0]).split("\n")[0]
        _refuse_changes(f"the settings of {folder} cannot be compared", [reason.rstrip(".")], allow_changes)
        return
    for keys, old, new in _list_differences(before, contain_recipe(recipe).resolved, ()):
        if not _is_free(keys, stage):
            is_told = keys[0] == stage and keys[-1] in _TOLD and len(keys) == 2 and not _cuts_samples(before, keys)
            (told if is_told else refused).append(f"{format_path(keys)}={_format(new)} (was {_format(old)})")
    refused += _list_changed_plugins(recipe, folder, saved.get("plugins") or ())
    if told:
        log.warning("resumed with other settings: %s.", shorten_list(told, _MOST_LISTED))
    if refused:
        _refuse_changes(f"{folder} was made with other settings", refused, allow_changes)


def check_data(state: TrainingState | None, task: Task, split: str, allow_changes: bool) -> dict[str, Any]:
    """Return the facts that a checkpoint keeps of a split's samples, compared with those of the `state` to resume.

    Raises RunError if they differ, unless `allow_changes`.
    """
    found = {"samples": task.length(split), "fingerprint": task.fingerprint(split)}
    # Checkpoints of earlier versions do not say.
    saved = state.data.get("data") if state is not None else None
    if isinstance(saved, Mapping) and dict(saved) != found:
        before, now = saved.get("samples"), found["samples"]
        sizes = f"{before} samples before, {now} now"
        if before == now:
            sizes = f"{sizes}, of which some are others or in another order"
        _refuse_changes(f"split '{split}' is not the one that the checkpoint was made with", [sizes], allow_changes)
    return found


def _refuse_changes(what: str, changes: Sequence[str], allow_changes: bool) -> None:
    text = f"{what}: {shorten_list(changes, _MOST_LISTED)}."
    if not allow_changes:
        raise RunError(f"{text} Resume with the same, or add --allow-changes to go on with the new.")
    log.warning(text)


def _cuts_samples(before: Any, keys: KeyPath) -> bool:
    """Return True if a setting says how much of long samples is learned from, as it does where they are cut."""
    section = before.get(keys[0])
    return keys[-1] in _ROW_SIZES and isinstance(section, Mapping) and section.get("long_samples") == "cut"


def _is_free(keys: KeyPath, stage: str) -> bool:
    """Return True if a setting changes nothing that the stage learns."""
    section, key, last = keys[0], keys[1] if len(keys) > 1 else "", keys[-1]
    if section in ("run", "plugins", "eval"):
        return True
    if section == "model":
        return last in _FREE_IN_MODEL
    if section == stage:
        return key in _SPEED_AND_OUTPUT or keys[1:] == ("optimizer", "fused")
    # Reinforcement trains in the number format of the section `train`, and reads nothing else there that counts.
    return section in ("train", "rl") and not (section == "train" and key == "precision")


def _list_differences(before: Any, now: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield every place where two plain data differ, with both values; `_UNSET` for one that is missing."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        # Another component has other settings, of which none says more than its name.
        if before.get("name") != now.get("name"):
            yield path, before.get("name"), now.get("name")
            return
        for key in {**before, **now}:
            yield from _list_differences(before.get(key, _UNSET), now.get(key, _UNSET), (*path, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _list_differences(old, new, (*path, number))
    elif before != now:
        yield path, before, now


def _format(value: Any) -> str:
    return "not set" if value is _UNSET else shorten_text(json.dumps(value, ensure_ascii=False), _MOST_CHARACTERS)


def _list_changed_plugins(recipe: CheckedRecipe, folder: Path, saved: Sequence[str]) -> list[str]:
    """Return a line for each plugin whose code, as it was loaded, is not that of the checkpoint."""
    copies = {Path(name).name: (folder / name).parent for name in saved if name.endswith(".py")}
    changed = []
    for code in (plugin.code for plugin in recipe.plugins if plugin.code is not None):
        copy = copies.get(code.path.name)
        # A plugin that is new brings nothing that the settings do not name.
        if copy is not None and any(_read_bytes(copy / name) != data for name, data in code.files.items()):
            changed.append(f"the plugin {code.path.name} has other content")
    return changed


def _read_bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None
