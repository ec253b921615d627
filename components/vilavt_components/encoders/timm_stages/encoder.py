"""Encoder `timm_stages`: staged backbones of timm (ConvNeXt, Swin, ResNet, and most others), each stage a block.

Read this file first. A stage mixes tokens inside itself, by convolutions or windows, so it has no attention call and
one site only: its output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vilavt_components.common.library_errors import as_bad_config
from vilavt_components.encoders.image_encoder import ImageEncoder
from vilavt_components.encoders.timm.models import check_weights, load_weights, resolve_preprocessing
from vilavt_components.encoders.timm_stages.feature_maps import to_maps, to_tokens
from vilavt_components.encoders.timm_stages.models import StagedModel, build_on_meta, build_staged_model
from vilavt_components.encoders.timm_stages.variants import small_models
from vilavt_toolkit.contracts import Attend, BlockSpec, EncoderSpec, Grid, SiteHook
from vilavt_toolkit.contracts.encoder import Positions
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, PixelBudgetConfig, check_sides
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.packed.tokens import Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class TimmStagesConfig(PixelBudgetConfig):
    """Settings of the `timm_stages` encoder; without `model` a small ConvNeXt, for views of 32 x 32 pixels or so."""

    model: str | None = setting(None, help="timm model name, such as convnext_tiny.fb_in22k (null: a small ConvNeXt)")
    pretrained: bool = setting(False, help="load timm's weights of `model` when training starts", replaces=("path",))
    path: str | None = setting(
        None,
        help="local weights to load instead: .safetensors or a folder of some",
        formerly=("file",),
        is_path=True,
    )
    local_files_only: bool = setting(False, help="never download: take weights from the local cache")
    args: dict[str, Any] = setting(factory=dict, help="more arguments for timm.create_model")
    stages: int | None = setting(
        None,
        help="number of stages that are used, from the first (null: all). Each further stage halves the sides of the "
        "grid, and only with all stages do features get the model's own final norm",
        minimum=1,
    )


_SMALL = TimmStagesConfig(
    model="convnext_tiny",
    # Two of timm's four stages are used; the others are built and thrown away.
    args={"patch_size": 2, "depths": (2, 3, 1, 1), "dims": (64, 128, 8, 8), "ls_init_value": None},
    stages=2,
    overview_pixels=1024,
    zoom_pixels=2048,
    max_scale=0.5,
)


@encoders.register("timm_stages", TimmStagesConfig)
class TimmStagesEncoder(ImageEncoder):
    """A staged backbone of timm: ConvNeXt, Swin, ResNet, Hiera, FastViT, ...; its blocks are its stages.

    A stage offers one site, `block`: its output, as tokens of its own grid. BatchNorm keeps its running statistics, in
    training too, so that no region changes another's features; from random weights choose a norm that learns
    (`args: {norm_layer: groupnorm}`).
    """

    no_compile_reason = (
        "its stages run once for every distinct size of view, so that each set of sizes would be a graph of its own. "
        "Set `compile: false`."
    )

    def __init__(self, config: TimmStagesConfig) -> None:
        chosen = _fill_small_defaults(config)
        with as_bad_config(f"timm's '{chosen.model}' with these `args` has no stages", "Correct `args`."):
            staged = build_staged_model(str(chosen.model), chosen.args, chosen.stages)
        plan = staged.plan
        native = math.prod(plan.native)
        budget = chosen.pixel_budget(PixelBudget(native, native))
        stride = tuple(side // cells for side, cells in zip(plan.native, plan.maps[0].grid, strict=True))
        super().__init__((stride[0], stride[1]), 0, budget, resolve_preprocessing(staged.model))
        # Every stage must divide a view without remainder: timm pads or crops the rest, and a grid times its stride
        # would no longer be the view.
        self.side_multiple = plan.multiple
        self.config = chosen
        self.model = staged.model
        self._staged = staged
        self.spec = _encoder_spec(staged)
        if not plan.multiple:
            self._check_fixed_budget()

    @classmethod
    def tiny(cls) -> TimmStagesConfig:
        """Return settings of two ConvNeXt stages of width 16 and 24."""
        return _small_variants()["convnext"]

    @classmethod
    def variants(cls) -> Mapping[str, TimmStagesConfig]:
        """Return settings of small models of every family."""
        return {name: config for name, config in _small_variants().items() if name != "convnext"}

    def train(self, mode: bool = True) -> TimmStagesEncoder:
        """Set training mode everywhere but in BatchNorm, whose running statistics do not change."""
        super().train(mode)
        # In training mode a BatchNorm would mix all regions of a batch, across inquiry groups and dialogues.
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def view_size(self, width: int, height: int, budget: PixelBudget, overview: bool) -> tuple[int, int]:
        """Return the size (width, height) of the view of a crop: within the budget, or the model's only one."""
        if self._staged.plan.multiple:
            return super().view_size(width, height, budget, overview)
        check_sides(width, height)
        rows, columns = self._staged.plan.native
        limit = budget.overview if overview else budget.zoom
        if limit is not None and limit < rows * columns:
            raise InputError(
                f"the sample's max_pixels of {int(limit)} is less than the {columns} x {rows} pixels of every view of "
                f"'{self.config.model}'. Set it to {rows * columns} or more."
            )
        return columns, rows

    def view_grid(self, width: int, height: int) -> Grid:
        """Return the grid of the first maps of a view."""
        plan = self._staged.plan
        return super().view_grid(width, height) if plan.multiple else plan.maps[0].grid

    def block_grid(self, index: int, size: Grid) -> Grid:
        """Return the grid of the maps after stage `index`."""
        plan = self._staged.plan
        return plan.scale_grid(size, plan.maps[0], plan.maps[index + 1])

    def feature_grid(self, size: Grid) -> Grid:
        """Return the grid of the features."""
        plan = self._staged.plan
        return plan.scale_grid(size, plan.maps[0], plan.features)

    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """Compute the stem's maps of n images of one size; uint8 [n, 3, h, w] -> [n, patches, D]."""
        return self._staged.run_stem(self.normalise_pixels(images, next(self.model.parameters()))).flatten(1, 2)

    def block(self, index: int, tokens: Tokens, site: SiteHook, attend: Attend) -> Tensor:
        """Run timm's stage `index`, with site block; x [S, D] -> [S', D']."""
        maps = [self._staged.run_stage(index, each) for each in to_maps(tokens.x, tokens.layout)]
        y = to_tokens(maps, tokens.layout)
        # x is y at this site, as the contract asks of a block that changes the grid: the rows of its input stand for
        # other places than those of its output, so a modulator could not combine the two.
        return site("block", y, y)

    def readout(self, tokens: Tokens) -> Tensor:
        """Return the last stage's maps after what the model itself does to them before it pools; [S, D] -> [F, D].

        That is a final norm, a convolution or nothing. A norm that timm applies to pooled features (a plain ConvNeXt's)
        is applied to every feature. If not all stages are used, nothing follows.
        """
        maps = to_maps(tokens.x, tokens.layout)
        return to_tokens([self._staged.run_tail(each) for each in maps], tokens.layout)

    def check_weights(self) -> None:
        """Check that the file `path` exists, if it is set; raises InputError."""
        check_weights(self.config)

    def load_weights(self) -> None:
        """Load `path`, or timm's pretrained weights of `model`; raises InputError."""
        whole = build_on_meta(str(self.config.model), self.config.args)
        load_weights(self.model, self.config, whole)

    def _check_fixed_budget(self) -> None:
        rows, columns = self._staged.plan.native
        for key in ("overview_pixels", "zoom_pixels"):
            limit = getattr(self.config, key)
            if limit is not None and limit < rows * columns:
                raise BadConfig(
                    f"'{self.config.model}' takes views of {columns} x {rows} pixels only, which is more than "
                    f"`{key}` {limit}. Set it to {rows * columns}, or leave it out."
                )


def _fill_small_defaults(config: TimmStagesConfig) -> TimmStagesConfig:
    """Return the settings, completed by those of the small model if they name none."""
    if config.model is not None:
        return config
    for key, value in (("pretrained", config.pretrained), ("path", config.path)):
        if value:
            raise BadConfig(f"`{key}` needs `model`, the architecture of the weights. Set `model` too.")
    # `args` add to those of the small model, so that `args: {drop_path_rate: 0.1}` alone works.
    return replace(
        config,
        model=_SMALL.model,
        args=_SMALL.args | config.args,
        stages=config.stages or _SMALL.stages,
        overview_pixels=config.overview_pixels or _SMALL.overview_pixels,
        zoom_pixels=config.zoom_pixels or _SMALL.zoom_pixels,
        max_scale=_SMALL.max_scale if config.max_scale is None else config.max_scale,
    )


def _encoder_spec(staged: StagedModel) -> EncoderSpec:
    reason = "a stage holds blocks of its own, and takes no keys from outside."
    widths = [each.width for each in staged.plan.maps[1:]]
    return EncoderSpec(
        modality="image",
        blocks=tuple(BlockSpec(width, {"block": width}, no_context_reason=reason) for width in widths),
        out_width=staged.plan.features.width,
        positions=_find_positions(staged.model),
    )


def _find_positions(model: nn.Module) -> Positions:
    """Tell by the names of its weights how a model knows where a token lies."""
    names = " ".join(name for name, _ in [*model.named_parameters(), *model.named_buffers()])
    if re.search(r"rel(ative)?_pos|attention_bias", names):
        return "relative"
    return "absolute" if re.search(r"pos(ition)?_embed", names) else "none"


def _small_variants() -> dict[str, TimmStagesConfig]:
    return {
        name: TimmStagesConfig(model=model, args=args, stages=stages, overview_pixels=1024, zoom_pixels=2048)
        for name, (model, args, stages) in small_models().items()
    }
