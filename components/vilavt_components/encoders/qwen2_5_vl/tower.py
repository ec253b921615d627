"""The modules of Qwen2.5-VL's vision tower; what runs between them is the encoder's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.settings import setting

_EPS = 1e-6  # fixed in the model's code, in no checkpoint's configuration


@dataclass(frozen=True)
class QwenVisionConfig:
    """Shape of a Qwen2.5-VL vision tower, named as in its checkpoints; the defaults are those of the 7B model."""

    depth: int = setting(32, help="number of blocks", minimum=1)
    hidden_size: int = setting(1280, help="width of the tokens", minimum=1)
    intermediate_size: int = setting(3420, help="hidden width of the MLPs", minimum=1)
    num_heads: int = setting(16, help="attention heads", minimum=1)
    out_hidden_size: int = setting(3584, help="width of the merged features", minimum=1)
    patch_size: int = setting(14, help="pixels along a patch", minimum=1)
    temporal_patch_size: int = setting(2, help="frames in a patch; a single image is repeated", minimum=1)
    spatial_merge_size: int = setting(2, help="patches along the square that becomes one feature", minimum=1)
    window_size: int = setting(112, help="pixels along an attention window", minimum=1)
    fullatt_block_indexes: tuple[int, ...] = setting(
        (7, 15, 23, 31), help="blocks that attend over a whole temporal slice instead of windows"
    )
    initializer_range: float = setting(0.02, help="standard deviation of new weights", minimum=0)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def cell(self) -> int:
        """Pixels along the square that becomes one feature."""
        return self.patch_size * self.spatial_merge_size

    @property
    def window_side(self) -> int:
        """Cells along a window."""
        return self.window_size // self.cell

    def check(self) -> None:
        """Raise BadConfig where the numbers make no tower."""
        if self.hidden_size % (4 * self.num_heads):
            raise BadConfig(
                f"`hidden_size` {self.hidden_size} over {self.num_heads} heads is no multiple of 4, "
                "which positions along two axes need; change either."
            )
        if self.window_side < 1:
            raise BadConfig(
                f"`window_size` {self.window_size} is below one feature of {self.cell} pixels; set it to that or more."
            )
        beyond = [index for index in self.fullatt_block_indexes if not 0 <= index < self.depth]
        if beyond:
            raise BadConfig(
                f"`fullatt_block_indexes` names block {beyond[0]}; the {self.depth} blocks are 0 to {self.depth - 1}."
            )


class Attention(nn.Module):
    """Projections of one block's attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class Mlp(nn.Module):
    """Projections of a gated MLP; gate and up side by side, so that the tokens are read once for both."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden)
        self.down_proj = nn.Linear(hidden, width)


class Block(nn.Module):
    """Modules of one block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=_EPS)
        self.attn = Attention(width)
        self.norm2 = nn.RMSNorm(width, eps=_EPS)
        self.mlp = Mlp(width, hidden)


class PatchEmbed(nn.Module):
    """One linear map of the pixels of a patch, kept in the checkpoint's shape of a convolution."""

    def __init__(self, shape: QwenVisionConfig) -> None:
        super().__init__()
        kernel = (shape.temporal_patch_size, shape.patch_size, shape.patch_size)
        self.proj = nn.Conv3d(3, shape.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [S, 3 x frames x pixels] to tokens [S, D]."""
        weight = self.proj.weight
        patches = patches.to(weight.dtype)
        if patches.is_cpu:
            # As the paper's code does it: a matrix product adds 1,176 products in another order, and what that rounds
            # differently the blocks make larger. Several times slower, at some hundredths of the tower's cost.
            convolved: Tensor = self.proj(patches.view(-1, *weight.shape[1:]))
            return convolved.flatten(1)
        return F.linear(patches, weight.flatten(1))


class Merger(nn.Module):
    """Norm of the tokens, and an MLP that makes one feature of the tokens of a cell."""

    def __init__(self, shape: QwenVisionConfig) -> None:
        super().__init__()
        merged = shape.hidden_size * shape.spatial_merge_size**2
        self.ln_q = nn.RMSNorm(shape.hidden_size, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, shape.out_hidden_size))


class Tower(nn.Module):
    """All modules of the tower, the MLPs `hidden` wide."""

    def __init__(self, shape: QwenVisionConfig, hidden: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList([Block(shape.hidden_size, hidden) for _ in range(shape.depth)])
        self.merger = Merger(shape)

    def initialise(self, shape: QwenVisionConfig) -> None:
        """Draw new weights as transformers does; what pads the MLPs is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.normal_(module.weight, std=shape.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Mlp):
                _clear_padding(module, shape.intermediate_size)


def _clear_padding(mlp: Mlp, width: int) -> None:
    """Zero the units beyond `width`: they give nothing, and get no gradient."""
    hidden = mlp.down_proj.in_features
    nn.init.zeros_(mlp.gate_up.weight.view(2, hidden, -1)[:, width:])
    nn.init.zeros_(mlp.down_proj.weight[:, width:])
