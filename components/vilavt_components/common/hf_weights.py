"""Pretrained weights of transformers' models: loaded, or only checked against the model that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vilavt_components.common.hf_errors import as_input_error
from vilavt_components.common.quiet import quiet_transformers
from vilavt_components.common.qwen_checkpoint_files import CheckpointLocation, read_shapes
from vilavt_toolkit.utils.text import shorten_list

_ADVICE = "Give a folder with config.json, safetensors weights and a tokenizer, or a hub name in reach or cached."
_SHOWN = 3


class Pretrained(Protocol):
    """The settings that name pretrained weights."""

    @property
    def path(self) -> str | None: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def local_files_only(self) -> bool: ...

    @property
    def dtype(self) -> str: ...


def loading_errors(part: str, path: str) -> Any:
    """Return a context that turns exceptions inside into an InputError: the part cannot be loaded from `path`."""
    return as_input_error(f"{part} {path!r} cannot be loaded", _ADVICE, path)


def load_pretrained(auto: Any, part: str, settings: Pretrained, ignored: str = "", **options: Any) -> Any:
    """Return a model with its weights, read by a class of transformers such as AutoModel; raises InputError.

    `part` is what the model is in a recipe, for errors. Weights whose names begin with `ignored` may be missing.
    """
    assert settings.path is not None
    with loading_errors(part, settings.path), quiet_transformers():
        model, report = auto.from_pretrained(
            settings.path,
            revision=settings.revision,
            local_files_only=settings.local_files_only,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
        # transformers draws missing weights at random, and only warns.
        _refuse_missing([key for key in report["missing_keys"] if not (ignored and key.startswith(ignored))])
    return model


def check_pretrained(auto: Any, part: str, settings: Pretrained, config: Any, ignored: str = "") -> None:
    """Raise InputError unless the weights in a folder fit the model of transformers' `config`; reads no tensor.

    The hub is not asked: the download checks its weights.
    """
    assert settings.path is not None
    if not Path(settings.path).is_dir():
        return
    stored = read_shapes(CheckpointLocation(settings.path, None, True, part, _ADVICE), lambda key: key)
    with loading_errors(part, settings.path), quiet_transformers():
        with torch.device("meta"):
            model = auto.from_config(config)
        model.tie_weights()
        try:
            given = _rename(model, stored)
        except (ImportError, TypeError):
            # Another version of transformers finds names in another way. Loading then says what does not fit.
            return
        wanted = dict(model.named_parameters(remove_duplicate=False))
        # A tied weight may be stored under any of its names.
        held = {id(wanted[name]) for name in given if name in wanted}
        missing = [name for name, weight in wanted.items() if id(weight) not in held]
        _refuse_missing([name for name in missing if not (ignored and name.startswith(ignored))])
        wrong = [
            f"{name} {list(shape)} for {list(wanted[name].shape)}"
            for name, shape in given.items()
            if name in wanted and shape is not None and shape != wanted[name].shape
        ]
        if wrong:
            raise ValueError(f"its weights are of another shape than its config.json says: {shorten_list(wrong, 1)}")


def _refuse_missing(names: list[str]) -> None:
    if names:
        names = sorted(names)
        raise ValueError(f"its weights lack {names[0]}" + (f" and {len(names) - 1} others" if names[1:] else ""))


def _rename(model: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, torch.Size | None]:
    """Return the shapes of stored tensors under the model's names, None where several of them become one weight."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    untyped: Any = model
    own, prefix = untyped.state_dict(), untyped.base_model_prefix
    rules = get_model_conversion_mapping(untyped)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    found: dict[str, torch.Size | None] = {}
    for key, tensor in stored.items():
        name, merged = rename_source_key(key, renamings, converters, prefix, own)
        # Rules are of old checkpoints. A name that they spoil may be today's already.
        if name not in own:
            name, merged = rename_source_key(key, [], [], prefix, own)
        found[name] = tensor.shape if merged is None else None
    return found
