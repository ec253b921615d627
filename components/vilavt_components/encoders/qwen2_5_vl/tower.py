"""The modules of Qwen2.5-VL's vision tower. They hold weights; `Qwen25VLEncoder` runs them, with hooks in between."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.settings import setting

# Fixed in the model's code; no checkpoint's configuration says it.
_EPS = 1e-6


@dataclass(frozen=True)
class QwenVisionConfig:
    """Shape of a Qwen2.5-VL vision tower, named as in its checkpoints; the defaults are those of the 7B model."""

    depth: int = setting(32, help="number of blocks", minimum=1)
    hidden_size: int = setting(1280, help="width of the tokens", minimum=1)
    intermediate_size: int = setting(3420, help="hidden width of the MLPs", minimum=1)
    num_heads: int = setting(16, help="attention heads", minimum=1)
    out_hidden_size: int = setting(3584, help="width of the merged features", minimum=1)
    patch_size: int = setting(14, help="pixels along a patch", minimum=1)
    temporal_patch_size: int = setting(2, help="frames in a patch (a single image is repeated)", minimum=1)
    spatial_merge_size: int = setting(2, help="patches along the square that becomes one feature", minimum=1)
    window_size: int = setting(112, help="pixels along an attention window", minimum=1)
    fullatt_block_indexes: tuple[int, ...] = setting(
        (7, 15, 23, 31), help="blocks that attend over a whole temporal slice instead of windows"
    )
    initializer_range: float = setting(0.02, help="standard deviation of new weights", minimum=0)

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def cell(self) -> int:
        """Return the pixels along the square that becomes one feature."""
        return self.patch_size * self.spatial_merge_size

    @property
    def window_side(self) -> int:
        """Return the number of cells along a window."""
        return self.window_size // self.cell

    def check_shape(self) -> None:
        """Raise BadConfig for numbers that make no tower."""
        # RoPE splits a head into rows and columns, and each of these into pairs of channels.
        if self.hidden_size % (4 * self.num_heads):
            raise BadConfig(
                f"`hidden_size` {self.hidden_size} over {self.num_heads} heads is no multiple of 4, which RoPE along "
                f"two axes needs. Set `hidden_size` to a multiple of {4 * self.num_heads}."
            )
        if self.window_side < 1:
            raise BadConfig(
                f"`window_size` {self.window_size} is below one feature of {self.cell} pixels. Set it to {self.cell} "
                "or more."
            )
        beyond = [index for index in self.fullatt_block_indexes if not 0 <= index < self.depth]
        if beyond:
            raise BadConfig(f"`fullatt_block_indexes` names block {beyond[0]}. Name blocks from 0 to {self.depth - 1}.")


class Attention(nn.Module):
    """The projections of one block's attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class Mlp(nn.Module):
    """The projections of a gated MLP; gate and up side by side, so that one matrix product does both."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden)
        self.down_proj = nn.Linear(hidden, width)


class RMSNorm(nn.RMSNorm):
    """A norm that runs as one kernel, also where its weight and the tokens are of different types."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise tokens [S, D] in float32 and return them in their own type."""
        # Autocast casts the weights of linear layers and not this one, and the kernel wants one type. Rollouts hold it
        # in their own type, so that both stages compute the same.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """The modules of one block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, eps=_EPS)
        self.attn = Attention(width)
        self.norm2 = RMSNorm(width, eps=_EPS)
        self.mlp = Mlp(width, hidden)


class PatchEmbed(nn.Module):
    """A linear map of the pixels of a patch, stored as the convolution that it is in checkpoints."""

    def __init__(self, shape: QwenVisionConfig) -> None:
        super().__init__()
        kernel = (shape.temporal_patch_size, shape.patch_size, shape.patch_size)
        self.proj = nn.Conv3d(3, shape.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches; [S, 3 x frames x pixels] -> [S, D]."""
        weight = self.proj.weight
        patches = patches.to(weight.dtype)
        if patches.is_cpu:
            # The convolution of the paper's code: a matrix product would add the 1,176 products in another order, and
            # the blocks enlarge the difference in rounding. Several times slower, but a few hundredths of the tower.
            convolved: Tensor = self.proj(patches.view(-1, *weight.shape[1:]))
            return convolved.flatten(1)
        return F.linear(patches, weight.flatten(1))


class Merger(nn.Module):
    """A norm of the tokens, and an MLP that makes one feature of the tokens of a cell."""

    def __init__(self, shape: QwenVisionConfig) -> None:
        super().__init__()
        merged = shape.hidden_size * shape.spatial_merge_size**2
        self.ln_q = RMSNorm(shape.hidden_size, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, shape.out_hidden_size))


class Tower(nn.Module):
    """All modules of the tower, with MLPs of width `hidden`."""

    def __init__(self, shape: QwenVisionConfig, hidden: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList([Block(shape.hidden_size, hidden) for _ in range(shape.depth)])
        self.merger = Merger(shape)

    def init_weights(self, shape: QwenVisionConfig) -> None:
        """Draw new weights as transformers does, and set the padding of the MLPs to zero."""
        # `modules` gives an MLP before its linear layers, so that clearing in the same loop would be drawn over.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.normal_(module.weight, std=shape.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Mlp):
                _clear_padding(module, shape.intermediate_size)


def _clear_padding(mlp: Mlp, width: int) -> None:
    """Set the units beyond `width` to zero: they add nothing, and their weights get no gradient."""
    # A unit is silu(gate) * up, which is 0 here, so its column in `down_proj` gets no gradient; and since that column
    # is 0, neither do its rows in `gate_up`.
    hidden = mlp.down_proj.in_features
    nn.init.zeros_(mlp.gate_up.weight.view(2, hidden, -1)[:, width:])
    nn.init.zeros_(mlp.down_proj.weight[:, width:])
