"""open_clip's own vision transformer as an encoder: its embedding, its blocks and its readout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vilavt_components.common.transformers_vision import is_transformers_vision, to_open_clip_names, to_timm_names
from vilavt_components.encoders.image_encoder import ImageEncoder
from vilavt_components.encoders.open_clip.blocks import block_spec, check_block, run_block
from vilavt_toolkit.contracts import Attend, EncoderSpec, Grid, SiteHook
from vilavt_toolkit.contracts.pixel_budget import PixelBudget
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.attention import attend_inquiry
from vilavt_toolkit.packed.tokens import Layout, Tokens

Features = Literal["patches", "projected", "queries"]


class NativeTower(ImageEncoder):
    """The VisionTransformer `visual` that open_clip built, without the modules that `features` do not need."""

    def __init__(self, visual: Any, features: Features, budget: PixelBudget, preprocessing: Mapping[str, Any]) -> None:
        # First, since the lines below rely on what it checks.
        _check_tower(visual, features)
        super().__init__(tuple(visual.patch_size), 1, budget, preprocessing)
        self.features = features
        self.unused_tensors = _remove_unused_modules(visual, features)
        """Names of a checkpoint's tensors that these features do not need."""
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
        """Return no settings, since encoder `open_clip` builds this class and tests it."""

    def feature_grid(self, size: Grid) -> Grid:
        """Return the grid of patches, or with `features: queries` their number, which is the same for every size."""
        if self.features != "queries":
            return size
        return (len(self.model.attn_pool.query) - self._pooled_queries,)

    def embed_batch(self, images: Tensor, size: Grid) -> Tensor:
        """Embed n images of one size; uint8 [n, 3, h, w] -> [n, 1 + patches, D].

        open_clip's `VisionTransformer._embeds`, with positions for the grid of these images.
        """
        model = self.model
        x = model.conv1(self.normalise_pixels(images, model.conv1.weight)).flatten(2).transpose(1, 2)
        first = model.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self._embedded_positions(size).to(x.dtype)
        embedded: Tensor = model.ln_pre(x)
        return embedded

    def block(self, index: int, tokens: Tokens, site: SiteHook, attend: Attend) -> Tensor:
        """Run open_clip's block `index` with a hook at every site; x [S, D] -> [S, D]."""
        return run_block(self.model.transformer.resblocks[index], tokens.x, site, attend)

    def readout(self, tokens: Tokens) -> Tensor:
        """Read out patches, projected patches or queries, as `features` says; [S, D] -> [F, D_out].

        Models that pool before their norm (final_ln_after_pool) get that norm on every patch.
        """
        model = self.model
        if self.features == "queries":
            return self._read_queries(tokens)
        # With attentional pooling patches pass the pooler's `ln_k` last: `ln_post` comes after pooling.
        norm = model.ln_post if model.attn_pool is None else model.attn_pool.ln_k
        x: Tensor = norm(self.select_patches(tokens.x, tokens.layout))
        return x @ model.proj.to(x.dtype) if self.features == "projected" else x

    def convert_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return weights under open_clip's names, with positions for the model's own grid.

        They come from open_clip, or from a CLIP of transformers.
        """
        if is_transformers_vision(weights):
            weights = to_open_clip_names(to_timm_names(weights))
        positions = weights.get("positional_embedding")
        patches = 0 if positions is None else len(positions) - 1
        side, grid = math.isqrt(max(patches, 0)), tuple(self.model.grid_size)
        if positions is None or patches == math.prod(grid) or side**2 != patches:
            return weights
        resized = _resize_positions(positions, (side, side), grid).to(positions.dtype)
        return {**weights, "positional_embedding": resized}

    def _embedded_positions(self, size: Grid) -> Tensor:
        """Return positions of the class token and of the patches of a grid; [1 + patches, D]."""
        positions: Tensor = self.model.positional_embedding
        native = tuple(self.model.grid_size)
        return positions if size == native else _resize_positions(positions, native, size)

    @property
    def _pooled_queries(self) -> int:
        # open_clip pools the first query into the vector of the whole image, and gives out the rest as tokens.
        return 0 if self.model.pool_type == "none" else 1

    def _read_queries(self, tokens: Tokens) -> Tensor:
        """Let the queries of attentional pooling read every region; [S, D] -> [F, D_out].

        open_clip's `VisionTransformer._pool` with `AttentionalPooler.forward`, on packed tokens.
        """
        pool, layout = self.model.attn_pool, tokens.layout
        attention = pool.attn
        queries, regions = len(pool.query), len(layout.sizes)
        x = pool.ln_k(tokens.x)
        repeated = F.linear(pool.ln_q(pool.query), *_input_projection(attention, "q")).repeat(regions, 1)
        k, v = (F.linear(x, *_input_projection(attention, which)) for which in "kv")
        q, k, v = (y.view(len(y), attention.num_heads, -1) for y in (repeated, k, v))
        # The queries of a region attend to its tokens, as vision tokens do to their inquiry's: the same function, with
        # a layout in which every region is a group of its own and has the queries as its tokens.
        of_queries = layout.get_or_make(
            ("queries", queries),
            lambda: Layout.build(
                [(queries,)] * regions, [queries] * regions, range(regions), attention=layout.attention
            ),
        )
        attended = attend_inquiry(q, k, v, of_queries, layout.partitions["region"])
        features: Tensor = self.model.ln_post(attention.out_proj(attended.flatten(1)))
        return features.view(regions, queries, -1)[:, self._pooled_queries :].flatten(0, 1)


def _resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize positions [1 + patches, D], of the class token first, to another grid.

    As open_clip's `resize_pos_embed` does for weights of another size: bicubic, with antialiasing.
    """
    first, native = positions[:1], positions[1:].float().view(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(native, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first.float(), resized.flatten(2)[0].T])


def _input_projection(attention: nn.MultiheadAttention, which: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one of the three input projections, `which` being q, k or v."""
    # nn.MultiheadAttention keeps the three in one tensor if queries and keys are equally wide.
    place = "qkv".index(which)
    joint: Tensor | None = attention.in_proj_weight
    weight: Tensor = getattr(attention, f"{which}_proj_weight") if joint is None else joint.chunk(3)[place]
    return weight, attention.in_proj_bias.chunk(3)[place]


def _check_tower(visual: Any, features: Features) -> None:
    """Raise BadConfig for a tower, or for features of it, that this encoder was not written for."""
    from open_clip.transformer import AttentionalPooler, VisionTransformer

    # By exact type: ModifiedResNet and a tower of timm have no `transformer.resblocks`.
    if type(visual) is not VisionTransformer:
        raise BadConfig(
            f"Encoder 'open_clip' was not written for {type(visual).__name__}. Choose a vision transformer such as "
            "ViT-B-32, or encoder `timm_stages` for a residual network."
        )
    for block in visual.transformer.resblocks:
        check_block(block)
    pool = visual.attn_pool
    if pool is not None and (type(pool) is not AttentionalPooler or visual.attn_pool_contrastive is not None):
        raise BadConfig(
            f"Encoder 'open_clip' was not written for `attentional_pool: {visual.attn_pool_type}`, which open_clip "
            "calls untested. Set `attentional_pool: true` or false."
        )
    if features == "queries" and (pool is None or len(pool.query) < 2):
        raise BadConfig(
            "`features: queries` are those of a model with attentional pooling, such as coca_ViT-B-32. Take `patches`."
        )
    if features == "projected" and pool is not None:
        raise BadConfig(
            "`features: projected` are patches in the space that images share with texts, but this model projects "
            "what its attentional pooling makes of them. Take `patches` or `queries`."
        )


def _remove_unused_modules(visual: Any, features: Features) -> frozenset[str]:
    """Remove the modules that the features do not need, and return the names of their tensors."""
    # Left in, they would be saved, and counted among the weights that learn, without ever getting a gradient.
    before = set(visual.state_dict())
    if features != "projected":
        visual.proj = None
    if features != "queries" and visual.attn_pool is not None:
        visual.ln_post = None
        del visual.attn_pool.query, visual.attn_pool.attn, visual.attn_pool.ln_q
    return frozenset(before - set(visual.state_dict()))
