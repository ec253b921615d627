"""What every registered encoder must do."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Bias, Encoder, View
from vilavt_toolkit.registry import encoders
from vilavt_toolkit.testing import bench
from vilavt_toolkit.vision.attention import attend
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.tokens import Layout


def _encoder(name: str, seed: int = 0) -> Encoder:
    made: Encoder = bench.build(encoders.get(name), seed=seed)
    return made


def _encode(encoder: nn.Module, views: list[View]) -> Tensor:
    assert isinstance(encoder, Encoder)
    features, _ = DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))
    return features


def builds_quickly_and_on_the_meta_device(name: str) -> None:
    """Building it reads nothing, downloads nothing and can be free of memory."""
    bench.assert_builds_quickly(lambda: _encoder(name))


def declares_what_it_is(name: str) -> None:
    """Token counts, grids, widths and the sites of every block are as declared."""
    encoder = _encoder(name)
    views = bench.example_views(encoder)
    sizes = [view.size for view in views]
    layout = Layout.build(sizes, [encoder.tokens(s) for s in sizes], [0] * len(sizes), encoder.partitions)
    tokens = encoder.embed(views, layout)
    for index, block in enumerate(encoder.spec.blocks):
        assert tokens.x.shape == (layout.length, block.width), f"block {index} gets {list(tokens.x.shape)}"
        seen: dict[str, int] = {}

        def at(site: str, x: Tensor, y: Tensor, seen: dict[str, int] = seen, i: int = index) -> Tensor:
            assert site not in seen, f"site '{site}' comes twice"
            wide = encoder.spec.blocks[i].input_width(site)
            assert x.shape[-1] == wide, f"into '{site}' of block {i} go {x.shape[-1]} channels, it declares {wide}"
            seen[site] = y.shape[-1]
            return y

        def attention(
            q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Bias | None = None, i: int = index
        ) -> Tensor:
            declared = (encoder.spec.blocks[i].heads, encoder.spec.blocks[i].head_dim)
            assert q.shape[1:] == declared, f"block {i} attends with {list(q.shape)}, it declares {declared}"
            return attend(q, k, v, layout, encoder.partition(i), scale=scale, bias=bias)

        tokens = tokens.with_x(encoder.block(index, tokens, at, attention))
        assert seen == dict(block.sites), f"block {index} offers {seen} and declares {dict(block.sites)}"
    features = encoder.readout(tokens)
    counts = [encoder.count(size) for size in sizes]
    assert features.shape == (sum(counts), encoder.spec.out_width), f"readout gives {list(features.shape)}"
    assert counts == [math.prod(encoder.grid(size)) for size in sizes], "counts are not those of the grids"


def encodes_packed_as_alone(name: str) -> None:
    """A region has the same features alone and packed with others, in any order."""
    encoder = _encoder(name)
    views = bench.example_views(encoder)
    with torch.no_grad():
        alone = [_encode(encoder, [view]) for view in views]
        for order in (range(len(views)), reversed(range(len(views)))):
            indices = list(order)
            packed = _encode(encoder, [views[i] for i in indices])
            bench.assert_close(packed, torch.cat([alone[i] for i in indices]), f"packed in order {indices}")


def encodes_batches_in_any_group_order(name: str) -> None:
    """Groups may come in any order; features come back in the regions' order."""
    encoder = _encoder(name)
    views = bench.example_views(encoder)
    dynamic = DynamicEncoder(encoder)
    with torch.no_grad():
        expected, _ = dynamic.encode(views, range(5), [[]] * 5)
        found, _ = dynamic.encode(views, [2, 0, 2, 1, 0], [[]] * 3)
    bench.assert_close(found, expected, "with groups 2 0 2 1 0")


def gives_every_part_a_gradient(name: str) -> None:
    """Every trainable parameter gets a finite gradient."""
    encoder = _encoder(name).train()
    features = _encode(encoder, bench.example_views(encoder))
    bench.backpropagate((features * torch.randn_like(features)).sum())
    bench.assert_gradients(encoder)


def keeps_its_state(name: str) -> None:
    """Its state dict holds all of it."""
    views = bench.example_views(_encoder(name))
    bench.assert_state_round_trip(lambda seed: _encoder(name, seed), lambda made: _encode(made, views))


def never_waits_for_the_device(name: str) -> None:
    """Encoding never synchronises."""
    encoder = _encoder(name)
    views = bench.example_views(encoder)
    with torch.no_grad(), bench.no_synchronisation():
        _encode(encoder, views)


def survives_bfloat16(name: str) -> None:
    """Its features in bfloat16 are near those in float32."""
    encoder = _encoder(name)
    views = bench.example_views(encoder)
    with torch.no_grad():
        expected = _encode(encoder, views)
        bench.assert_close_in_bf16(_encode(encoder.to(torch.bfloat16), views), expected)


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    declares_what_it_is,
    encodes_packed_as_alone,
    encodes_batches_in_any_group_order,
    gives_every_part_a_gradient,
    keeps_its_state,
    never_waits_for_the_device,
    survives_bfloat16,
)
