"""The claims that every registered encoder must meet."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Bias, Crop, Encoder, View
from vilavt_toolkit.packed.attention import attend_segments
from vilavt_toolkit.packed.tokens import Layout, Tokens
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.adapters import assert_adapters_learn
from vilavt_toolkit.testing.bench import Instance
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.modulation import layout_after_block

_for_every_instance = bench.for_every_instance(encoders)


def _encode_plainly(encoder: nn.Module, views: list[View]) -> Tensor:
    assert isinstance(encoder, Encoder)
    features, _ = DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))
    return features


@_for_every_instance
def builds_quickly_and_on_the_meta_device(instance: Instance[Encoder]) -> None:
    """Building reads nothing, downloads nothing, and takes no memory on the meta device."""
    bench.assert_builds_quickly(instance.build)


class _CheckedBlock:
    """The hooks of one block, which compare every site and every attention with what the block declares."""

    def __init__(self, encoder: Encoder, index: int, layout: Layout) -> None:
        self.encoder, self.index, self.layout = encoder, index, layout
        self.block = encoder.spec.blocks[index]
        self.widths: dict[str, int] = {}
        """Output channels of the sites that were called."""

    def site(self, site: str, x: Tensor, y: Tensor) -> Tensor:
        """Check the rows and input channels of a site, and record its output channels."""
        rows, width, declared = self.layout.length, x.shape[-1], self.block.input_width(site)
        assert site not in self.widths, f"site '{site}' comes twice"
        assert len(x) == len(y) == rows, f"'{site}' of block {self.index} has {len(x)} rows in and {len(y)} out"
        assert width == declared, f"into '{site}' of block {self.index} go {width} channels, it declares {declared}"
        self.widths[site] = y.shape[-1]
        return y

    def differences(self) -> list[str]:
        """Return what differs between the sites that were called and the declared ones, a text for each site."""
        found: list[str] = []
        # One text a site: two whole dictionaries side by side would have to be compared by eye.
        for site in sorted(self.widths.keys() | self.block.sites.keys()):
            width, declared = self.widths.get(site), self.block.sites.get(site)
            name = f"block {self.index}, site '{site}'"
            if width is None:
                found.append(f"{name}: the spec declares it, the block never calls it")
            elif declared is None:
                found.append(f"{name}: the block calls it, the spec does not declare it")
            elif width != declared:
                found.append(f"{name}: the output has width {width}, the spec declares {declared}")
        return found

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Bias | None = None) -> Tensor:
        """Check the heads of a block's attention, and attend as the plain encoder does."""
        declared = (self.block.heads, self.block.head_dim)
        assert q.shape[1:] == declared, f"block {self.index} attends with {list(q.shape)}, it declares {declared}"
        partition = self.encoder.block_partition(self.index)
        return attend_segments(q, k, v, self.layout, partition, scale=scale, bias=bias)


@_for_every_instance
def declares_what_it_is(instance: Instance[Encoder]) -> None:
    """Token counts, grids, widths and the sites of every block equal the declared ones."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    sizes = [view.size for view in views]
    layout = Layout.build(sizes, [encoder.token_count(s) for s in sizes], [0] * len(sizes), encoder.partitions)
    tokens = encoder.embed(views, layout)
    assert len(tokens.x) == layout.length, f"embed gives {len(tokens.x)} tokens, {layout.length} are declared"
    for index, block in enumerate(encoder.spec.blocks):
        # Staged backbones merge tokens between blocks, so every block is held to the layout after it.
        after = layout_after_block(encoder, index, layout)
        checked = _CheckedBlock(encoder, index, after)
        tokens = tokens.after_block(encoder.block(index, tokens, checked.site, checked.attend), after)
        assert tokens.x.shape == (after.length, block.width), f"block {index} gives {list(tokens.x.shape)}"
        differences = checked.differences()
        assert not differences, "\n".join(differences)
    features = encoder.readout(tokens)
    counts = [encoder.feature_count(size) for size in sizes]
    wanted = (sum(counts), encoder.spec.out_width)
    assert features.shape == wanted, (
        f"readout gives {list(features.shape)}, expected {list(wanted)}: feature_grid declares {wanted[0]} features, "
        f"the spec out_width {wanted[1]}"
    )
    assert counts == [math.prod(encoder.feature_grid(size)) for size in sizes], "counts are not those of the grids"


@_for_every_instance
def keeps_to_the_limit_of_the_sample(instance: Instance[Encoder]) -> None:
    """The view of an image has at most `Crop.max_pixels` pixels, or those of the encoder's smallest view."""
    encoder = instance.build()
    if encoder.spec.modality != "image":
        return

    def count_pixels(width: int, height: int, overview: bool, limit: int | None) -> int:
        crop = Crop(np.zeros((height, width, 3), dtype=np.uint8), "image", overview, max_pixels=limit)
        view = encoder.prepare(crop)
        return math.prod(encoder.extent(view) or view.data.shape[-2:])

    # An encoder may refuse a limit below one token of its own, so none is asked for.
    limit = max(256, count_pixels(4, 4, True, None))
    for width, height in ((64, 64), (96, 40)):
        for overview in (True, False):
            pixels = count_pixels(width, height, overview, limit)
            name = "an overview" if overview else "a zoom"
            assert pixels <= limit, (
                f"the view of {name} with max_pixels={limit} has {pixels} pixels. In `prepare`, take the size from "
                "`budget.with_max_pixels(crop.max_pixels)`"
            )


@_for_every_instance
def declares_which_norms_follow(instance: Instance[Encoder]) -> None:
    """A block declares in `norm_follows` the sites whose output a norm makes independent of scale, and no others."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    sizes = [view.size for view in views]
    layout = Layout.build(sizes, [encoder.token_count(s) for s in sizes], [0] * len(sizes), encoder.partitions)
    with torch.no_grad():
        tokens = encoder.embed(views, layout)
        for index, block in enumerate(encoder.spec.blocks):
            after = layout_after_block(encoder, index, layout)
            for name in sorted({"qkv", "proj", "fc2"} & block.sites.keys()):
                none, large, larger = (_read_scaled(encoder, index, tokens, name, by) for by in (0.0, 64.0, 512.0))
                # Without a norm this is 7. A norm forgets the factor but for its epsilon.
                follows = bool((larger - large).norm() < 0.5 * (large - none).norm())
                assert follows == (name in block.norm_follows), (
                    f"block {index}: a norm {'follows' if follows else 'does not follow'} site '{name}', but "
                    f"`BlockSpec.norm_follows` is {sorted(block.norm_follows)}"
                )
            run = encoder.block(index, tokens, lambda site, x, y: y, lambda q, k, v, scale=None, bias=None: v)
            tokens = tokens.after_block(run, after)


def _read_scaled(encoder: Encoder, index: int, tokens: Tokens, scaled: str, factor: float) -> Tensor:
    """Return what block `index` makes of its site `scaled` times `factor`: for `qkv` q and k, else its output."""
    # A norm after the site undoes the factor, which is how one is noticed without looking into the block.
    found: list[Tensor] = []

    def site(site: str, x: Tensor, y: Tensor) -> Tensor:
        return y * factor if site == scaled else y

    def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Bias | None = None) -> Tensor:
        found.append(torch.cat([q, k]).float())
        return v

    out = encoder.block(index, tokens, site, attention)
    return torch.cat(found) if scaled == "qkv" else out


@_for_every_instance
def encodes_packed_as_alone(instance: Instance[Encoder]) -> None:
    """A region has the same features alone as packed with others, in any order."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    with torch.no_grad():
        alone = [_encode_plainly(encoder, [view]) for view in views]
        # Reversed too: a wrong offset into the packed tokens can cancel out in the order that it was written for.
        for order in (range(len(views)), reversed(range(len(views)))):
            indices = list(order)
            packed = _encode_plainly(encoder, [views[i] for i in indices])
            bench.assert_close(packed, torch.cat([alone[i] for i in indices]), f"packed in order {indices}")


@_for_every_instance
def encodes_batches_in_any_group_order(instance: Instance[Encoder]) -> None:
    """Groups may come in any order; features come back in the order of the regions."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    dynamic = DynamicEncoder(encoder)
    # The engine sorts regions by group before encoding, and must undo exactly that.
    with torch.no_grad():
        expected, _ = dynamic.encode(views, range(5), [[]] * 5)
        found, _ = dynamic.encode(views, [2, 0, 2, 1, 0], [[]] * 3)
    bench.assert_close(found, expected, "with groups 2 0 2 1 0")


@_for_every_instance
def gives_every_parameter_a_gradient(instance: Instance[Encoder]) -> None:
    """Every trainable parameter gets a finite gradient."""
    encoder = instance.build().train()
    features = _encode_plainly(encoder, bench.example_views(encoder))
    # Weighted at random: the plain sum after a final norm is constant, and would have no gradient at all.
    bench.backpropagate((features * torch.randn_like(features)).sum())
    bench.assert_gradients(encoder)


@_for_every_instance
def keeps_its_state(instance: Instance[Encoder]) -> None:
    """Its state dict holds all of its state."""
    views = bench.example_views(instance.build())
    bench.assert_state_round_trip(
        lambda seed: instance.build(seed=seed), lambda encoder: _encode_plainly(encoder, views)
    )


@_for_every_instance
def never_waits_for_the_device(instance: Instance[Encoder]) -> None:
    """Encoding never waits for the device."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    # Views are prepared outside: reading images may wait, the forward may not.
    with torch.no_grad(), bench.no_synchronisation():
        _encode_plainly(encoder, views)


@_for_every_instance
def survives_bfloat16(instance: Instance[Encoder]) -> None:
    """Features in bfloat16 are close to those in float32."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    with torch.no_grad():
        expected = _encode_plainly(encoder, views)
        bench.assert_close_in_bf16(_encode_plainly(encoder.to(torch.bfloat16), views), expected)


@_for_every_instance
def trains_adapters_on_its_linear_layers(instance: Instance[Encoder]) -> None:
    """A low-rank adapter on a linear layer gets a gradient wherever the layer's weight would, and can be merged."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    assert_adapters_learn(encoder, lambda: _encode_plainly(encoder, views), 1e-4)


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    declares_what_it_is,
    keeps_to_the_limit_of_the_sample,
    declares_which_norms_follow,
    encodes_packed_as_alone,
    encodes_batches_in_any_group_order,
    gives_every_parameter_a_gradient,
    keeps_its_state,
    never_waits_for_the_device,
    survives_bfloat16,
    trains_adapters_on_its_linear_layers,
)
