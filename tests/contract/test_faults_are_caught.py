"""The contract tests fail on components that break their contract."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_components.language_models.hf_causal import HFCausal, HFCausalConfig
from vilavt_toolkit.contracts import Modulator
from vilavt_toolkit.registry import encoders, inquiry_encoders, language_models, modulators
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing import bench, check_encoder, check_inquiry_encoder, check_modulator
from vilavt_toolkit.testing.isolation import isolated_registries
from vilavt_toolkit.testing.language_models import splits_into_layers_and_head
from vilavt_toolkit.testing.modulators import tiny_encoders_only

load_builtin()


class Gate(Modulator):
    """A correct modulator, for the faulty ones to depart from."""

    sites = frozenset({"norm1"})

    def __init__(self, config, block, inquiry_width):
        super().__init__()
        self.gate = nn.Linear(inquiry_width, block.sites["norm1"])
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    @classmethod
    def tiny(cls):
        return NoSettings()

    def modulate(self, site, x, y, inquiry):
        return y * (1 + inquiry.to_tokens(self.gate(inquiry.pooled)))


class StartsLoud(Gate):
    def modulate(self, site, x, y, inquiry):
        return super().modulate(site, x, y, inquiry) + 0.1


class MixesGroups(Gate):
    def modulate(self, site, x, y, inquiry):
        return y * (1 + self.gate(inquiry.pooled.mean(0)))


class MixesTokens(Gate):
    def modulate(self, site, x, y, inquiry):
        return super().modulate(site, x, y, inquiry) + self.gate(inquiry.pooled).sum() * y.mean()


class NeverListens(Gate):
    def modulate(self, site, x, y, inquiry):
        return y * (1 + self.gate.bias + 0 * self.gate.weight.sum() + 0 * inquiry.pooled.sum())


class Waits(Gate):
    def modulate(self, site, x, y, inquiry):
        changed = super().modulate(site, x, y, inquiry)
        return changed if changed.isfinite().all() else y


class ForgetsAParameter(Gate):
    def __init__(self, config, block, inquiry_width):
        super().__init__(config, block, inquiry_width)
        self.unused = nn.Parameter(torch.ones(3))


class Breaks(Gate):
    def modulate(self, site, x, y, inquiry):
        return y[[len(y)]]


class Words(bench.WordInquiryEncoder):
    """An inquiry encoder that is correct as its tiny instance, and not as a variant."""

    def __init__(self, config, language_model):
        super().__init__()
        self.offset = config

    @classmethod
    def tiny(cls):
        return 0

    @classmethod
    def variants(cls):
        return {"shifted": 1}

    def forward(self, ids):
        features, pooled = super().forward(ids)
        return features, pooled + self.offset


class ToyEncoder(TimmEncoder):
    """A correct encoder of one kind of block, for the faulty ones to depart from."""

    @classmethod
    def variants(cls):
        return {}


class IgnoresTheSamplesLimit(ToyEncoder):
    def prepare(self, crop):
        return super().prepare(replace(crop, max_pixels=None))


class DeclaresAnotherWidth(ToyEncoder):
    def __init__(self, config):
        super().__init__(config)
        self.spec = replace(self.spec, blocks=tuple(replace(b, sites={**b.sites, "fc1": 48}) for b in self.spec.blocks))


class DeclaresTooManyFeatures(ToyEncoder):
    def feature_grid(self, size):
        return (2, *size)


class KeepsItsNormsToItself(ToyEncoder):
    @classmethod
    def tiny(cls):
        tiny = super().tiny()
        return replace(tiny, config=tiny.config | {"qk_norm": True})

    def __init__(self, config):
        super().__init__(config)
        self.spec = replace(self.spec, blocks=tuple(replace(b, norm_follows=frozenset()) for b in self.spec.blocks))


class BoastsOfNorms(ToyEncoder):
    def __init__(self, config):
        super().__init__(config)
        self.spec = replace(
            self.spec, blocks=tuple(replace(b, norm_follows=frozenset({"fc2"})) for b in self.spec.blocks)
        )


def check(cls):
    with isolated_registries(), tiny_encoders_only():
        modulators.register("under_test")(cls)
        check_modulator("under_test")


def test_variants_of_an_inquiry_encoder_are_held_to_the_contract_too():
    with isolated_registries():
        inquiry_encoders.register("under_test")(Words)
        with pytest.raises(AssertionError, match="under_test, shifted: an empty inquiry does not pool to zero"):
            check_inquiry_encoder("under_test")


def check_toy_encoder(cls):
    with isolated_registries():
        encoders.register("under_test", TimmConfig)(cls)
        check_encoder("under_test")


def test_a_correct_encoder_passes():
    check_toy_encoder(ToyEncoder)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (IgnoresTheSamplesLimit, "overview with max_pixels=256 has 1024 pixels.*with_max_pixels"),
        (DeclaresAnotherWidth, r"\bblock 0, site 'fc1': the output has width 64, the spec declares 48\Z"),
        (DeclaresTooManyFeatures, r"expected \[\d+, 32\]: feature_grid declares \d+ features"),
        (KeepsItsNormsToItself, r"a norm follows site 'qkv', but `BlockSpec.norm_follows` is \[\]"),
        (BoastsOfNorms, r"a norm does not follow site 'fc2', but `BlockSpec.norm_follows` is \['fc2'\]"),
    ],
)
def test_a_broken_encoder_is_caught(cls, words):
    with pytest.raises(AssertionError, match=words):
        check_toy_encoder(cls)


class ScalesLogitsInForwardAlone(HFCausal):
    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


class DiffersWhenCalledAgain(HFCausal):
    calls = 0

    def compute_logits(self, states):
        self.calls += 1
        return super().compute_logits(states * self.calls)


@pytest.mark.parametrize("cls", [ScalesLogitsInForwardAlone, DiffersWhenCalledAgain])
def test_a_head_that_does_other_things_than_forward_is_caught(cls):
    with isolated_registries():
        language_models.register("under_test", HFCausalConfig)(cls)
        with pytest.raises(AssertionError, match="the head on some states and forward"):
            splits_into_layers_and_head("under_test")


def test_a_correct_modulator_passes():
    check(Gate)


# A failure begins with the modulator and the encoder, whatever is raised.
@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (StartsLoud, "it modulates before any training"),
        (MixesGroups, "they differ"),
        (MixesTokens, "they differ"),
        (NeverListens, "two inquiries give the same features"),
        (Waits, "waits for the device"),
        (ForgetsAParameter, "'.*unused' is trainable and got no gradient"),
        (Breaks, "IndexError: "),
    ],
)
def test_a_broken_modulator_is_caught(cls, words):
    with pytest.raises(AssertionError, match=rf"\Aunder_test on '[a-z_0-9]+(, \w+)?': .*{words}"):
        check(cls)
