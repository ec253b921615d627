"""open_clip's own vision transformer as an encoder: its embedding, its blocks, and what is read out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_components.encoders.image_encoder import ImageEncoder
from vilavt_components.encoders.open_clip.blocks import block_spec, check_block, run_block
from vilavt_toolkit.contracts import At, Attend, EncoderSpec, Grid
from vilavt_toolkit.contracts.pixel_budget import PixelBudget
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.attention import attend_inquiry
from vilavt_toolkit.packed.tokens import Layout, Tokens

Features = Literal["patches", "projected", "queries"]


class NativeTower(ImageEncoder):
    """The VisionTransformer that open_clip built, `visual`, without the parts that `features` do not need."""

    def __init__(self, visual: Any, features: Features, budget: PixelBudget, data: Mapping[str, Any]) -> None:
        _check(visual, features)
        super().__init__(tuple(visual.patch_size), 1, budget, data)
        self.features = features
        self.unused = _strip(visual, features)
        """Tensors of checkpoints that these features do not need."""
        self.model = visual
        blocks = list(visual.transformer.resblocks)
        self.spec = EncoderSpec(
            modality="image",
            blocks=tuple(block_spec(block) for block in blocks),
            out_width=visual.transformer.width if features == "patches" else visual.output_dim,
            positions="absolute",
            full_attention=tuple(range(len(blocks))),
        )

    @classmethod
    def tiny(cls) -> None:
        """Return nothing: it is built by the encoder `open_clip`."""

    def grid(self, size: Grid) -> Grid:
        """The grid of patches; or how many queries there are, whatever the size."""
        if self.features != "queries":
            return size
        return (len(self.model.attn_pool.query) - self._pooled_queries,)

    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """uint8 [n, 3, h, w] -> [n, 1 + patches, D], as open_clip does before its blocks."""
        model = self.model
        x = model.conv1(self.pixels(images, model.conv1.weight)).flatten(2).transpose(1, 2)
        first = model.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self._embedded_positions(size).to(x.dtype)
        embedded: Tensor = model.ln_pre(x)
        return embedded

    def block(self, index: int, tokens: Tokens, at: At, attend: Attend) -> Tensor:
        """Run open_clip's block `index` with its parts in the open; x [S, D] -> [S, D]."""
        return run_block(self.model.transformer.resblocks[index], tokens.x, at, attend)

    def readout(self, tokens: Tokens) -> Tensor:
        """The features of `features`; [S, D] -> [F, D_out].

        Models that pool before their norm (final_ln_after_pool) get that norm on every patch.
        """
        model = self.model
        if self.features == "queries":
            return self._queried(tokens)
        # A pooler's own norm is the last thing that happens to patches: ln_post norms what comes out of it.
        norm = model.ln_post if model.attn_pool is None else model.attn_pool.ln_k
        x: Tensor = norm(self.patches(tokens.x, tokens.layout))
        return x @ model.proj.to(x.dtype) if self.features == "projected" else x

    def _embedded_positions(self, size: Grid) -> Tensor:
        """Positions of the class token and of patches on a grid of this size; [1 + patches, D].

        Interpolated as open_clip does when it loads weights of another size: bicubic, with antialiasing.
        """
        model = self.model
        positions: Tensor = model.positional_embedding
        if size == tuple(model.grid_size):
            return positions
        first, native = positions[:1], positions[1:].float().view(1, *model.grid_size, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(native, size=size, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([first.float(), resized.flatten(2)[0].T])

    @property
    def _pooled_queries(self) -> int:
        # The first query stands for the whole image where open_clip takes one for that; the rest are its tokens.
        return 0 if self.model.pool_type == "none" else 1

    def _queried(self, tokens: Tokens) -> Tensor:
        """What attentional pooling's queries make of every region; [S, D] -> [F, D_out], as open_clip's `_pool`."""
        pool, layout = self.model.attn_pool, tokens.layout
        attention = pool.attn
        queries, regions = len(pool.query), len(layout.sizes)
        x = pool.ln_k(tokens.x)
        asked = F.linear(pool.ln_q(pool.query), *_projection(attention, "q")).repeat(regions, 1)
        k, v = (F.linear(x, *_projection(attention, which)) for which in "kv")
        q, k, v = (y.view(len(y), attention.num_heads, -1) for y in (asked, k, v))
        # Each region's queries attend to its tokens as vision tokens attend to their inquiry's.
        of_queries = layout.cached(
            ("queries", queries),
            lambda: Layout.build(
                [(queries,)] * regions, [queries] * regions, range(regions), attention=layout.attention
            ),
        )
        found = attend_inquiry(q, k, v, of_queries, layout.partitions["region"])
        features: Tensor = self.model.ln_post(attention.out_proj(found.flatten(1)))
        return features.view(regions, queries, -1)[:, self._pooled_queries :].flatten(0, 1)


def _projection(attention: nn.MultiheadAttention, which: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of one of the three input projections, which lie in one tensor where their widths agree."""
    place = "qkv".index(which)
    joint: Tensor | None = attention.in_proj_weight
    weight: Tensor = getattr(attention, f"{which}_proj_weight") if joint is None else joint.chunk(3)[place]
    return weight, attention.in_proj_bias.chunk(3)[place]


def _check(visual: Any, features: Features) -> None:
    from open_clip.transformer import AttentionalPooler, VisionTransformer

    if type(visual) is not VisionTransformer:
        raise BadConfig(
            f"Encoder 'open_clip' was not written for {type(visual).__name__}; vision transformers work, such as "
            "ViT-B-32; for a residual network take encoder `timm_stages`."
        )
    for block in visual.transformer.resblocks:
        check_block(block)
    pool = visual.attn_pool
    if pool is not None and (type(pool) is not AttentionalPooler or visual.attn_pool_contrastive is not None):
        raise BadConfig(
            f"Encoder 'open_clip' was not written for `attentional_pool: {visual.attn_pool_type}`, which open_clip "
            "calls untested; set `attentional_pool: true` or false."
        )
    if features == "queries" and (pool is None or len(pool.query) < 2):
        raise BadConfig(
            "`features: queries` are those of a model with attentional pooling, such as coca_ViT-B-32; take `patches`."
        )
    if features == "projected" and pool is not None:
        raise BadConfig(
            "`features: projected` are patches in the space that images share with texts, but this model projects "
            "what its attentional pooling makes of them; take `patches` or `queries`."
        )


def _strip(visual: Any, features: Features) -> frozenset[str]:
    """Take away what the features do not need, so that nothing is trained in vain; the names of its tensors."""
    before = set(visual.state_dict())
    if features != "projected":
        visual.proj = None
    if features != "queries" and visual.attn_pool is not None:
        visual.ln_post = None
        del visual.attn_pool.query, visual.attn_pool.attn, visual.attn_pool.ln_q
    return frozenset(before - set(visual.state_dict()))
