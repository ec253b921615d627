"""timm's staged models: built, cut to the modules that are used, and run stage by stage on maps."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_components.encoders.timm.models import build_by_name, is_plain, resolve_preprocessing
from vilavt_components.encoders.timm_stages.plan import Maps, StagePlan, find_multiple, plan_stages
from vilavt_toolkit.contracts import Grid
from vilavt_toolkit.errors import BadConfig

_ends_at_first_stage: ContextVar[bool] = ContextVar("_ends_at_first_stage", default=False)


@dataclass(frozen=True)
class StagedModel:
    """A model whose first stages are used."""

    model: Any
    plan: StagePlan

    def run_stem(self, pixels: Tensor) -> Tensor:
        """Compute the first maps; pixels [n, 3, h, w] -> [n, h', w', D]."""
        first, size = self.plan.maps[0], (pixels.shape[2], pixels.shape[3])
        grid = tuple(a * b // c for a, b, c in zip(size, first.grid, self.plan.native, strict=True))
        # timm's own forward pass as far as the first stage, whose input the hook hands out.
        with _ending_at_first_stage():
            try:
                self.model.forward_features(pixels)
            except _FirstStage as reached:
                return self._to_maps(reached.maps, first, grid)
        raise RuntimeError("The forward pass of timm's model never came to its first stage.")

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Run stage `index` on maps; [n, h, w, D] -> [n, h', w', D']."""
        return self._run(self.plan.stages[index], maps, self.plan.maps[index], self.plan.maps[index + 1])

    def run_tail(self, maps: Tensor) -> Tensor:
        """Run what follows the last stage; [n, h, w, D] -> [n, h', w', D']."""
        return self._run(self.plan.tail, maps, self.plan.maps[-1], self.plan.features) if self.plan.tail else maps

    def _run(self, names: Collection[str], maps: Tensor, before: Maps, after: Maps) -> Tensor:
        grid = self.plan.scale_grid((maps.shape[1], maps.shape[2]), before, after)
        x = self._from_maps(maps, before)
        # By name, so that a copy of the encoder runs its own modules.
        for name in names:
            x = self.model.get_submodule(name)(x)
        return self._to_maps(x, after, grid)

    def _from_maps(self, maps: Tensor, form: Maps) -> Tensor:
        """Lay maps [n, h, w, D] as the next module takes them."""
        # Maps between stages are [n, h, w, D], the order of packed tokens. To a convolution these strides are the
        # memory format channels_last, which its kernels take as it is: nothing is copied here.
        if form.axes == "nchw":
            x = maps.permute(0, 3, 1, 2)
            return x.contiguous() if self.plan.copies_maps else x
        if form.axes == "nhwc":
            return maps
        x = maps.flatten(1, 2)
        return x if form.block is None else x.index_select(1, self._token_order(x, form.block).argsort())

    def _to_maps(self, x: Tensor, form: Maps, grid: Grid) -> Tensor:
        """Return the maps [n, h, w, D] that a module gave."""
        if form.axes == "nchw":
            return x.permute(0, 2, 3, 1)
        if form.axes == "nhwc":
            return x
        x = x if form.block is None else x.index_select(1, self._token_order(x, form.block))
        return x.reshape(len(x), *grid, x.shape[-1])

    def _token_order(self, x: Tensor, block: int) -> Tensor:
        """Return the place of every cell of the grid, row after row, in the model's own order of tokens; [L]."""
        places = torch.arange(x.shape[1], device=x.device).view(1, -1, 1)
        order: Tensor = self.model.reroll(places, block).flatten()
        return order


class _FirstStage(Exception):
    """Carries the input of the first stage out of timm's forward pass."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps


@contextlib.contextmanager
def _ending_at_first_stage() -> Iterator[None]:
    token = _ends_at_first_stage.set(True)
    try:
        yield
    finally:
        _ends_at_first_stage.reset(token)


def _hand_out_first_maps(module: nn.Module, given: tuple[Tensor, ...]) -> None:
    # A context variable, so that a stage that another thread runs meanwhile is not ended.
    if _ends_at_first_stage.get():
        raise _FirstStage(given[0])


# By name, arguments and stages: to watch a large model takes a second, and recipes and tests build the same ones.
_plans: dict[tuple[str, str, int | None], StagePlan] = {}


def build_staged_model(name: str, args: Mapping[str, Any], stages: int | None) -> StagedModel:
    """Build timm's model without weights, cut after `stages` stages (None: all); raises BadConfig."""
    key = (name, repr(sorted(args.items())), stages)
    if key not in _plans:
        _plans[key] = _make_plan(name, args, stages)
    return _cut_model(build_whole(name, args), _plans[key])


def build_on_meta(name: str, args: Mapping[str, Any]) -> Any:
    """Build timm's whole model, with its classifier, on the meta device, for its names and shapes."""
    with torch.device("meta"):
        return build_whole(name, args)


def build_whole(name: str, args: Mapping[str, Any]) -> Any:
    """Build timm's whole model without weights, without its checks of the input size; raises BadConfig."""
    # YAML has no tuples.
    model = build_by_name(
        name, {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    )
    for module in model.modules():
        # Only timm's checks of the input size, and a Swin's mask for one size, stand in the way of others.
        if hasattr(module, "strict_img_size"):
            module.strict_img_size = False
        if hasattr(module, "dynamic_mask") and hasattr(module, "attn_mask"):
            module.dynamic_mask, module.attn_mask = True, None
        # Between stages maps are views of packed tokens, which no activation may overwrite.
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    return model


@torch.enable_grad()
def _make_plan(name: str, args: Mapping[str, Any], stages: int | None) -> StagePlan:
    """Plan a model on the meta device, where nothing is computed; raises BadConfig."""
    model = build_on_meta(name, args).eval()
    if is_plain(model):
        raise BadConfig(
            f"Model '{name}' is a plain vision transformer ({type(model).__name__}), and encoder 'timm_stages' runs "
            "models in stages. Take encoder `timm` for it."
        )
    plan = plan_stages(model, name, native_size(model, args), stages)
    staged = _cut_model(model, plan)
    # Of the cut model, since the stages that it has not may need larger views.
    plan = replace(plan, multiple=find_multiple(model, plan))
    model.train().eval()  # what some models have computed of their weights without a gradient is forgotten
    try:
        output = _run_on_meta(replace(staged, plan=plan))
    except RuntimeError:
        # Some modules take `view` of maps, which works in one memory order only.
        plan = replace(plan, copies_maps=True)
        output = _run_on_meta(replace(staged, plan=plan))
    # Weights that the maps do not depend on, such as a class token that joins after the last stage.
    torch.autograd.backward(output.sum())
    idle = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    return replace(plan, idle=tuple(idle))


def _run_on_meta(staged: StagedModel) -> Tensor:
    x = staged.run_stem(torch.zeros(2, 3, *staged.plan.native, device="meta"))
    for index in range(len(staged.plan.stages)):
        x = staged.run_stage(index, x)
    return staged.run_tail(x)


def native_size(model: Any, args: Mapping[str, Any]) -> Grid:
    """Return height and width in pixels of the images that the model was made for."""
    # A model may be built for another size (`args: {img_size: ...}`), which timm's preprocessing does not know.
    own = getattr(getattr(model, "patch_embed", None), "img_size", None) or args.get("img_size")
    size = own if own is not None else resolve_preprocessing(model)["input_size"][1:]
    return (size, size) if isinstance(size, int) else tuple(size)


def _cut_model(model: Any, plan: StagePlan) -> StagedModel:
    """Remove what the plan does not use, or it would be saved, and counted among the weights that learn."""

    def cut(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            # What has no weights may still be used by other ways than a call, and costs nothing.
            if path in plan.used or not child.state_dict():
                continue
            if any(used.startswith(f"{path}.") for used in plan.used):
                cut(child, f"{path}.")
            else:
                setattr(module, name, nn.Identity())

    cut(model, "")
    for path in plan.idle:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, None)
    first = model.get_submodule(plan.stages[0][0])
    if not first._forward_pre_hooks:
        first.register_forward_pre_hook(_hand_out_first_maps)
    return StagedModel(model, plan)
