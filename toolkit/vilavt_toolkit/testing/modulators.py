"""What every registered modulator must do, on every registered encoder that takes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from vilavt_toolkit.contracts import Modulator, View
from vilavt_toolkit.registry import Entry, encoders, modulators
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.encoders import Instance, instances
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.modulation import refusal

# Five views: two groups with an inquiry, one without, in no order.
_GROUPS = (2, 0, 2, 1, 0)
_TEXTS = (bench.TEXTS[0], "", bench.TEXTS[2])


@dataclass(frozen=True)
class _Case:
    """A modulator on one encoder."""

    encoder: Instance
    modulator: Entry[Modulator]

    def build(self, seed: int = 0) -> DynamicEncoder:
        """Build the modulated encoder; the encoder's weights follow from the seed alone."""
        parts = [(self.modulator.cls, self.modulator.cls.tiny())]
        return DynamicEncoder(self.encoder.build(seed), parts, "all", bench.WordInquiryEncoder()).eval()

    def trained(self) -> DynamicEncoder:
        """Build it and take one step, so that nothing stands at its initialisation."""
        made = self.build()
        optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
        features = _encode(made, bench.example_views(made.encoder))
        torch.manual_seed(1)
        bench.backpropagate((features * torch.randn_like(features)).mean())
        optimizer.step()
        return made


def _cases(name: str, variants: bool = False) -> Iterator[_Case]:
    """The modulator on every encoder that takes it; with `variants` on every block class that an encoder can have."""
    modulator = modulators.get(name)
    found = False
    for entry in bench.entries(encoders):
        for instance in instances(entry, variants):
            config, blocks = modulator.cls.tiny(), instance.build().spec.blocks
            if not any(refusal(modulator.cls, config, block) for block in blocks):
                found = True
                yield _Case(instance, modulator)
    assert found, f"modulator '{name}' refuses every registered encoder, so nothing about it can be checked"


def _encode(
    dynamic: DynamicEncoder,
    views: Sequence[View],
    groups: Sequence[int] = _GROUPS,
    texts: Sequence[str] = _TEXTS,
) -> Tensor:
    features, _ = dynamic.encode(views, groups, [dynamic.tokenize(text) for text in texts])
    return features


def _of_regions(features: Tensor, dynamic: DynamicEncoder, views: Sequence[View], chosen: Sequence[int]) -> Tensor:
    parts = features.split_with_sizes([dynamic.encoder.count(view.size) for view in views])
    return torch.cat([parts[region] for region in chosen])


def _all(dynamic: DynamicEncoder) -> list[Modulator]:
    return [module for module in dynamic.modulators.modules() if isinstance(module, Modulator)]


def _adds_context(modulator: Modulator) -> bool:
    return type(modulator).context is not Modulator.context


def builds_quickly_and_on_the_meta_device(name: str) -> None:
    """Building it reads nothing and can be free of memory."""
    for case in _cases(name):
        bench.assert_builds_quickly(case.build)


def starts_as_no_modulation(name: str) -> None:
    """At initialisation features equal, bit for bit, those of the plain encoder.

    Where it attends over the group or adds context, they equal them for one region with an empty inquiry; where over
    the group, once the plain encoder's blocks attend over the whole region too, in place of windows.
    """
    for case in _cases(name, variants=True):
        dynamic = case.build()
        plain = DynamicEncoder(dynamic.encoder)
        views = bench.example_views(dynamic.encoder)
        with torch.no_grad():
            if any(modulator.span == "group" or _adds_context(modulator) for modulator in _all(dynamic)):
                alone = _encode(dynamic, views[:1], [0], [""])
                whole = patch.object(plain.encoder, "partition", return_value="region")
                with whole if any(modulator.span == "group" for modulator in _all(dynamic)) else nullcontext():
                    expected = _encode(plain, views[:1], [0], [""])
                bench.assert_close(alone, expected, "one region, no inquiry")
                continue
            found, expected = _encode(dynamic, views), _encode(plain, views, texts=["", "", ""])
        assert torch.equal(found, expected), f"on '{case.encoder.name}' it modulates before any training"


def leaves_empty_inquiries_unmodulated(name: str) -> None:
    """Regions whose inquiry is empty keep the plain encoder's features, after training too."""
    for case in _cases(name, variants=True):
        dynamic = case.trained()
        views = bench.example_views(dynamic.encoder)
        with torch.no_grad():
            silent = _encode(dynamic, views, texts=["", "", ""])
            if all(modulator.span == "region" for modulator in _all(dynamic)):
                plain = _encode(DynamicEncoder(dynamic.encoder), views, texts=["", "", ""])
                bench.assert_close(silent, plain, "all inquiries empty")
            mixed = _encode(dynamic, views)
        chosen = [region for region, group in enumerate(_GROUPS) if not _TEXTS[group]]
        found, expected = (_of_regions(x, dynamic, views, chosen) for x in (mixed, silent))
        bench.assert_close(found, expected, "a group without an inquiry among groups with one")


def keeps_groups_apart(name: str) -> None:
    """What a group's regions show and its inquiry asks never reaches another group."""
    for case in _cases(name, variants=True):
        dynamic = case.trained()
        views = bench.example_views(dynamic.encoder)
        others = list(views)
        others[1] = View(views[1].data.flip(-1), views[1].size)
        with torch.no_grad():
            before = _encode(dynamic, views)
            after = _encode(dynamic, others, texts=[bench.TEXTS[1], *_TEXTS[1:]])
        chosen = [region for region, group in enumerate(_GROUPS) if group != 0]
        found, expected = (_of_regions(x, dynamic, views, chosen) for x in (after, before))
        bench.assert_close(found, expected, "when only group 0 changed, the others")


def keeps_regions_apart_unless_it_says_group(name: str) -> None:
    """With span `region`, the regions of a group do not see each other."""
    for case in _cases(name):
        dynamic = case.trained()
        if any(modulator.span == "group" for modulator in _all(dynamic)):
            continue
        views = bench.example_views(dynamic.encoder)
        with torch.no_grad():
            together = _encode(dynamic, views, [0] * 5, _TEXTS[:1])
            alone = [_encode(dynamic, [view], [0], _TEXTS[:1]) for view in views]
        bench.assert_close(together, torch.cat(alone), "regions of one group, together and alone")


def lets_regions_of_a_group_see_each_other_where_it_says_group(name: str) -> None:
    """With span `group` every region's features depend on the others of its group, under an inquiry and without."""
    for case in _cases(name):
        dynamic = case.trained()
        if not any(modulator.span == "group" for modulator in _all(dynamic)):
            continue
        views = bench.example_views(dynamic.encoder)
        counts = [dynamic.encoder.count(view.size) for view in views]
        for text in (_TEXTS[0], ""):
            with torch.no_grad():
                together = _encode(dynamic, views, [0] * 5, [text]).split_with_sizes(counts)
                alone = [_encode(dynamic, [view], [0], [text]) for view in views]
            for region, (found, single) in enumerate(zip(together, alone, strict=True)):
                change = (found - single).abs().max().item()
                assert change > 1e-6, f"on '{case.encoder.name}' region {region} does not see the others of its group"


def encodes_groups_in_any_order(name: str) -> None:
    """A group has the same features alone and packed with others, in any order."""
    for case in _cases(name, variants=True):
        dynamic = case.trained()
        views = bench.example_views(dynamic.encoder)
        with torch.no_grad():
            packed = _encode(dynamic, views)
            renamed = _encode(dynamic, views, [2 - group for group in _GROUPS], _TEXTS[::-1])
            bench.assert_close(renamed, packed, "with the groups in another order")
            for group, text in enumerate(_TEXTS):
                chosen = [region for region, of in enumerate(_GROUPS) if of == group]
                alone = _encode(dynamic, [views[region] for region in chosen], [0] * len(chosen), [text])
                bench.assert_close(alone, _of_regions(packed, dynamic, views, chosen), f"group {group} alone")


def hears_the_inquiry_after_a_step(name: str) -> None:
    """After one step of training another inquiry gives other features, unless it uses no site or context."""
    for case in _cases(name, variants=True):
        dynamic = case.trained()
        if not any(modulator.sites or _adds_context(modulator) for modulator in _all(dynamic)):
            continue
        views = bench.example_views(dynamic.encoder)
        with torch.no_grad():
            first = _encode(dynamic, views, [0] * 5, bench.TEXTS[:1])
            second = _encode(dynamic, views, [0] * 5, bench.TEXTS[1:2])
        change = (first - second).abs().max().item()
        assert change > 1e-6, f"on '{case.encoder.name}' two inquiries give the same features"


def gives_every_part_a_gradient(name: str) -> None:
    """Every trainable parameter, the inquiry encoder's too, gets a finite gradient."""
    for case in _cases(name, variants=True):
        dynamic = case.trained().train()
        dynamic.zero_grad()
        features = _encode(dynamic, bench.example_views(dynamic.encoder))
        bench.backpropagate((features * torch.randn_like(features)).sum())
        heard = any(modulator.sites or _adds_context(modulator) for modulator in _all(dynamic))
        bench.assert_gradients(dynamic if heard else dynamic.encoder)


def gives_the_same_gradient_checkpointed(name: str) -> None:
    """Gradient checkpointing changes no gradient."""
    for case in _cases(name, variants=True):
        dynamic = case.trained().train()
        grads = []
        for flag in (False, True):
            dynamic.zero_grad()
            dynamic.gradient_checkpointing = flag
            torch.manual_seed(2)  # for dropout
            features = _encode(dynamic, bench.example_views(dynamic.encoder))
            bench.backpropagate(features.square().mean())
            grads.append(torch.cat([_flat(p.grad) for p in dynamic.parameters()]))
        bench.assert_close(grads[1], grads[0], "gradients with checkpointing")


def keeps_its_state(name: str) -> None:
    """The state dict of the modulated encoder holds all of it."""
    for case in _cases(name):
        views = bench.example_views(case.build().encoder)
        trained = case.trained()

        def make(seed: int, case: _Case = case, trained: DynamicEncoder = trained) -> DynamicEncoder:
            return case.build(seed) if seed else trained

        def run(made: Any, views: list[View] = views) -> Tensor:
            return _encode(made, views)

        bench.assert_state_round_trip(make, run)


def never_waits_for_the_device(name: str) -> None:
    """Encoding under inquiries never synchronises."""
    for case in _cases(name):
        dynamic = case.build()
        views = bench.example_views(dynamic.encoder)
        ids = [dynamic.tokenize(text) for text in _TEXTS]
        with torch.no_grad(), bench.no_synchronisation():
            dynamic.encode(views, _GROUPS, ids)


def survives_bfloat16(name: str) -> None:
    """Features in bfloat16 are near those in float32, after a step of training."""
    for case in _cases(name):
        dynamic = case.trained()
        views = bench.example_views(dynamic.encoder)
        with torch.no_grad():
            expected = _encode(dynamic, views)
            bench.assert_close_in_bf16(_encode(dynamic.to(torch.bfloat16), views), expected)


def _flat(gradient: Tensor | None) -> Tensor:
    return torch.zeros(0) if gradient is None else gradient.flatten()


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    starts_as_no_modulation,
    leaves_empty_inquiries_unmodulated,
    keeps_groups_apart,
    keeps_regions_apart_unless_it_says_group,
    lets_regions_of_a_group_see_each_other_where_it_says_group,
    encodes_groups_in_any_order,
    hears_the_inquiry_after_a_step,
    gives_every_part_a_gradient,
    gives_the_same_gradient_checkpointed,
    keeps_its_state,
    never_waits_for_the_device,
    survives_bfloat16,
)
