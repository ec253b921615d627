"""Policy losses: the hand cases, and what holds for any tokens."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vilavt_components.policy_losses.cispo import CISPO, CISPOConfig
from vilavt_components.policy_losses.dapo import DAPO, DAPOConfig
from vilavt_components.policy_losses.gspo import GSPO, GSPOConfig
from vilavt_components.policy_losses.ppo_clip import PPOClip, PPOClipConfig
from vilavt_components.policy_losses.sapo import SAPO, SAPOConfig
from vilavt_toolkit.training.reinforcement.policy_math import weighted_sum

HIGHER = {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 3.0}
LOSSES = {
    "grpo": PPOClip(PPOClipConfig()),
    "higher": PPOClip(PPOClipConfig(**HIGHER)),
    "dr_grpo": PPOClip(PPOClipConfig(normalise="constant", max_length=8)),
    "dapo": DAPO(DAPOConfig()),
}
lengths_of_a_step = st.lists(st.integers(0, 50), min_size=1, max_size=12)


def one(loss, rho, advantage):
    """Loss, gradient with respect to the log-probability, and whether it was clipped."""
    logp = torch.tensor([rho]).log().requires_grad_()
    found, clipped = loss.token_losses(logp, torch.zeros(1), torch.tensor([float(advantage)]))
    found.sum().backward()
    return found.item(), logp.grad.item(), bool(clipped)


@pytest.mark.parametrize("name", ["higher", "dapo"])
@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "gradient"),
    [(1.5, 1, -1.28, 0), (1.5, -1, 1.5, 1.5), (0.5, 1, -0.5, -0.5), (0.5, -1, 0.8, 0)],
)
def test_the_clip_takes_the_gain_away_and_leaves_the_loss(name, rho, advantage, loss, gradient):
    found = one(LOSSES[name], rho, advantage)
    assert found == (pytest.approx(loss, abs=1e-6), pytest.approx(gradient, abs=1e-6), gradient == 0)


def test_the_dual_clip_bounds_what_a_bad_token_can_cost():
    assert one(LOSSES["higher"], 10.0, -2) == (pytest.approx(6), 0, True)
    assert one(LOSSES["dapo"], 10.0, -2) == (pytest.approx(20, rel=1e-5), pytest.approx(20, rel=1e-5), False)
    assert one(LOSSES["higher"], 2.9, -2)[2] is False


@pytest.mark.parametrize(("name", "expected"), [("grpo", 0), ("dapo", 1 / 3), ("dr_grpo", 0.125)])
def test_a_good_short_and_a_bad_long_sequence(name, expected):
    lengths, gains = [2, 4], torch.tensor([1.0, 1, -1, -1, -1, -1])
    loss, _ = LOSSES[name].token_losses(torch.zeros(6), torch.zeros(6), gains)
    assert weighted_sum(loss, LOSSES[name].sequence_weights(lengths), lengths).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_at_a_ratio_of_one_the_whole_gradient_flows():
    for name, loss in LOSSES.items():
        for advantage in (2.0, -2.0):
            assert one(loss, 1.0, advantage)[1:] == (pytest.approx(-advantage), False), name


@settings(deadline=None)
@given(lengths_of_a_step)
def test_weights_make_means(lengths):
    produced, counted = sum(lengths), sum(length > 0 for length in lengths)
    total = {
        name: sum(w * n for w, n in zip(loss.sequence_weights(lengths), lengths, strict=True))
        for name, loss in LOSSES.items()
    }
    assert total["grpo"] == pytest.approx(float(produced > 0))
    assert total["dapo"] == pytest.approx(float(produced > 0))
    assert total["dr_grpo"] == pytest.approx(produced / (8 * counted) if counted else 0)


@settings(deadline=None)
@given(lengths_of_a_step)
def test_a_sequence_without_tokens_changes_no_other_weight(lengths):
    for loss in LOSSES.values():
        assert loss.sequence_weights([*lengths, 0]) == [*loss.sequence_weights(lengths), 0]


@pytest.mark.parametrize("name", LOSSES)
@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(any), data=st.data())
def test_no_split_into_micro_batches_changes_a_gradient(name, lengths, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(lengths) - 1))))
    generator = torch.Generator().manual_seed(sum(lengths))
    old, gains = torch.randn(2, sum(lengths), generator=generator)
    start = old + torch.randn(sum(lengths), generator=generator)
    weights = LOSSES[name].sequence_weights(lengths)

    def gradient(bounds):
        logp = start.clone().requires_grad_()
        for first, last in pairwise(bounds):
            tokens = slice(sum(lengths[:first]), sum(lengths[:last]))
            loss, _ = LOSSES[name].token_losses(logp[tokens], old[tokens], gains[tokens])
            weighted_sum(loss, weights[first:last], lengths[first:last]).backward()
        return logp.grad

    assert torch.equal(gradient([0, *cuts, len(lengths)]), gradient([0, len(lengths)]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"normalise": "constant"}, "max_length and `normalise: constant` go together"),
        ({"max_length": 8}, "max_length and `normalise: constant` go together"),
        ({"eps_high": 2.5, "dual_clip": 3.0}, "must exceed 1 \\+ eps_high"),
        ({"eps_high": 2.0, "dual_clip": 3.0}, "must exceed 1 \\+ eps_high, 3.0. Raise it or set null"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PPOClipConfig(**settings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [0.25, 0, 0.5]),
        ("dapo", [1 / 3, 0, 1 / 3]),
        ("dr_grpo", [0.0625, 0, 0.0625]),
    ],
)
def test_the_weights_of_a_long_an_empty_and_a_short_sequence(name, expected):
    assert LOSSES[name].sequence_weights([2, 0, 1]) == pytest.approx(expected)
    assert PPOClip(PPOClipConfig(normalise="tokens")).sequence_weights([2, 0, 1]) == pytest.approx([1 / 3, 0, 1 / 3])


@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "clipped"),
    [
        (0.7, 2, -1.4, False),
        (0.9, -2, 1.8, False),
        (0.7, -2, 1.6, True),
        (1.25, 2, -2.5, False),
        (1.3, 2, -2.56, True),
        (1.3, -2, 2.6, False),
        (2.9, -2, 5.8, False),
        (3.1, -2, 6, True),
        (3.1, 2, -2.56, True),
        (3.1, 0, 0, False),
        (1.1, 0.5, -0.55, False),
        (1.1, -0.5, 0.55, False),
    ],
)
def test_the_loss_of_a_token_on_either_side_of_every_clip(rho, advantage, loss, clipped):
    found, gradient, said = one(LOSSES["higher"], rho, advantage)
    assert (found, said) == (pytest.approx(loss, abs=1e-5), clipped)
    assert gradient == pytest.approx(0 if clipped else -advantage * rho, rel=1e-5)


def test_the_dual_clip_leaves_room_above_the_clip():
    assert PPOClipConfig(eps_high=1.9, dual_clip=3.0).dual_clip == 3
    assert PPOClipConfig(eps_high=9.0, dual_clip=None).dual_clip is None


# --- Other surrogates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("advantage", "loss", "gradient"), [(1, -1.28, 0), (-1, 2, 2)])
def test_gspo_clips_a_sequence_by_the_mean_of_its_log_ratios(advantage, loss, gradient):
    # Ratios of 4 and 1: their geometric mean is 2. The other sequence, at 1, is its own.
    logp = torch.tensor([4.0, 1, 1]).log().requires_grad_()
    gains = torch.tensor([float(advantage)] * 2 + [1.0])
    found, clipped = GSPO(GSPOConfig(eps_low=0.2, eps_high=0.28)).sequence_losses(logp, torch.zeros(3), gains, [2, 1])
    found.sum().backward()
    assert found.tolist() == pytest.approx([loss, loss, -1])
    assert logp.grad.tolist() == pytest.approx([gradient, gradient, -1])
    assert clipped.tolist() == [gradient == 0] * 2 + [False]


def test_the_loss_of_gspo_is_a_mean_over_sequences_of_any_length():
    logp, lengths = torch.tensor([0.3, -0.1, 0.2, 0.4, -0.4]), [3, 0, 2]
    gains = torch.tensor([-1.0, -1, -1, -3, -3])
    part = GSPO(GSPOConfig(eps_low=1, eps_high=9))
    losses, _ = part.sequence_losses(logp, torch.zeros(5), gains, lengths)
    expected = (torch.tensor(0.4 / 3).exp() + 3) / 2
    assert weighted_sum(losses, part.sequence_weights(lengths), lengths).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("rho", "advantage", "weight"), [(8.0, 2, 5), (0.5, 2, 0.5), (8.0, -2, 5), (0.01, -1, 0.01)])
def test_cispo_bounds_the_weight_of_a_token_and_leaves_it_its_gradient(rho, advantage, weight):
    logp = torch.tensor([-0.5]).requires_grad_()
    old = logp.detach() - torch.tensor([rho]).log()
    loss, clipped = CISPO(CISPOConfig()).token_losses(logp, old, torch.tensor([float(advantage)]))
    loss.sum().backward()
    assert (loss.item(), logp.grad.item()) == (
        pytest.approx(weight * advantage * 0.5),
        pytest.approx(-weight * advantage),
    )
    assert not clipped.item()


@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "gradient"),
    [
        (1.0, 1, -2, -1),
        (1.0, -1, 2 / 1.05, 1),
        (2.0, 1, -2.924234, -1.572896),
        (2.0, -1, 2.822000, 1.536227),
        (0.5, 1, -1.510163, -0.470007),
    ],
)
def test_the_gate_of_sapo_fades_on_both_sides_of_one(rho, advantage, loss, gradient):
    found = one(SAPO(SAPOConfig()), rho, advantage)
    assert found == (pytest.approx(loss, abs=1e-5), pytest.approx(gradient, abs=1e-5), False)


def test_the_gate_of_sapo_leaves_a_far_token_what_float32_can_hold():
    assert one(SAPO(SAPOConfig()), 30.0, 1)[1] == pytest.approx(-4 * 30 * 2.543666e-13, rel=1e-3)
