"""The image towers of open_clip's models: its own vision transformers, and timm's plain ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vilavt_components.common.open_clip import OpenClipModel, OpenClipSettings, resolve
from vilavt_components.encoders.open_clip.tower import NativeTower
from vilavt_components.encoders.open_clip.variants import TINY, variants
from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_toolkit.contracts import At, Attend, Crop, Encoder, Grid, View
from vilavt_toolkit.contracts.pixel_budget import PixelBudget
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.settings import setting

_MAX_SCALE = 2.0
_CUSTOM_POOLS = ("abs_attn", "rot_attn")
_SMALL_BUDGET = (1024, 2048, 0.5)
"""Overview and zoom pixels, and scale, of the small model."""


@dataclass(frozen=True)
class OpenClipConfig(OpenClipSettings):
    """Settings of the `open_clip` encoder; without `model`, `file` or `config` it is a small model at random."""

    features: Literal["patches", "projected", "queries"] = setting(
        "patches",
        help="the patches after the last norm; those in the space shared with texts; or what attentional pooling asks",
    )
    overview_pixels: int | None = setting(
        None, help="most pixels of the first view of an image; null: those of the model's image_size", minimum=1
    )
    zoom_pixels: int | None = setting(
        None, help="most pixels of the view of a region; null: those of the model's image_size", minimum=1
    )
    min_pixels: int = setting(0, help="fewest pixels of a view; small regions are enlarged to have them", minimum=0)
    max_scale: float | None = setting(
        None,
        help="most view pixels along one original pixel of a region; the first view is not enlarged; null: 2",
        minimum=0.01,
    )


@encoders.register("open_clip", OpenClipConfig)
class OpenClipEncoder(Encoder):
    """The image tower of an open_clip model: CLIP, OpenCLIP, CLIPA, CoCa, SigLIP, EVA-CLIP, PE, MetaCLIP."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        self.config = config
        self._origin = resolve(config)
        self.tower = _tower(self._origin, config)
        self.spec, self.same_rotation = self.tower.spec, self.tower.same_rotation

    @classmethod
    def tiny(cls) -> OpenClipConfig:
        """Return settings of two blocks of width 32 on 8-pixel patches."""
        return OpenClipConfig(config=dict(TINY), overview_pixels=1024, zoom_pixels=2048)

    @classmethod
    def variants(cls) -> Mapping[str, OpenClipConfig]:
        """Return settings of small models, one for each kind of block, pooling and features."""
        return {
            name: OpenClipConfig(config=config, features=features, overview_pixels=1024, zoom_pixels=2048)
            for name, (config, features) in variants().items()
        }

    def prepare(self, crop: Crop) -> View:
        """Resize a crop uint8 [h, w, 3] within the pixel budget, to whole tokens."""
        return self.tower.prepare(crop)

    def tokens(self, size: Grid) -> int:
        """Patches of the grid (h, w), and the tower's class and register tokens."""
        return self.tower.tokens(size)

    def grid(self, size: Grid) -> Grid:
        """The grid of patches, or the number of queries with `features: queries`."""
        return self.tower.grid(size)

    def embed(self, views: Sequence[View], layout: Layout) -> Tokens:
        """Patches, positions and class token, one batch per distinct size; R views -> x [S, D]."""
        return self.tower.embed(views, layout)

    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run block `index` with its parts in the open; x [S, D] -> [S, D]."""
        return self.tower.block(index, tokens, at, attend)

    def rotation(self, index: int, positions: Tensor) -> Tensor:
        """Cosines and sines in block `index` at coordinates [N, 2], of towers with rotary positions."""
        return self.tower.rotation(index, positions)

    def rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys [N, H, d], of towers with rotary positions."""
        return self.tower.rotate(x, rotation)

    def room(self, size: Grid) -> int:
        """The longer side of a region whose rotary coordinates count tokens; else 0."""
        return self.tower.room(size)

    def readout(self, tokens: Tokens) -> Tensor:
        """The patches, or what `features` says, after the last norm; [S, D] -> [F, D_out]."""
        return self.tower.readout(tokens)

    def check_weights(self) -> None:
        """Hold that the weights of `file` are there; raises InputError."""
        self._origin.check_weights(self.config)

    def load_weights(self) -> None:
        """Load the image tower of the named weights; raises InputError."""
        if self._origin.find_weights is None:
            return
        prefix = "visual." if isinstance(self.tower, NativeTower) else "visual.trunk."
        unused = self.tower.unused if isinstance(self.tower, NativeTower) else _unused(self._origin, self.tower)
        self._origin.fill(
            self.tower.model,
            lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None,
            unused.__contains__,
        )


def _tower(origin: OpenClipModel, config: OpenClipConfig) -> NativeTower | TimmEncoder:
    """Build the tower of a model; raises BadConfig for one that this encoder was not written for."""
    part = origin.section("vision_cfg")
    if part.get("patch_dropout") and origin.own:
        raise BadConfig(
            "`patch_dropout` leaves out patches in training, and each is a feature that the language model was "
            "promised; leave it out of `vision_cfg`."
        )
    # Weights do not depend on it; only contrastive training does.
    part.pop("patch_dropout", None)
    if part.get("timm_model_name"):
        return _timm_tower(origin, config, part)
    small = _SMALL_BUDGET if config.is_small else (None, None, _MAX_SCALE)
    visual = origin.build("vision", part)
    native = math.prod(visual.image_size) if isinstance(visual.image_size, tuple) else visual.image_size**2
    budget = PixelBudget(
        config.overview_pixels or small[0] or native,
        config.zoom_pixels or small[1] or native,
        config.min_pixels,
        small[2] if config.max_scale is None else config.max_scale,
    )
    return NativeTower(visual, config.features, budget, origin.preprocessing)


def _timm_tower(origin: OpenClipModel, config: OpenClipConfig, part: Mapping[str, Any]) -> TimmEncoder:
    """The trunk of a tower that is timm's, with open_clip's preprocessing; raises BadConfig."""
    name = part["timm_model_name"]
    if config.features != "patches":
        raise BadConfig(
            f"`features: {config.features}` are of open_clip's own vision transformers; the tower of {origin.name} is "
            f"timm's {name}, so take `patches`."
        )
    args: dict[str, Any] = {
        "pretrained_cfg_overlay": {key: origin.preprocessing[key] for key in ("mean", "std", "interpolation")}
    }
    if part.get("timm_drop_path") is not None:
        args["drop_path_rate"] = part["timm_drop_path"]
    if part.get("timm_proj", "linear") not in ("linear", "mlp") and part.get("timm_pool") not in _CUSTOM_POOLS:
        # Where timm's own head projects, open_clip says at once how it pools; that decides which norm timm builds.
        args["global_pool"] = part.get("timm_pool", "avg")
    settings = TimmConfig(
        model=name,
        args=args,
        overview_pixels=config.overview_pixels,
        zoom_pixels=config.zoom_pixels,
        min_pixels=config.min_pixels,
        max_scale=_MAX_SCALE if config.max_scale is None else config.max_scale,
    )
    try:
        return TimmEncoder(settings)
    except BadConfig as error:
        raise BadConfig(
            f"The image tower of {origin.name} is timm's {name}, which encoder `timm` does not take, so name one "
            f"with a plain vision transformer (ViT-B-32, ViT-B-16-SigLIP, EVA02-B-16, ...): {error}"
        ) from error


def _unused(origin: OpenClipModel, tower: TimmEncoder) -> set[str]:
    """Tensors that open_clip's trunk has beside those of the encoder: timm's heads."""
    part = origin.section("vision_cfg") | {"timm_model_pretrained": False}
    with torch.device("meta"):
        trunk = origin.build("vision", part).trunk
    return set(trunk.state_dict()) - set(tower.model.state_dict())
