"""Models written for other code: a folder in another project's format, or in ours, whole or not at all."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from vilavt_toolkit.checkpoints.facts import read_step
from vilavt_toolkit.checkpoints.loading import load_as_stored
from vilavt_toolkit.checkpoints.native import checkpoint_facts, find_checkpoint, load_checkpoint, write_model
from vilavt_toolkit.checkpoints.run_folder import expand_home
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.registry import formats
from vilavt_toolkit.registry.trust import trusting_plugins
from vilavt_toolkit.settings import did_you_mean
from vilavt_toolkit.utils.files import write_json

log = logging.getLogger(__name__)

NATIVE = "native"
MODEL_TYPE = "vilavt_toolkit"
"""The `model_type` of an exported native folder's config.json, by which others see that it is ours."""


def export(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    format: str | None = None,
    dtype: torch.dtype | str | None = None,
    trust_plugins: bool = False,
) -> Path:
    """Write a model, loaded as `vt.load` does from `source`, into a new folder, and return it; raises VilavtError.

    `format` is a registered checkpoint format, or `native`: recipe.yaml, config.json, weights and tokenizers of a run.
    Without it the only registered format is taken.
    Weights are in `dtype`, or in the type they were saved in. `vt.load` reads every format. `trust_plugins` is that of
    `vt.load`.
    """
    # Checked first, since loading may take minutes.
    format = _choose_format(format)
    target = expand_home(folder)
    with _written_whole(target) as temporary, trusting_plugins(trust_plugins):
        if format == NATIVE:
            _write_native(source, temporary, dtype)
        else:
            _write_foreign(load_as_stored(source, dtype), temporary, format)
    return target


def save_foreign(model: VisualChatModel, folder: str | os.PathLike[str], format: str | None = None) -> Path:
    """Write a model in memory into a new folder, in a registered checkpoint format, and return it; raises VilavtError.

    Not in `native`, which needs the recipe that a model in memory no longer has.
    """
    format = _choose_format(format, native=False)
    target = expand_home(folder)
    with _written_whole(target) as temporary:
        _write_foreign(model, temporary, format)
    return target


def _write_foreign(model: VisualChatModel, folder: Path, format: str) -> None:
    if next(model.stopping.parameters(), None) is not None:
        log.warning("format %r has no place for the weights of stopping policies. They are left out.", format)
    foreign.build_format(format).save(model, folder)


def _choose_format(format: str | None, native: bool = True) -> str:
    """Return the format if it is known, or the only registered one for None; raises UsageError."""
    from vilavt_toolkit.registry.plugins import load_builtin

    # Formats are components, which register when they are imported.
    load_builtin()
    known = [*formats.names(), *([NATIVE] if native else [])]
    if format is None and len(formats.names()) == 1:
        return formats.names()[0]
    if format is None:
        raise UsageError(f"the format is not named. Write one of these as format: {', '.join(known)}.")
    if format not in known:
        raise UsageError(f"no format named {format!r}.{did_you_mean(format, known)} There are: {', '.join(known)}.")
    return format


def _write_native(source: str | os.PathLike[str], folder: Path, dtype: torch.dtype | str | None) -> None:
    from vilavt_toolkit.models.meta import parse_dtype

    found = expand_home(source)
    # A native folder is exported from its run's recipe; another project's checkpoint has none.
    if not (found / "checkpoints").exists() and (found / "config.json").is_file() and not _is_native(found):
        raise InputError(
            f"{found} is another project's checkpoint and has no recipe, which a native one needs. Train from it with "
            "`model.checkpoint` first, or export it with another --format."
        )
    checkpoint = find_checkpoint(found)
    model, recipe = load_checkpoint(checkpoint, "cpu", parse_dtype(dtype))
    step = read_step(checkpoint)
    write_model(folder, model, recipe, step)
    facts = {"model_type": MODEL_TYPE, **checkpoint_facts(step), "model": recipe.resolved["model"]}
    write_json(folder / "config.json", facts)


def _is_native(folder: Path) -> bool:
    return (folder / "checkpoint.json").is_file()


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target`; it takes the place of `target` if the block succeeds, else it is removed."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target} holds something already. Name a folder that is new or empty.")
    # The folder is replaced by another, and a shell inside would stand in a deleted one.
    if target.resolve() == Path.cwd():
        raise InputError(f"{target} is the folder you are in. Name a new one, like {target / 'weights'}.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written ({error}). Make room, or choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
