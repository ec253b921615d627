"""What every registered inquiry encoder and projector must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Grid, InquiryEncoder, LanguageModel, Projector
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.registry import inquiry_encoders, projectors
from vilavt_toolkit.testing import bench

_SIZES: list[Grid] = [(4, 4), (2, 3), (4, 4), (5, 1), (1, 1)]
_IN, _OUT = 24, 40


Make = Callable[..., InquiryEncoder]
"""Builds a small inquiry encoder, on the example language model where none is given."""


def _of_every_inquiry_encoder(claim: Callable[[Make], None]) -> Callable[[str], None]:
    """Make a claim about one small inquiry encoder one about the tiny one of a name and all its variants."""

    @wraps(claim)
    def claim_of_all(name: str) -> None:
        entry = inquiry_encoders.get(name)
        for variant, config in {"": entry.cls.tiny(), **entry.cls.variants()}.items():

            def make(model: LanguageModel | None = None, config: Any = config) -> InquiryEncoder:
                made: InquiryEncoder = bench.build(entry, model or bench.example_language_model(), config=config)
                return made

            try:
                claim(make)
            except AssertionError as error:
                raise AssertionError(f"{name}, {variant}: {error}" if variant else str(error)) from error

    return claim_of_all


@_of_every_inquiry_encoder
def inquiry_encoder_builds_on_the_meta_device(made: Make) -> None:
    """Building it reads nothing and can be free of memory."""
    model = bench.example_language_model()
    bench.assert_builds_quickly(lambda: made(model))


@_of_every_inquiry_encoder
def inquiry_encoder_reads_empty_text_as_nothing(made: Make) -> None:
    """An empty or blank text has no tokens and pools to zero."""
    encoder = made()
    assert encoder.tokenize("") == [] == encoder.tokenize("  \n"), "a blank text has tokens"
    with torch.no_grad():
        features, pooled = encoder([[], encoder.tokenize(bench.TEXTS[0]), []])
        none, zeros = encoder([[]])
    assert not pooled[0].any() and not pooled[2].any() and not zeros.any(), "an empty inquiry does not pool to zero"
    assert pooled[1].any(), "an inquiry pools to zero"
    assert none.shape == (0, encoder.width), f"no token has features {list(none.shape)}"
    assert len(features) == len(encoder.tokenize(bench.TEXTS[0])), "empty inquiries have features"


@_of_every_inquiry_encoder
def inquiry_encoder_encodes_packed_as_alone(made: Make) -> None:
    """An inquiry has the same features alone and beside others, in any order."""
    encoder = made()
    ids = [encoder.tokenize(text) for text in bench.TEXTS]
    with torch.no_grad():
        features, pooled = encoder(ids)
        assert features.shape == (sum(map(len, ids)), encoder.width), f"features are {list(features.shape)}"
        alone = [encoder([group]) for group in ids]
        bench.assert_close(features, torch.cat([f for f, _ in alone]), "features packed and alone")
        bench.assert_close(pooled, torch.cat([p for _, p in alone]), "pooled packed and alone")
        bench.assert_close(encoder(ids[::-1])[1].flip(0), pooled, "pooled in reverse order")


@_of_every_inquiry_encoder
def inquiry_encoder_tells_inquiries_apart(made: Make) -> None:
    """Different inquiries pool differently."""
    encoder = made()
    with torch.no_grad():
        _, pooled = encoder([encoder.tokenize(text) for text in bench.TEXTS[:3]])
    for first in range(3):
        for second in range(first):
            assert (pooled[first] - pooled[second]).abs().max() > 1e-6, "two inquiries pool to the same vector"


@_of_every_inquiry_encoder
def inquiry_encoder_holds_no_second_language_model(made: Make) -> None:
    """The language model's parameters are not saved and trained a second time through it."""
    model = bench.example_language_model()
    theirs = {id(parameter) for parameter in model.parameters()}
    for key, parameter in made(model).named_parameters():
        assert id(parameter) not in theirs, f"'{key}' is the language model's parameter, registered twice"


@_of_every_inquiry_encoder
def inquiry_encoder_gives_gradients_without_waiting(made: Make) -> None:
    """Every trainable parameter gets a finite gradient, and nothing synchronises."""
    encoder = made().train()
    ids = [encoder.tokenize(text) for text in bench.TEXTS]
    with bench.no_synchronisation():
        features, pooled = encoder(ids)
        bench.backpropagate(features.square().sum() + pooled.square().sum())
    bench.assert_gradients(encoder)


def _projector(name: str, seed: int = 0) -> Projector:
    """The tiny projector between two widths, or of one where it refuses two before anything runs."""
    made: Projector
    entry = projectors.get(name)
    try:
        made = bench.build(entry, _IN, _OUT, seed=seed)
    except BadConfig:
        made = bench.build(entry, _IN, _IN, seed=seed)
    return made


def _features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(math.prod(size) for size in _SIZES), _IN, generator=generator)


def _project(projector: nn.Module) -> Tensor:
    projected: Tensor = projector(_features(), _SIZES)
    return projected


def projector_builds_on_the_meta_device(name: str) -> None:
    """Building it reads nothing and can be free of memory."""
    bench.assert_builds_quickly(lambda: _projector(name))


def projector_projects_packed_as_alone(name: str) -> None:
    """A region has the same projected features alone and packed, as many as its grid says."""
    projector = _projector(name)
    parts = _features().split_with_sizes([math.prod(size) for size in _SIZES])
    with torch.no_grad():
        alone = [projector(part, [size]) for part, size in zip(parts, _SIZES, strict=True)]
        for one, size in zip(alone, _SIZES, strict=True):
            assert one.shape[1] in (_IN, _OUT), f"features are {one.shape[1]} wide, not {_OUT}"
            count = math.prod(projector.grid(size))
            assert len(one) == count, f"grid {size} gives {len(one)} features, not {count}"
        bench.assert_close(_project(projector), torch.cat(alone), "packed and alone")


def projector_gives_gradients_without_waiting(name: str) -> None:
    """Every trainable parameter and the encoder get finite gradients, and nothing synchronises."""
    projector, features = _projector(name).train(), _features().requires_grad_()
    with bench.no_synchronisation():
        bench.backpropagate(projector(features, _SIZES).square().sum())
    bench.assert_gradients(projector)
    assert features.grad is not None and features.grad.isfinite().all(), "the encoder gets no finite gradient"


def projector_keeps_its_state(name: str) -> None:
    """Its state dict holds all of it."""
    bench.assert_state_round_trip(lambda seed: _projector(name, seed), _project)


def projector_survives_bfloat16(name: str) -> None:
    """Its output in bfloat16 is near that in float32."""
    projector = _projector(name)
    with torch.no_grad():
        expected = _project(projector)
        found = projector.to(torch.bfloat16)(_features().bfloat16(), _SIZES)
    bench.assert_close_in_bf16(found, expected)


INQUIRY_ENCODER_CLAIMS = (
    inquiry_encoder_builds_on_the_meta_device,
    inquiry_encoder_reads_empty_text_as_nothing,
    inquiry_encoder_encodes_packed_as_alone,
    inquiry_encoder_tells_inquiries_apart,
    inquiry_encoder_holds_no_second_language_model,
    inquiry_encoder_gives_gradients_without_waiting,
)
PROJECTOR_CLAIMS = (
    projector_builds_on_the_meta_device,
    projector_projects_packed_as_alone,
    projector_gives_gradients_without_waiting,
    projector_keeps_its_state,
    projector_survives_bfloat16,
)
