"""Low-rank adapters (LoRA, Hu et al., 2021, arXiv 2106.09685) on linear layers of a model, by peft."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vilavt_toolkit.errors import BadConfig, MissingPackage
from vilavt_toolkit.models.model import VisualChatModel
from vilavt_toolkit.models.weight_names import is_part, match_names, refuse_overlap, suggest_names
from vilavt_toolkit.utils.text import shorten_text

_ADAPTER = "default"
"""peft's name of the only adapter of a layer."""
_IS_ADAPTER = re.compile(r"\.lora_[AB]\.")


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model: W x becomes W x + s B A x, with A [rank, in], B [out, rank] and B = 0 at the start."""

    rank: int
    alpha: float
    """s is alpha / rank, or alpha / sqrt(rank) with `rslora` (Kalajdzievski, 2023, arXiv 2312.03732)."""
    dropout: float
    rslora: bool
    layers: tuple[str, ...]
    """Names of the adapted layers, as they are without adapters."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Adapters:
        """Read what `to_json` gave; raises KeyError, TypeError or ValueError if it is something else."""
        layers = tuple(str(name) for name in data["layers"])
        return cls(int(data["rank"]), float(data["alpha"]), float(data["dropout"]), bool(data["rslora"]), layers)


def is_adapter(name: str) -> bool:
    """Return True for the name of a weight of an adapter."""
    return _IS_ADAPTER.search(name) is not None


# --- Choosing layers -----------------------------------------------------------------------------------


def find_linear_layers(model: VisualChatModel, patterns: Sequence[str], key: str) -> tuple[str, ...]:
    """Return the names of the linear layers that patterns of the recipe's `key` choose, in the model's order.

    A part chooses all of its linear layers but the language model's head. Raises BadConfig for a pattern that matches
    none, for two that match the same one, and for a layer that cannot have an adapter.
    """
    linear = {name: module for name, module in model.named_modules() if _is_linear(module)}
    head = model.language_model.head
    chosen: dict[str, list[str]] = {}
    for pattern in patterns:
        if is_part(pattern):
            inside = [part for kind, part in model.parts().items() if kind == pattern]
            # By id: a layer that two parts share is listed under one name alone.
            modules = {id(module) for part in inside for module in part.modules()}
            found = [name for name, module in linear.items() if id(module) in modules and module is not head]
        else:
            found = match_names(linear, pattern)
        if not found:
            raise BadConfig(
                f"{shorten_text(pattern)!r} in {key} matches no linear layer."
                f"{suggest_names(pattern, [*model.parts(), *linear], wider=False)}"
            )
        chosen[pattern] = found
    ids = {pattern: [id(linear[name]) for name in found] for pattern, found in chosen.items()}
    refuse_overlap(ids, {id(module): name for name, module in linear.items()}, key)
    names = {name for found in chosen.values() for name in found}
    _refuse_unfit(model, {name: linear[name] for name in names}, key)
    return tuple(name for name in linear if name in names)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """Return True for transformers' Conv1D, a linear layer of GPT-2 that is laid out the other way round."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _refuse_unfit(model: nn.Module, layers: Mapping[str, nn.Module], key: str) -> None:
    """Raise BadConfig if a layer shares its weight with another, or is frozen by its own part."""
    owners: dict[int, set[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(weight), set()).add(name)
    for name, module in layers.items():
        own: Any = module.weight
        # A layer that lies at two places has two names of its own, which is no obstacle.
        shared = {each.rpartition(".")[0] for each in owners[id(own)]}
        others = sorted(each for each in shared if model.get_submodule(each) is not module)
        if others:
            raise BadConfig(
                f"{key}: {name} shares its weight with {others[0]}, so that no adapter can be merged into it. Narrow "
                "the pattern that matches it."
            )
        if not own.requires_grad:
            raise BadConfig(
                f"{key}: {name} is frozen by its own part, which then passes no gradient on. Set `frozen` of that "
                "part to false, or narrow the pattern."
            )


# --- Adding and taking off -----------------------------------------------------------------------------


def add_adapters(model: nn.Module, adapters: Adapters, empty: bool = False) -> None:
    """Put new adapters on the layers of a model; with `empty` without memory, for a checkpoint to fill.

    Which weights are trained stays as it is. Adapters are trained. Raises MissingPackage without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingPackage("LoRA needs the package peft. Install it: pip install 'vilavt-toolkit[peft]'") from error
    learning = {id(weight): weight.requires_grad for weight in model.parameters()}
    places = _find_places(model, adapters.layers)
    # One call for either layout, since peft takes it from a setting of all layers.
    for is_conv1d in (False, True):
        names = [name for name in adapters.layers if _is_conv1d(model.get_submodule(name)) is is_conv1d]
        if not names:
            continue
        config = LoraConfig(
            r=adapters.rank,
            lora_alpha=cast(int, adapters.alpha),  # peft takes any number
            lora_dropout=adapters.dropout,
            use_rslora=adapters.rslora,
            # One expression, since of a list peft takes the endings of names too.
            target_modules="|".join(re.escape(name) for name in names),
            fan_in_fan_out=is_conv1d,
        )
        if not is_conv1d:
            config._register_custom_module({nn.Linear: _adapted_linear()})
        inject_adapter_in_model(config, model, _ADAPTER, low_cpu_mem_usage=empty)
        # peft's own mark, at which it would warn of the next adapters.
        vars(model).pop("peft_config", None)
    for name, parents in places.items():
        # peft replaces a layer at one place only.
        for parent, attribute in parents:
            setattr(parent, attribute, model.get_submodule(name))
    for weight in model.parameters():
        # peft freezes all else, which the recipe decides.
        weight.requires_grad_(learning.get(id(weight), True))
    if isinstance(model, VisualChatModel):
        model.adapters = adapters


def _find_places(model: nn.Module, names: Sequence[str]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return the modules that hold each layer, with the attribute, for layers that lie at several places."""
    wanted = {id(model.get_submodule(name)): name for name in names}
    found: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names}
    for parent in model.modules():
        for attribute, child in parent.named_children():
            if id(child) in wanted:
                found[wanted[id(child)]].append((parent, attribute))
    return {name: parents for name, parents in found.items() if len(parents) > 1}


@functools.cache
def _adapted_linear() -> type[nn.Module]:
    """Return the class of adapted linear layers; built here, since importing peft takes seconds."""
    from peft.tuners.lora import Linear

    class AdaptedLinear(Linear):
        """A linear layer with an adapter, whose `weight` has the adapter in it.

        Some blocks of timm and open_clip read the weight of a layer instead of calling it. With peft's own `weight`
        they would leave the adapter out, which then never gets a gradient.
        """

        @property
        def weight(self) -> Tensor:
            base = cast(Tensor, self.get_base_layer().weight)
            # A merged adapter is in the weight already.
            if self.disable_adapters or self.merged:
                return base
            delta: Tensor = self.get_delta_weight(_ADAPTER)
            return base + delta.to(base.dtype)

    return AdaptedLinear


def list_adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return the adapted layers of a model by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add the adapters of a model to the weights of their layers, and take them off; nothing if it has none."""
    for layer in list_adapted_layers(model).values():
        base = layer.get_base_layer()
        # In float32, so that weights in bfloat16 are rounded once. A new tensor: the old one may be mapped from a file.
        merged = base.weight.float() + layer.get_delta_weight(_ADAPTER).float()
        base.weight.data = merged.to(base.weight.dtype)
    remove_adapters(model)


def remove_adapters(model: nn.Module) -> None:
    """Take the adapters of a model off, as if they had never been there; nothing if it has none."""
    layers = {id(layer): layer.get_base_layer() for layer in list_adapted_layers(model).values()}
    for parent in list(model.modules()):
        for attribute, child in list(parent.named_children()):
            if id(child) in layers:
                setattr(parent, attribute, layers[id(child)])
    if isinstance(model, VisualChatModel):
        model.adapters = None


@contextmanager
def adapters_switched_off(model: VisualChatModel) -> Iterator[None]:
    """Let a model compute without its adapters in this block: the model that they were added to.

    Nothing is copied, so that this is a reference for reinforcement that takes no memory. Not for use between a forward
    pass and its backward pass.
    """
    layers = list_adapted_layers(model).values()
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
