"""The claims that every registered modulator must meet, on every registered encoder that it accepts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from vilavt_toolkit.contracts import BlockSpec, Encoder, Modulator, View
from vilavt_toolkit.registry import encoders, modulators
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.adapters import assert_adapters_learn
from vilavt_toolkit.testing.bench import Instance
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.modulation import unsupported_reason

# Five views in three groups, out of order: two groups with an inquiry, one without.
_GROUPS = (2, 0, 2, 1, 0)
_TEXTS = (bench.TEXTS[0], "", bench.TEXTS[2])
# The instances after one step, by encoder and modulator, each with its variant. They are small.
_TRAINED: dict[tuple[type, str, type, str], DynamicEncoder] = {}
# The blocks of the small instances of encoders, by class and variant. Every claim asks whether a modulator fits.
_BLOCKS: dict[tuple[type, str], tuple[BlockSpec, ...]] = {}
_TINY_ENCODERS_ONLY = ContextVar("_TINY_ENCODERS_ONLY", default=False)


@dataclass(frozen=True)
class _Case:
    """A modulator on one small instance of an encoder."""

    encoder: Instance[Encoder]
    modulator: Instance[Modulator]

    @property
    def name(self) -> str:
        """Name the modulator and the encoder, and the variant of either."""
        return f"{self.modulator.name} on '{self.encoder.name}'"

    def build(self, seed: int = 0) -> DynamicEncoder:
        """Build the modulated encoder; the seed alone decides the encoder's weights."""
        parts = [(self.modulator.entry.cls, self.modulator.config)]
        return DynamicEncoder(self.encoder.build(seed=seed), parts, "all", bench.WordInquiryEncoder()).eval()

    def build_trained(self) -> DynamicEncoder:
        """Build it and take one training step; the result is the caller's own."""
        own = copy.deepcopy(self.share_trained())
        torch.manual_seed(2)
        return own

    def share_trained(self) -> DynamicEncoder:
        """Build it and take one training step, once for all callers: they may read it, and not change it."""
        # Most claims start from here. Copying costs more than encoding. The classes belong to the key, since tests
        # register several modulators under one name.
        encoder, modulator = self.encoder, self.modulator
        key = (encoder.entry.cls, encoder.variant, modulator.entry.cls, modulator.variant)
        if key not in _TRAINED:
            _TRAINED[key] = self._train()
        return _TRAINED[key]

    def _train(self) -> DynamicEncoder:
        # A fresh modulator changes nothing, so a claim about fresh ones would hold for any mistake.
        dynamic = self.build()
        optimizer = torch.optim.AdamW(dynamic.parameters(), lr=1e-2)
        features = _encode_groups(dynamic, bench.example_views(dynamic.backbone))
        torch.manual_seed(1)
        bench.backpropagate((features * torch.randn_like(features)).mean())
        optimizer.step()
        dynamic.zero_grad()
        return dynamic


@contextmanager
def tiny_encoders_only() -> Iterator[None]:
    """Let the claims inside try a modulator on the tiny instance of every encoder, and not on encoders' variants."""
    token = _TINY_ENCODERS_ONLY.set(True)
    try:
        yield
    finally:
        _TINY_ENCODERS_ONLY.reset(token)


def _list_blocks(instance: Instance[Encoder]) -> tuple[BlockSpec, ...]:
    """Return the blocks of a small instance of an encoder, which is built once."""
    key = (instance.entry.cls, instance.variant)
    if key not in _BLOCKS:
        _BLOCKS[key] = instance.build().spec.blocks
    return _BLOCKS[key]


def _list_cases(name: str, variants: bool) -> Iterator[_Case]:
    """List the modulator, and its variants, on every encoder that accepts it.

    With `variants` the modulator is also on every variant of the encoders, except inside `tiny_encoders_only`.
    """
    variants = variants and not _TINY_ENCODERS_ONLY.get()
    plain, *others = bench.list_instances(modulators.get(name))
    found, first_reason = False, ""
    for entry in bench.require_entries(encoders):
        for instance in bench.list_instances(entry, variants):
            blocks = _list_blocks(instance)
            for modulator in [plain] if instance.variant else [plain, *others]:
                cls, config = modulator.entry.cls, modulator.config
                # An encoder whose every block is accepted is a case. The first refusal is kept for the error below.
                reasons = [reason for block in blocks if (reason := unsupported_reason(cls, config, block))]
                if not reasons:
                    found = True
                    yield _Case(instance, modulator)
                elif not first_reason:
                    first_reason = f"{entry.name}: {reasons[0]}"
    assert found, f"modulator '{name}' refuses every registered encoder. On {first_reason}"


def _for_every_case(variants: bool) -> Callable[[Callable[[_Case], None]], Callable[[str], None]]:
    """Make a decorator that turns a claim about one case into a claim about the modulator of a name."""

    def decorate(claim: Callable[[_Case], None]) -> Callable[[str], None]:
        @wraps(claim)
        def claim_of_all(name: str) -> None:
            for case in _list_cases(name, variants):
                with bench.name_failures(case.name):
                    claim(case)

        return claim_of_all

    return decorate


def _encode_groups(
    dynamic: DynamicEncoder,
    views: Sequence[View],
    groups: Sequence[int] = _GROUPS,
    texts: Sequence[str] = _TEXTS,
) -> Tensor:
    features, _ = dynamic.encode(views, groups, [dynamic.tokenize(text) for text in texts])
    return features


def _select_regions(features: Tensor, dynamic: DynamicEncoder, views: Sequence[View], chosen: Sequence[int]) -> Tensor:
    parts = features.split_with_sizes([dynamic.backbone.feature_count(view.size) for view in views])
    return torch.cat([parts[region] for region in chosen])


def _list_modulators(dynamic: DynamicEncoder) -> list[Modulator]:
    return [module for module in dynamic.modulators.modules() if isinstance(module, Modulator)]


def _adds_context(modulator: Modulator) -> bool:
    return type(modulator).context is not Modulator.context


@_for_every_case(variants=False)
def builds_quickly_and_on_the_meta_device(case: _Case) -> None:
    """Building reads nothing, and takes no memory on the meta device."""
    bench.assert_builds_quickly(case.build)


@_for_every_case(variants=True)
def starts_as_no_modulation(case: _Case) -> None:
    """At initialisation, features equal those of the plain encoder bit for bit.

    A modulator with span `group` or with context changes attention itself. Its features equal the plain encoder's,
    within rounding, for one region with an empty inquiry. With span `group` the plain encoder must attend over the
    whole region for that, and not in windows.
    """
    dynamic = case.build()
    plain = DynamicEncoder(dynamic.backbone)
    views = bench.example_views(dynamic.backbone)
    with torch.no_grad():
        # Added keys change the softmax even at initialisation, so bit equality is asked of the other schemes only.
        if any(modulator.span == "group" or _adds_context(modulator) for modulator in _list_modulators(dynamic)):
            alone = _encode_groups(dynamic, views[:1], [0], [""])
            whole = patch.object(plain.backbone, "block_partition", return_value="region")
            with whole if any(modulator.span == "group" for modulator in _list_modulators(dynamic)) else nullcontext():
                expected = _encode_groups(plain, views[:1], [0], [""])
            bench.assert_close(alone, expected, "one region, no inquiry")
            return
        found, expected = _encode_groups(dynamic, views), _encode_groups(plain, views, texts=["", "", ""])
    assert torch.equal(found, expected), "it modulates before any training"


@_for_every_case(variants=True)
def leaves_empty_inquiries_unmodulated(case: _Case) -> None:
    """Regions with an empty inquiry have the plain encoder's features, after training too."""
    dynamic = case.share_trained()
    views = bench.example_views(dynamic.backbone)
    with torch.no_grad():
        silent = _encode_groups(dynamic, views, texts=["", "", ""])
        # With span `group` the plain encoder is no reference: its regions do not see each other.
        if all(modulator.span == "region" for modulator in _list_modulators(dynamic)):
            plain = _encode_groups(DynamicEncoder(dynamic.backbone), views, texts=["", "", ""])
            bench.assert_close(silent, plain, "all inquiries empty")
        mixed = _encode_groups(dynamic, views)
    chosen = [region for region, group in enumerate(_GROUPS) if not _TEXTS[group]]
    found, expected = (_select_regions(x, dynamic, views, chosen) for x in (mixed, silent))
    bench.assert_close(found, expected, "a group without an inquiry among groups with one")


@_for_every_case(variants=True)
def keeps_groups_apart(case: _Case) -> None:
    """The regions and the inquiry of a group do not change the features of another group."""
    dynamic = case.share_trained()
    views = bench.example_views(dynamic.backbone)
    # Group 0 gets another view and another inquiry at once; every other group must not notice.
    others = list(views)
    others[1] = View(views[1].data.flip(-1), views[1].size)
    with torch.no_grad():
        before = _encode_groups(dynamic, views)
        after = _encode_groups(dynamic, others, texts=[bench.TEXTS[1], *_TEXTS[1:]])
    chosen = [region for region, group in enumerate(_GROUPS) if group != 0]
    found, expected = (_select_regions(x, dynamic, views, chosen) for x in (after, before))
    bench.assert_close(found, expected, "when only group 0 changed, the others")


@_for_every_case(variants=False)
def keeps_regions_apart_with_span_region(case: _Case) -> None:
    """With span `region`, the regions of a group do not change each other's features."""
    dynamic = case.share_trained()
    # With span `group` they should: the next claim checks that.
    if any(modulator.span == "group" for modulator in _list_modulators(dynamic)):
        return
    views = bench.example_views(dynamic.backbone)
    with torch.no_grad():
        together = _encode_groups(dynamic, views, [0] * 5, _TEXTS[:1])
        alone = [_encode_groups(dynamic, [view], [0], _TEXTS[:1]) for view in views]
    bench.assert_close(together, torch.cat(alone), "regions of one group, together and alone")


@_for_every_case(variants=False)
def shows_regions_each_other_with_span_group(case: _Case) -> None:
    """With span `group`, every region's features depend on the others of its group, with an inquiry and without."""
    dynamic = case.share_trained()
    if not any(modulator.span == "group" for modulator in _list_modulators(dynamic)):
        return
    views = bench.example_views(dynamic.backbone)
    # With an empty inquiry too: the span belongs to the block, not to the inquiry.
    counts = [dynamic.backbone.feature_count(view.size) for view in views]
    for text in (_TEXTS[0], ""):
        with torch.no_grad():
            together = _encode_groups(dynamic, views, [0] * 5, [text]).split_with_sizes(counts)
            alone = [_encode_groups(dynamic, [view], [0], [text]) for view in views]
        for region, (found, single) in enumerate(zip(together, alone, strict=True)):
            change = (found - single).abs().max().item()
            assert change > 1e-6, f"region {region} does not see the others of its group"


@_for_every_case(variants=True)
def encodes_groups_in_any_order(case: _Case) -> None:
    """A group has the same features alone as packed with others, in any order."""
    dynamic = case.share_trained()
    views = bench.example_views(dynamic.backbone)
    with torch.no_grad():
        packed = _encode_groups(dynamic, views)
        # The same groups under other numbers, as another batch would have them.
        renamed = _encode_groups(dynamic, views, [2 - group for group in _GROUPS], _TEXTS[::-1])
        bench.assert_close(renamed, packed, "with the groups in another order")
        for group, text in enumerate(_TEXTS):
            chosen = [region for region, of in enumerate(_GROUPS) if of == group]
            alone = _encode_groups(dynamic, [views[region] for region in chosen], [0] * len(chosen), [text])
            bench.assert_close(alone, _select_regions(packed, dynamic, views, chosen), f"group {group} alone")


@_for_every_case(variants=True)
def depends_on_the_inquiry_after_a_step(case: _Case) -> None:
    """After a training step another inquiry gives other features, unless it has neither sites nor context."""
    dynamic = case.share_trained()
    if not any(modulator.sites or _adds_context(modulator) for modulator in _list_modulators(dynamic)):
        return
    views = bench.example_views(dynamic.backbone)
    with torch.no_grad():
        # Two inquiries with different words, on the same views in one group.
        first = _encode_groups(dynamic, views, [0] * 5, bench.TEXTS[:1])
        second = _encode_groups(dynamic, views, [0] * 5, bench.TEXTS[1:2])
    change = (first - second).abs().max().item()
    assert change > 1e-6, "two inquiries give the same features"


@_for_every_case(variants=True)
def gives_every_parameter_a_gradient(case: _Case) -> None:
    """Every trainable parameter, the inquiry encoder's too, gets a finite gradient."""
    dynamic = case.build_trained().train()
    dynamic.zero_grad()
    features = _encode_groups(dynamic, bench.example_views(dynamic.backbone))
    bench.backpropagate((features * torch.randn_like(features)).sum())
    depends_on_inquiry = any(modulator.sites or _adds_context(modulator) for modulator in _list_modulators(dynamic))
    bench.assert_gradients(dynamic if depends_on_inquiry else dynamic.backbone)


@_for_every_case(variants=True)
def gives_the_same_gradient_checkpointed(case: _Case) -> None:
    """Gradient checkpointing changes no gradient."""
    dynamic = case.build_trained().train()
    # Recomputation in backward must see the same inquiries and the same dropout as the forward did.
    grads = []
    for flag in (False, True):
        dynamic.zero_grad()
        dynamic.gradient_checkpointing = flag
        torch.manual_seed(2)  # for dropout
        features = _encode_groups(dynamic, bench.example_views(dynamic.backbone))
        bench.backpropagate(features.square().mean())
        grads.append(torch.cat([_flatten_gradient(p.grad) for p in dynamic.parameters()]))
    bench.assert_close(grads[1], grads[0], "gradients with checkpointing")


@_for_every_case(variants=False)
def keeps_its_state(case: _Case) -> None:
    """The state dict of the modulated encoder holds all of its state."""
    views = bench.example_views(case.build().backbone)
    trained = case.build_trained()

    # Seed 0 is the trained instance, which a fresh one of seed 1 must equal after loading its state.
    def make(seed: int) -> DynamicEncoder:
        return case.build(seed) if seed else trained

    def run(dynamic: Any) -> Tensor:
        return _encode_groups(dynamic, views)

    bench.assert_state_round_trip(make, run)


@_for_every_case(variants=False)
def never_waits_for_the_device(case: _Case) -> None:
    """Encoding under inquiries never waits for the device."""
    dynamic = case.build()
    views = bench.example_views(dynamic.backbone)
    ids = [dynamic.tokenize(text) for text in _TEXTS]
    with torch.no_grad(), bench.no_synchronisation():
        dynamic.encode(views, _GROUPS, ids)


@_for_every_case(variants=False)
def survives_bfloat16(case: _Case) -> None:
    """Features in bfloat16 are close to those in float32, after a training step."""
    dynamic = case.build_trained()
    views = bench.example_views(dynamic.backbone)
    with torch.no_grad():
        expected = _encode_groups(dynamic, views)
        bench.assert_close_in_bf16(_encode_groups(dynamic.to(torch.bfloat16), views), expected)


def _flatten_gradient(gradient: Tensor | None) -> Tensor:
    return torch.zeros(0) if gradient is None else gradient.flatten()


@_for_every_case(variants=True)
def trains_adapters_on_its_linear_layers(case: _Case) -> None:
    """A low-rank adapter on a linear layer gets a gradient wherever the layer's weight would, and can be merged."""
    dynamic = case.build_trained()
    views = bench.example_views(dynamic.backbone)
    assert_adapters_learn(dynamic.modulators, lambda: _encode_groups(dynamic, views), 1e-4)


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    starts_as_no_modulation,
    leaves_empty_inquiries_unmodulated,
    keeps_groups_apart,
    keeps_regions_apart_with_span_region,
    shows_regions_each_other_with_span_group,
    encodes_groups_in_any_order,
    depends_on_the_inquiry_after_a_step,
    gives_every_parameter_a_gradient,
    gives_the_same_gradient_checkpointed,
    keeps_its_state,
    never_waits_for_the_device,
    survives_bfloat16,
    trains_adapters_on_its_linear_layers,
)
