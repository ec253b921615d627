"""Staged backbones of timm: ConvNeXt, Swin and ResNet, each stage a block whose output is tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vilavt_components.encoders.image_encoder import ImageEncoder
from vilavt_components.encoders.timm.models import check_weights, data_config, load_weights
from vilavt_components.encoders.timm_stages.feature_maps import to_maps, to_tokens
from vilavt_components.encoders.timm_stages.models import Staged, build_staged
from vilavt_components.encoders.timm_stages.variants import variants
from vilavt_toolkit.contracts import At, Attend, BlockSpec, EncoderSpec, Grid
from vilavt_toolkit.contracts.pixel_budget import PixelBudget
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting


@dataclass(frozen=True)
class TimmStagesConfig:
    """Settings of the `timm_stages` encoder; without `model` a small ConvNeXt, for views of 32 x 32 pixels or so."""

    model: str | None = setting(None, help="timm model name, such as convnext_tiny.fb_in22k; null: a small ConvNeXt")
    pretrained: bool = setting(False, help="load timm's weights of `model` when training starts", replaces=("file",))
    file: str | None = setting(None, help="local weights (.safetensors) to load instead")
    local_files_only: bool = setting(False, help="never download: take weights from the local cache")
    args: dict[str, Any] = setting(factory=dict, help="more arguments for timm.create_model")
    stages: int | None = setting(
        None,
        help="how many stages are used, from the first: each one more halves the sides of the grid; null: all. "
        "Features get the model's own final norm only where all are",
        minimum=1,
    )
    overview_pixels: int | None = setting(
        None, help="most pixels of the first view of an image; null: those of the model's input", minimum=1
    )
    zoom_pixels: int | None = setting(
        None, help="most pixels of the view of a region; null: those of the model's input", minimum=1
    )
    min_pixels: int = setting(0, help="fewest pixels of a view; small regions are enlarged to have them", minimum=0)
    max_scale: float | None = setting(
        None,
        help="most view pixels along one original pixel of a region; the first view is not enlarged; null: 2, and 0.5 "
        "without `model`",
        minimum=0.01,
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
    """A staged backbone of timm: ConvNeXt, Swin, ResNet and their kin; its blocks are its stages.

    A stage offers one site, `block`: its output, as tokens of its own grid. BatchNorm keeps its running statistics, in
    training too, so that no region changes another's features; from random weights choose a norm that learns
    (`args: {norm_layer: groupnorm}`).
    """

    compile_refused = (
        "its stages run once for every distinct size of view, so that each set of sizes would be a graph of its own; "
        "set `compile: false`."
    )

    def __init__(self, config: TimmStagesConfig) -> None:
        chosen = _chosen(config)
        staged = build_staged(str(chosen.model), chosen.args, chosen.stages)
        data = data_config(staged.model)
        native = math.prod(_native(staged.model, data))
        budget = PixelBudget(
            chosen.overview_pixels or native,
            chosen.zoom_pixels or native,
            chosen.min_pixels,
            2.0 if chosen.max_scale is None else chosen.max_scale,
        )
        super().__init__((staged.stem_stride, staged.stem_stride), 0, budget, data)
        # All stages divide a view without remainder, or grids would say less than they seem to.
        self.multiple = staged.strides[-1]
        self.config = chosen
        self.model = staged.model
        self._staged = staged
        self.spec = _spec(staged)

    @classmethod
    def tiny(cls) -> TimmStagesConfig:
        """Return settings of two ConvNeXt stages of width 16 and 24."""
        return _small_variants()["convnext"]

    @classmethod
    def variants(cls) -> Mapping[str, TimmStagesConfig]:
        """Return settings of small models of every family."""
        return {name: config for name, config in _small_variants().items() if name != "convnext"}

    def train(self, mode: bool = True) -> TimmStagesEncoder:
        """Set training mode everywhere but in BatchNorm, whose statistics stay as they are."""
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def block_grid(self, index: int, size: Grid) -> Grid:
        """The grid of the maps behind stage `index`."""
        factor = self._staged.strides[index] // self._staged.stem_stride
        return tuple(side // factor for side in size)

    def grid(self, size: Grid) -> Grid:
        """The grid of the last stage's maps."""
        return self.block_grid(self.spec.depth - 1, size)

    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """uint8 [n, 3, h, w] -> [n, patches, D], the stem's maps."""
        return self._staged.stem(self.pixels(images, next(self.model.parameters()))).flatten(1, 2)

    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run timm's stage `index`; x [S, D] -> [S', D']."""
        y = self._over_maps(self._staged.stages[index], tokens)
        return at("block", y, y)

    def readout(self, tokens: Tokens) -> Tensor:
        """The last stage's maps; [S, D] -> [F, D]. With all stages used, behind the model's own final norm.

        Models that pool before their norm (a plain ConvNeXt) get that norm on every feature; ResNets have none.
        """
        for norm in self._staged.norms:
            tokens = tokens.with_x(self._over_maps(norm, tokens))
        return tokens.x

    def check_weights(self) -> None:
        """Hold that `file` is there; raises InputError."""
        check_weights(self.config)

    def load_weights(self) -> None:
        """Load `file`, or timm's pretrained weights of `model`; raises InputError."""
        load_weights(self.model, self.config, self._staged.unused, self._staged.family.wanted)

    def _over_maps(self, part: nn.Module, tokens: Tokens) -> Tensor:
        maps = to_maps(tokens.x, tokens.layout)
        return to_tokens([self._staged.run(part, each) for each in maps], tokens.layout)


def _chosen(config: TimmStagesConfig) -> TimmStagesConfig:
    """The settings, those of the small model filled in where no model is named."""
    if config.model is not None:
        return config
    for key, value in (("pretrained", config.pretrained), ("file", config.file)):
        if value:
            raise BadConfig(f"`{key}` needs `model`: it says which architecture the weights are of.")
    return replace(
        config,
        model=_SMALL.model,
        args=_SMALL.args | config.args,
        stages=config.stages or _SMALL.stages,
        overview_pixels=config.overview_pixels or _SMALL.overview_pixels,
        zoom_pixels=config.zoom_pixels or _SMALL.zoom_pixels,
        max_scale=_SMALL.max_scale if config.max_scale is None else config.max_scale,
    )


def _native(model: Any, data: Mapping[str, Any]) -> tuple[int, ...]:
    """Sides of the input that the model is for, in pixels."""
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return tuple(own if own is not None else data["input_size"][1:])


def _spec(staged: Staged) -> EncoderSpec:
    refused = "a stage holds blocks of its own, and takes no keys from outside."
    return EncoderSpec(
        modality="image",
        blocks=tuple(BlockSpec(width, {"block": width}, context_refused=refused) for width in staged.widths),
        out_width=staged.widths[-1],
        positions=staged.family.positions,
    )


def _small_variants() -> dict[str, TimmStagesConfig]:
    return {
        name: TimmStagesConfig(model=model, args=args, stages=stages, overview_pixels=1024, zoom_pixels=2048)
        for name, (model, args, stages) in variants().items()
    }
