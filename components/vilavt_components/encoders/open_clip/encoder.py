"""Encoder `open_clip`: the image towers of open_clip's models, its own vision transformers and timm's plain ones.

Read this file first. It finds out which kind of tower a model has, and passes every call on to `NativeTower`, or to
encoder `timm` or `timm_stages`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vilavt_components.common.open_clip import OpenClipModel, OpenClipSettings, resolve_model
from vilavt_components.encoders.open_clip.tower import NativeTower
from vilavt_components.encoders.open_clip.variants import TINY, small_models
from vilavt_components.encoders.timm.conversion import adapt_to_weights, to_timm_weights
from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_components.encoders.timm_stages.encoder import TimmStagesConfig, TimmStagesEncoder
from vilavt_toolkit.contracts import Attend, Crop, Encoder, Grid, SiteHook, View
from vilavt_toolkit.contracts.pixel_budget import PixelBudget, PixelBudgetConfig
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting

logger = logging.getLogger(__name__)

_Tower = NativeTower | TimmEncoder | TimmStagesEncoder
_CUSTOM_POOLS = ("abs_attn", "rot_attn")
_SMALL_BUDGET = PixelBudget(1024, 2048, max_scale=0.5)


@dataclass(frozen=True)
class OpenClipConfig(PixelBudgetConfig, OpenClipSettings):
    """Settings of the `open_clip` encoder; without `model`, `path` or `config` it is a small model at random."""

    features: Literal["patches", "projected", "queries"] = setting(
        "patches",
        help="features: the patches after the last norm, the patches projected into the space shared with texts, or "
        "the outputs of attentional pooling's queries",
    )


@encoders.register("open_clip", OpenClipConfig)
class OpenClipEncoder(Encoder):
    """The image tower of an open_clip model: CLIP, OpenCLIP, CoCa, SigLIP, EVA-CLIP, PE, MetaCLIP, MobileCLIP, ..."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        self.config = config
        self._clip = resolve_model(config)
        self.tower = _build_tower(self._clip, config)
        self.spec, self.has_shared_rotation = self.tower.spec, self.tower.has_shared_rotation
        self.no_compile_reason = self.tower.no_compile_reason

    @classmethod
    def tiny(cls) -> OpenClipConfig:
        """Return settings of two blocks of width 32 on 8-pixel patches."""
        return OpenClipConfig(config=dict(TINY), overview_pixels=1024, zoom_pixels=2048)

    @classmethod
    def variants(cls) -> Mapping[str, OpenClipConfig]:
        """Return settings of small models, one for each kind of block, pooling and features."""
        return {
            name: OpenClipConfig(config=config, features=features, overview_pixels=1024, zoom_pixels=2048)
            for name, (config, features) in small_models().items()
        }

    def prepare(self, crop: Crop) -> View:
        """Resize a crop uint8 [h, w, 3] within the pixel budget, to sides of whole tokens."""
        return self.tower.prepare(crop)

    def extent(self, view: View) -> Grid:
        """Return width and height of a view in pixels."""
        return self.tower.extent(view)

    def block_grid(self, index: int, size: Grid) -> Grid:
        """Return the grid after block `index`, which differs in a tower that runs in stages."""
        return self.tower.block_grid(index, size)

    def token_count(self, size: Grid) -> int:
        """Count the patches of the grid (h, w), and the tower's class and register tokens."""
        return self.tower.token_count(size)

    def feature_grid(self, size: Grid) -> Grid:
        """Return the grid of patches, or with `features: queries` the number of queries."""
        return self.tower.feature_grid(size)

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Embed the views, one batch per distinct size, and pack the tokens; R views -> x [S, D]."""
        return self.tower.embed(views, layout)

    def block(self, index: int, tokens: Tokens, site: SiteHook, attend: Attend) -> Tensor:
        """Run block `index` of the tower with a hook at every site; x [S, D] -> [S, D]."""
        return self.tower.block(index, tokens, site, attend)

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Return cosines and sines in block `index` at coordinates [N, 2]; for towers with RoPE."""
        return self.tower.rotation(index, positions)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys [N, H, d]; for towers with RoPE."""
        return self.tower.rotate(x, rotation)

    def position_stride(self, size: Grid) -> int:
        """Return the longer side of a region whose rotary coordinates count tokens, else 0."""
        return self.tower.position_stride(size)

    def readout(self, tokens: Tokens) -> Tensor:
        """Read out patches, projected patches or queries, as `features` says; [S, D] -> [F, D_out]."""
        return self.tower.readout(tokens)

    def check_weights(self) -> None:
        """Check that the weights of `path` exist; raises InputError."""
        self._clip.check_weights(self.config)

    def load_weights(self) -> None:
        """Load the image tower of the named weights; raises InputError."""
        if self._clip.find_weights is None:
            return
        tower = self.tower
        # open_clip wraps a tower of timm in a module with the head; the tower itself is its `trunk`.
        if isinstance(tower, NativeTower):
            prefix, unused, convert = "visual.", set(tower.unused_tensors), tower.convert_weights
        else:
            trunk = _build_trunk(self._clip)
            prefix, convert = "visual.trunk.", partial(to_timm_weights, whole=trunk)
            unused = set(trunk.state_dict()) - set(tower.model.state_dict())
        self._clip.load_weights_into(
            tower.model,
            lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None,
            unused.__contains__,
            convert,
        )


def _build_tower(clip: OpenClipModel, config: OpenClipConfig) -> _Tower:
    """Build the tower of a model; raises BadConfig for one that this encoder was not written for."""
    vision_config = clip.tower_config("vision_cfg")
    # It belongs to contrastive training. Here the language model expects a feature for every patch.
    if vision_config.pop("patch_dropout", None) and clip.is_from_user:
        logger.warning("`patch_dropout` of `vision_cfg` is not used: the language model needs every patch.")
    if vision_config.get("timm_model_name"):
        return _build_timm_tower(clip, config, vision_config)
    visual = clip.build_tower("vision", vision_config)
    native = math.prod(visual.image_size) if isinstance(visual.image_size, tuple) else visual.image_size**2
    usual = _SMALL_BUDGET if config.is_small else PixelBudget(native, native)
    return NativeTower(visual, config.features, config.pixel_budget(usual), clip.preprocessing)


def _build_timm_tower(clip: OpenClipModel, config: OpenClipConfig, vision_config: Mapping[str, Any]) -> _Tower:
    """Build encoder `timm` or `timm_stages` for a tower of timm, with open_clip's preprocessing; raises BadConfig."""
    name = str(vision_config["timm_model_name"])
    if config.features != "patches":
        raise BadConfig(
            f"`features: {config.features}` needs one of open_clip's own vision transformers, and the tower of "
            f"{clip.name} is timm's {name}. Take `features: patches`."
        )
    budget = {key: getattr(config, key) for key in ("overview_pixels", "zoom_pixels", "min_pixels", "max_scale")}
    args = _timm_arguments(clip, vision_config)
    # Towers of equal blocks are modulated inside their blocks, so they are tried first.
    try:
        tower: _Tower = TimmEncoder(TimmConfig(model=name, args=args, **budget))
    except BadConfig:
        try:
            tower = TimmStagesEncoder(TimmStagesConfig(model=name, args=args, **budget))
        except BadConfig as error:
            raise BadConfig(f"The image tower of {clip.name} is timm's {name}. {error}") from error
    if config.path is not None:
        adapt_to_weights(tower.model, Path(config.path))
    return tower


def _timm_arguments(clip: OpenClipModel, vision_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which open_clip's TimmModel builds its trunk."""
    args: dict[str, Any] = {
        "pretrained_cfg_overlay": {key: clip.preprocessing[key] for key in ("mean", "std", "interpolation")}
    }
    if vision_config.get("timm_drop_path") is not None:
        args["drop_path_rate"] = vision_config["timm_drop_path"]
    if (
        vision_config.get("timm_proj", "linear") not in ("linear", "mlp")
        and vision_config.get("timm_pool") not in _CUSTOM_POOLS
    ):
        # As open_clip's TimmModel does: without a projection of its own it hands its pooling to timm, which builds
        # `fc_norm` or `norm` by it. Otherwise timm keeps the pooling of the model's own configuration.
        args["global_pool"] = vision_config.get("timm_pool", "avg")
    return args


def _build_trunk(clip: OpenClipModel) -> Any:
    """Build timm's whole model as open_clip does, on the meta device, for its names and shapes."""
    vision_config = clip.tower_config("vision_cfg") | {"timm_model_pretrained": False}
    vision_config.pop("patch_dropout", None)
    with torch.device("meta"):
        return clip.build_tower("vision", vision_config).trunk
