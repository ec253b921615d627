"""Any model of timm that hands one tensor from module to module runs stage by stage, and computes what timm does."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vilavt_components.encoders.timm_stages.encoder import TimmStagesConfig, TimmStagesEncoder
from vilavt_components.encoders.timm_stages.models import build_whole
from vilavt_components.encoders.timm_stages.watching import first_gap, watch_forward
from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.testing.bench import WordInquiryEncoder
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

PAGE = Path(__file__).parents[4] / "docs" / "encoder-families.md"
# By family: name and arguments of a small model, its stages, and the multiple of its views' sides (0: one size).
FAMILIES = {
    "hiera": ("hiera_tiny_224", {"img_size": 32, "embed_dim": 8, "num_heads": 1, "stages": (1, 2, 1, 1)}, 4, 0),
    "nfnet": ("test_nfnet", {}, 4, 32),
    "mambaout": ("test_mambaout", {}, 4, 32),
    "efficientnet": ("test_efficientnet", {}, 5, 32),
    "byobnet": ("test_byobnet", {}, 4, 32),
    "maxxvit": ("test_coatnet", {}, 4, 0),
    "dla": ("dla46x_c", {}, 6, 32),
}


def encoder_of(name, args, **settings):
    torch.manual_seed(0)
    return TimmStagesEncoder(TimmStagesConfig(model=name, args=args, **settings)).eval()


def views_of(encoder, *sizes):
    rng = np.random.default_rng(0)
    return [encoder.prepare(Crop(rng.integers(0, 256, (*size, 3), np.uint8), "image", False)) for size in sizes]


def encode(dynamic, views, ids):
    features, _ = dynamic.encode(views, range(len(views)), ids)
    return features.split([dynamic.backbone.feature_count(view.size) for view in views])


def by_timm(encoder, view):
    """What timm's whole model makes of a view, as far as the features go; [*grid, D]."""
    whole = build_whole(encoder.config.model, encoder.config.args).eval()
    whole.load_state_dict(encoder.model.state_dict(), strict=False)
    x = whole.forward_features(encoder.normalise_pixels(view.data.unsqueeze(0), next(whole.parameters())))
    if type(getattr(whole, "head", None)).__name__ in ("NormMlpClassifierHead", "ClNormMlpClassifierHead"):
        x = whole.head.norm(x)
    axes = encoder._staged.plan.features.axes
    return x[0].permute(1, 2, 0) if axes == "nchw" else x[0].view(*encoder.feature_grid(view.size), -1)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_small_model_of_the_family_runs_in_stages_as_timm_runs_it_and_hears_inquiries(family):
    name, args, stages, multiple = FAMILIES[family]
    encoder = encoder_of(name, args)
    assert encoder.spec.depth == stages and encoder.side_multiple == multiple
    views = views_of(encoder, (64, 96), (32, 64))
    for view, found in zip(views, encode(DynamicEncoder(encoder), views, [[], []]), strict=True):
        expected = by_timm(encoder, view)
        assert tuple(expected.shape[:2]) == encoder.feature_grid(view.size)
        torch.testing.assert_close(
            found.view_as(expected), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )
    dynamic = DynamicEncoder(encoder, [(FiLM, FiLMConfig(zero_init=False))], "all", WordInquiryEncoder()).eval()
    ids = [dynamic.tokenize(text) for text in ("the red square", "read")]
    packed = encode(dynamic, views, ids)
    for region, (view, words) in enumerate(zip(views, ids, strict=True)):
        (alone,) = encode(dynamic, [view], [words])
        torch.testing.assert_close(packed[region], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
        assert not torch.equal(packed[region], encode(dynamic, views, ids[::-1])[region])


def test_a_model_of_one_size_gets_every_region_at_that_size():
    encoder = encoder_of(*FAMILIES["hiera"][:2])
    assert {tuple(view.data.shape) for view in views_of(encoder, (10, 70), (64, 64), (200, 9))} == {(3, 32, 32)}
    with pytest.raises(BadConfig, match=r"views of 32 x 32 pixels only, which is more than `zoom_pixels` 512"):
        encoder_of(*FAMILIES["hiera"][:2], zoom_pixels=512)
    small = Crop(np.zeros((9, 9, 3), np.uint8), "image", True, max_pixels=1000)
    with pytest.raises(InputError, match=r"max_pixels of 1000 is less than the 32 x 32 pixels of every view"):
        encoder.prepare(small)


@torch.no_grad()
def test_maps_of_a_model_with_its_own_order_of_tokens_are_in_rows_after_every_stage():
    name, args, _, _ = FAMILIES["hiera"]
    for stages in (1, 2):
        encoder = encoder_of(name, args, stages=stages)
        (view,) = views_of(encoder, (40, 40))
        (found,) = encode(DynamicEncoder(encoder), [view], [[]])
        whole = timm.create_model(name, **args).eval()
        whole.load_state_dict(encoder.model.state_dict(), strict=False)
        images = encoder.normalise_pixels(view.data.unsqueeze(0), next(whole.parameters()))
        expected = whole.forward_intermediates(images, indices=[stages - 1], norm=False, output_fmt="NHWC")[1][0]
        torch.testing.assert_close(found, expected.flatten(0, 2))


def test_a_change_between_modules_is_noticed_even_if_it_is_made_in_place():
    class Model(nn.Module):
        def __init__(self, between):
            super().__init__()
            self.a, self.b, self.between = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), between

        def forward_features(self, x):
            return self.b(self.between(self.a(x)))

    def gap(between):
        with torch.device("meta"):
            root = watch_forward(Model(between), 8, 8)
        return first_gap(root.inner, root.given, root)

    assert gap(lambda x: x) is None
    assert gap(lambda x: x + 1) == gap(lambda x: x.add_(1)) == "timm changes the maps before 'b'"


def test_weights_that_the_features_do_not_need_are_not_there_and_a_whole_checkpoint_is_loaded(tmp_path):
    name, args, _, _ = FAMILIES["nfnet"]
    whole = timm.create_model(name, **args)
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    for stages in (None, 2):
        encoder = encoder_of(name, args, stages=stages, path=str(tmp_path / "weights.safetensors"))
        encoder.load_weights()
        own = encoder.model.state_dict()
        assert not any(key.startswith("head.") for key in own)
        assert any(key.startswith("stages.3.") for key in own) == (stages is None)
        assert all(torch.equal(value, whole.state_dict()[key]) for key, value in own.items())


def test_the_page_lists_every_family_of_timm_and_most_of_them_run():
    text = PAGE.read_text(encoding="utf-8")
    taken, refused = (re.findall(r"^\| (\w+) \| \w+ \|", part, re.M) for part in text.split("| refused family |"))
    families = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()}
    assert {*taken, *refused} >= families, "run benchmarks/encoder_families.py --write"
    assert len(taken) == len(set(taken)) >= 60
    assert not set(taken) & set(refused)
