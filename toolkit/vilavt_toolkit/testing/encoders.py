"""What every registered encoder must do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Bias, Encoder, View
from vilavt_toolkit.packed.attention import attend
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.registry import Entry, encoders
from vilavt_toolkit.testing import bench
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.modulation import behind


@dataclass(frozen=True)
class Instance:
    """A small instance of an encoder: its tiny one, or one of its variants."""

    entry: Entry[Encoder]
    config: Any
    variant: str = ""

    @property
    def name(self) -> str:
        """The encoder's name, and the variant's."""
        return f"{self.entry.name}, {self.variant}" if self.variant else self.entry.name

    def build(self, seed: int = 0) -> Encoder:
        """Build it, in evaluation mode."""
        made: Encoder = bench.build(self.entry, seed=seed, config=self.config)
        return made


def instances(entry: Entry[Encoder], variants: bool = True) -> Iterator[Instance]:
    """The tiny instance of an encoder, and those of its variants where wanted."""
    yield Instance(entry, entry.cls.tiny())
    if variants:
        for variant, config in entry.cls.variants().items():
            yield Instance(entry, config, variant)


def _of_every_instance(claim: Callable[[Instance], None]) -> Callable[[str], None]:
    """Make a claim about an instance one about all instances of the encoder of a name."""

    @wraps(claim)
    def claim_of_all(name: str) -> None:
        for instance in instances(encoders.get(name)):
            try:
                claim(instance)
            except AssertionError as error:
                raise AssertionError(f"{instance.name}: {error}") from error

    return claim_of_all


def _encode(encoder: nn.Module, views: list[View]) -> Tensor:
    assert isinstance(encoder, Encoder)
    features, _ = DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))
    return features


@_of_every_instance
def builds_quickly_and_on_the_meta_device(instance: Instance) -> None:
    """Building it reads nothing, downloads nothing and can be free of memory."""
    bench.assert_builds_quickly(lambda: instance.build())


@_of_every_instance
def declares_what_it_is(instance: Instance) -> None:
    """Token counts, grids, widths and the sites of every block are as declared."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    sizes = [view.size for view in views]
    layout = Layout.build(sizes, [encoder.tokens(s) for s in sizes], [0] * len(sizes), encoder.partitions)
    tokens = encoder.embed(views, layout)
    assert len(tokens.x) == layout.length, f"embed gives {len(tokens.x)} tokens, {layout.length} are declared"
    for index, block in enumerate(encoder.spec.blocks):
        after = behind(encoder, index, layout)
        seen: dict[str, int] = {}

        def at(
            site: str, x: Tensor, y: Tensor, seen: dict[str, int] = seen, i: int = index, here: Layout = after
        ) -> Tensor:
            assert site not in seen, f"site '{site}' comes twice"
            assert len(x) == len(y) == here.length, f"'{site}' of block {i} has {len(x)} rows in and {len(y)} out"
            wide = encoder.spec.blocks[i].input_width(site)
            assert x.shape[-1] == wide, f"into '{site}' of block {i} go {x.shape[-1]} channels, it declares {wide}"
            seen[site] = y.shape[-1]
            return y

        def attention(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            scale: float | None = None,
            bias: Bias | None = None,
            i: int = index,
            here: Layout = after,
        ) -> Tensor:
            declared = (encoder.spec.blocks[i].heads, encoder.spec.blocks[i].head_dim)
            assert q.shape[1:] == declared, f"block {i} attends with {list(q.shape)}, it declares {declared}"
            return attend(q, k, v, here, encoder.partition(i), scale=scale, bias=bias)

        tokens = tokens.behind(encoder.block(index, tokens, at, attention), after)
        assert tokens.x.shape == (after.length, block.width), f"block {index} gives {list(tokens.x.shape)}"
        assert seen == dict(block.sites), f"block {index} offers {seen} and declares {dict(block.sites)}"
    features = encoder.readout(tokens)
    counts = [encoder.count(size) for size in sizes]
    assert features.shape == (sum(counts), encoder.spec.out_width), f"readout gives {list(features.shape)}"
    assert counts == [math.prod(encoder.grid(size)) for size in sizes], "counts are not those of the grids"


@_of_every_instance
def encodes_packed_as_alone(instance: Instance) -> None:
    """A region has the same features alone and packed with others, in any order."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    with torch.no_grad():
        alone = [_encode(encoder, [view]) for view in views]
        for order in (range(len(views)), reversed(range(len(views)))):
            indices = list(order)
            packed = _encode(encoder, [views[i] for i in indices])
            bench.assert_close(packed, torch.cat([alone[i] for i in indices]), f"packed in order {indices}")


@_of_every_instance
def encodes_batches_in_any_group_order(instance: Instance) -> None:
    """Groups may come in any order; features come back in the regions' order."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    dynamic = DynamicEncoder(encoder)
    with torch.no_grad():
        expected, _ = dynamic.encode(views, range(5), [[]] * 5)
        found, _ = dynamic.encode(views, [2, 0, 2, 1, 0], [[]] * 3)
    bench.assert_close(found, expected, "with groups 2 0 2 1 0")


@_of_every_instance
def gives_every_part_a_gradient(instance: Instance) -> None:
    """Every trainable parameter gets a finite gradient."""
    encoder = instance.build().train()
    features = _encode(encoder, bench.example_views(encoder))
    bench.backpropagate((features * torch.randn_like(features)).sum())
    bench.assert_gradients(encoder)


@_of_every_instance
def keeps_its_state(instance: Instance) -> None:
    """Its state dict holds all of it."""
    views = bench.example_views(instance.build())
    bench.assert_state_round_trip(lambda seed: instance.build(seed), lambda made: _encode(made, views))


@_of_every_instance
def never_waits_for_the_device(instance: Instance) -> None:
    """Encoding never synchronises."""
    encoder = instance.build()
    views = bench.example_views(encoder)
    with torch.no_grad(), bench.no_synchronisation():
        _encode(encoder, views)


@_of_every_instance
def survives_bfloat16(instance: Instance) -> None:
    """Its features in bfloat16 are near those in float32."""
    encoder = instance.build()
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
