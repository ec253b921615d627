"""The claims that every registered inquiry encoder must meet."""

from __future__ import annotations

import torch

from vilavt_toolkit.contracts import InquiryEncoder, LanguageModel
from vilavt_toolkit.registry import inquiry_encoders
from vilavt_toolkit.testing import bench
from vilavt_toolkit.testing.bench import Instance

_for_every_instance = bench.for_every_instance(inquiry_encoders)


def _build(instance: Instance[InquiryEncoder], language_model: LanguageModel | None = None) -> InquiryEncoder:
    """Build the small inquiry encoder, on the example language model if none is given."""
    return instance.build(language_model or bench.example_language_model())


@_for_every_instance
def builds_quickly_and_on_the_meta_device(instance: Instance[InquiryEncoder]) -> None:
    """Building reads nothing, and takes no memory on the meta device."""
    model = bench.example_language_model()
    bench.assert_builds_quickly(lambda: _build(instance, model))


@_for_every_instance
def encodes_blank_text_as_zero(instance: Instance[InquiryEncoder]) -> None:
    """An empty or blank text has no tokens and pools to zero."""
    encoder = _build(instance)
    assert encoder.tokenize("") == [] == encoder.tokenize("  \n"), "a blank text has tokens"
    with torch.no_grad():
        # Between empty ones, so that a wrong offset would show.
        features, pooled = encoder([[], encoder.tokenize(bench.TEXTS[0]), []])
        none, zeros = encoder([[]])
    assert not pooled[0].any() and not pooled[2].any() and not zeros.any(), "an empty inquiry does not pool to zero"
    assert pooled[1].any(), "an inquiry pools to zero"
    assert none.shape == (0, encoder.width), f"no token has features {list(none.shape)}"
    assert len(features) == len(encoder.tokenize(bench.TEXTS[0])), "empty inquiries have features"


@_for_every_instance
def encodes_packed_as_alone(instance: Instance[InquiryEncoder]) -> None:
    """An inquiry has the same features alone as with others, in any order."""
    encoder = _build(instance)
    ids = [encoder.tokenize(text) for text in bench.TEXTS]
    with torch.no_grad():
        features, pooled = encoder(ids)
        assert features.shape == (sum(map(len, ids)), encoder.width), f"features are {list(features.shape)}"
        alone = [encoder([group]) for group in ids]
        bench.assert_close(features, torch.cat([f for f, _ in alone]), "features packed and alone")
        bench.assert_close(pooled, torch.cat([p for _, p in alone]), "pooled packed and alone")
        bench.assert_close(encoder(ids[::-1])[1].flip(0), pooled, "pooled in reverse order")


@_for_every_instance
def distinguishes_inquiries(instance: Instance[InquiryEncoder]) -> None:
    """Different inquiries pool differently."""
    encoder = _build(instance)
    with torch.no_grad():
        _, pooled = encoder([encoder.tokenize(text) for text in bench.TEXTS[:3]])
    for first in range(3):
        for second in range(first):
            assert (pooled[first] - pooled[second]).abs().max() > 1e-6, "two inquiries pool to the same vector"


@_for_every_instance
def holds_no_second_language_model(instance: Instance[InquiryEncoder]) -> None:
    """It does not register the language model's parameters as its own."""
    # Registered, they would be saved twice, and the optimizer would step them twice.
    model = bench.example_language_model()
    theirs = {id(parameter) for parameter in model.parameters()}
    for key, parameter in _build(instance, model).named_parameters():
        assert id(parameter) not in theirs, f"'{key}' is the language model's parameter, registered twice"


@_for_every_instance
def gives_gradients_without_waiting(instance: Instance[InquiryEncoder]) -> None:
    """Every trainable parameter gets a finite gradient, and nothing waits for the device."""
    encoder = _build(instance).train()
    ids = [encoder.tokenize(text) for text in bench.TEXTS]
    with bench.no_synchronisation():
        features, pooled = encoder(ids)
        bench.backpropagate(features.square().sum() + pooled.square().sum())
    bench.assert_gradients(encoder)


CLAIMS = (
    builds_quickly_and_on_the_meta_device,
    encodes_blank_text_as_zero,
    encodes_packed_as_alone,
    distinguishes_inquiries,
    holds_no_second_language_model,
    gives_gradients_without_waiting,
)
