"""Models written for others: a folder in a checkpoint format, or in ours, whole or not at all."""

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

from vilavt_toolkit.checkpoints import native as checkpoints
from vilavt_toolkit.checkpoints.loading import load
from vilavt_toolkit.checkpoints.run_folder import run_folder
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.formats import foreign
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.registry import formats
from vilavt_toolkit.settings import did_you_mean
from vilavt_toolkit.utils.files import write_json
from vilavt_toolkit.utils.versions import versions

log = logging.getLogger(__name__)

NATIVE = "native"
MODEL_TYPE = "vilavt_toolkit"


def export(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    format: str = "vilavt",
    dtype: torch.dtype | str | None = None,
) -> Path:
    """Write what `vt.load` reads from `source` into a new folder that others, or `vt.load`, read; raises VilavtError.

    `format` is that of a registered checkpoint format, or `native`: recipe.yaml, config.json, weights and tokenizers
    of a run. Weights are in `dtype`, or in the type they were saved in.
    """
    _check_format(format)
    target = run_folder(folder)
    with _whole(target) as temporary:
        if format == NATIVE:
            _write_native(source, temporary, dtype)
        else:
            _write_foreign(load(source, "cpu", dtype), temporary, format)
    return target


def save(model: VisualChatModel, folder: str | os.PathLike[str], format: str = "vilavt") -> Path:
    """Write a model in memory in a registered checkpoint format into a new folder; raises VilavtError."""
    _check_format(format, native=False)
    target = run_folder(folder)
    with _whole(target) as temporary:
        _write_foreign(model, temporary, format)
    return target


def _write_foreign(model: VisualChatModel, folder: Path, format: str) -> None:
    if next(model.stopping.parameters(), None) is not None:
        log.warning("format %r has no place for what stopping policies have learned, which is left out.", format)
    foreign.make(format).save(model, folder)


def _check_format(format: str, native: bool = True) -> None:
    from vilavt_toolkit.registry.plugins import load_builtin

    load_builtin()
    known = [*formats.names(), *([NATIVE] if native else [])]
    if format not in known:
        raise UsageError(f"no format named {format!r}.{did_you_mean(format, known)} There are: {', '.join(known)}.")


def _write_native(source: str | os.PathLike[str], folder: Path, dtype: torch.dtype | str | None) -> None:
    from vilavt_toolkit.models.meta import as_dtype

    found = run_folder(source)
    if not (found / "checkpoints").exists() and (found / "config.json").is_file() and not _is_native(found):
        raise InputError(
            f"{found} is a checkpoint of others, which has no recipe that a native one needs; train from it with "
            "`model.checkpoint` first, or export it as another format."
        )
    checkpoint = checkpoints.find(found)
    model, recipe = checkpoints.load(checkpoint, "cpu", as_dtype(dtype))
    checkpoints.write_model(folder, model, recipe)
    facts = {"format": checkpoints.FORMAT, "step": checkpoints.read_step(checkpoint), "versions": versions()}
    write_json(folder / "checkpoint.json", facts)
    write_json(folder / "config.json", {"model_type": MODEL_TYPE, **facts, "model": recipe.resolved["model"]})


def _is_native(folder: Path) -> bool:
    return (folder / "checkpoint.json").is_file()


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Yield a folder beside `target` that takes its place if the block ends well, and goes if not."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target} holds something already; name a folder that is new or empty.")
    if target.resolve() == Path.cwd():  # it is replaced, and would be gone for whoever is in it
        raise InputError(f"{target} is the folder you are in; name a new one, like {target / 'weights'}.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written ({error}); make room, or choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
