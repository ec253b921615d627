"""The contract tests fail on components that break their contract."""

import pytest
import torch
from torch import nn

from vilavt_toolkit.contracts import Modulator
from vilavt_toolkit.registry import inquiry_encoders, isolated, modulators
from vilavt_toolkit.registry.plugins import load_builtin
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing import bench, check_inquiry_encoder, check_modulator

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


def check(cls):
    with isolated():
        modulators.register("under_test")(cls)
        check_modulator("under_test")


def test_variants_of_an_inquiry_encoder_are_held_to_the_contract_too():
    with isolated():
        inquiry_encoders.register("under_test")(Words)
        with pytest.raises(AssertionError, match="under_test, shifted: an empty inquiry does not pool to zero"):
            check_inquiry_encoder("under_test")


def test_a_correct_modulator_passes():
    check(Gate)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (StartsLoud, "modulates before any training"),
        (MixesGroups, "they differ"),
        (MixesTokens, "they differ"),
        (NeverListens, "two inquiries give the same features"),
        (Waits, "waits for the device"),
        (ForgetsAParameter, "'.*unused' is trainable and got no gradient"),
    ],
)
def test_a_broken_modulator_is_caught(cls, words):
    with pytest.raises(AssertionError, match=words):
        check(cls)
