"""What every registered inquiry encoder and projector must do."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vilavt_toolkit.contracts import Grid, InquiryEncoder, LanguageModel, Projector
from vilavt_toolkit.registry import inquiry_encoders, projectors
from vilavt_toolkit.testing import bench

_SIZES: list[Grid] = [(4, 4), (2, 3), (4, 4), (5, 1), (1, 1)]
_IN, _OUT = 24, 40


def _inquiry_encoder(name: str, model: LanguageModel | None = None, seed: int = 0) -> InquiryEncoder:
    model = model or bench.example_language_model()
    made: InquiryEncoder = bench.build(inquiry_encoders.get(name), model, seed=seed)
    return made


def inquiry_encoder_builds_on_the_meta_device(name: str) -> None:
    """Building it reads nothing and can be free of memory."""
    model = bench.example_language_model()
    bench.assert_builds_quickly(lambda: _inquiry_encoder(name, model))


def inquiry_encoder_reads_empty_text_as_nothing(name: str) -> None:
    """An empty or blank text has no tokens and pools to zero."""
    encoder = _inquiry_encoder(name)
    assert encoder.tokenize("") == [] == encoder.tokenize("  \n"), "a blank text has tokens"
    with torch.no_grad():
        features, pooled = encoder([[], encoder.tokenize(bench.TEXTS[0]), []])
        none, zeros = encoder([[]])
    assert not pooled[0].any() and not pooled[2].any() and not zeros.any(), "an empty inquiry does not pool to zero"
    assert pooled[1].any(), "an inquiry pools to zero"
    assert none.shape == (0, encoder.width), f"no token has features {list(none.shape)}"
    assert len(features) == len(encoder.tokenize(bench.TEXTS[0])), "empty inquiries have features"


def inquiry_encoder_encodes_packed_as_alone(name: str) -> None:
    """An inquiry has the same features alone and beside others, in any order."""
    encoder = _inquiry_encoder(name)
    ids = [encoder.tokenize(text) for text in bench.TEXTS]
    with torch.no_grad():
        features, pooled = encoder(ids)
        assert features.shape == (sum(map(len, ids)), encoder.width), f"features are {list(features.shape)}"
        alone = [encoder([group]) for group in ids]
        bench.assert_close(features, torch.cat([f for f, _ in alone]), "features packed and alone")
        bench.assert_close(pooled, torch.cat([p for _, p in alone]), "pooled packed and alone")
        bench.assert_close(encoder(ids[::-1])[1].flip(0), pooled, "pooled in reverse order")


def inquiry_encoder_tells_inquiries_apart(name: str) -> None:
    """Different inquiries pool differently."""
    encoder = _inquiry_encoder(name)
    with torch.no_grad():
        _, pooled = encoder([encoder.tokenize(text) for text in bench.TEXTS[:3]])
    for first in range(3):
        for second in range(first):
            assert (pooled[first] - pooled[second]).abs().max() > 1e-6, "two inquiries pool to the same vector"


def inquiry_encoder_holds_no_second_language_model(name: str) -> None:
    """The language model's parameters are not saved and trained a second time through it."""
    model = bench.example_language_model()
    theirs = {id(parameter) for parameter in model.parameters()}
    for key, parameter in _inquiry_encoder(name, model).named_parameters():
        assert id(parameter) not in theirs, f"'{key}' is the language model's parameter, registered twice"


def inquiry_encoder_gives_gradients_without_waiting(name: str) -> None:
    """Every trainable parameter gets a finite gradient, and nothing synchronises."""
    encoder = _inquiry_encoder(name).train()
    ids = [encoder.tokenize(text) for text in bench.TEXTS]
    with bench.no_synchronisation():
        features, pooled = encoder(ids)
        bench.backpropagate(features.square().sum() + pooled.square().sum())
    bench.assert_gradients(encoder)


def _projector(name: str, seed: int = 0) -> Projector:
    made: Projector = bench.build(projectors.get(name), _IN, _OUT, seed=seed)
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
            expected = (math.prod(projector.grid(size)), _OUT)
            assert one.shape == expected, f"grid {size} gives {list(one.shape)}, not {expected}"
        bench.assert_close(_project(projector), torch.cat(alone), "packed and alone")


def projector_gives_gradients_without_waiting(name: str) -> None:
    """Every trainable parameter gets a finite gradient, and nothing synchronises."""
    projector = _projector(name).train()
    with bench.no_synchronisation():
        bench.backpropagate(_project(projector).square().sum())
    bench.assert_gradients(projector)


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
