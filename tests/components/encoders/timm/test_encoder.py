"""The timm encoder computes what timm computes, region by region, and refuses what it was not written for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer

from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_components.encoders.timm.stem import StemConfig
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}

CONFIGS = {
    "plain": TimmConfig(config=SMALL),
    "class_and_registers": TimmConfig(config=SMALL | {"class_token": True, "reg_tokens": 2}),
    "no_embed_class": TimmConfig(config=SMALL | {"class_token": True, "reg_tokens": 1, "no_embed_class": True}),
    "no_positions": TimmConfig(config=SMALL | {"pos_embed": "none", "class_token": True}),
    "no_positions_and_pre_norm": TimmConfig(config=SMALL | {"pos_embed": "none", "pre_norm": True}),
    "pre_norm": TimmConfig(config=SMALL | {"pre_norm": True, "class_token": True}),
    "layer_scale_and_qk_norm": TimmConfig(config=SMALL | {"init_values": 0.1, "qk_norm": True}),
    "scale_norms": TimmConfig(config=SMALL | {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "pooled_with_fc_norm": TimmConfig(config=SMALL | {"global_pool": "avg"}),
    "conv_stem": TimmConfig(config=SMALL, stem=StemConfig(channels=(8, 16, 24))),
    "conv_stem_projected": TimmConfig(config=SMALL, stem=StemConfig((8, 16), (2, 2), "groupnorm")),
    "conv_stem_batchnorm": TimmConfig(config=SMALL, stem=StemConfig((8, 16), (4, 2), "batchnorm2d")),
    "vit": TimmConfig(model="vit_tiny_patch16_224", args={"img_size": 48, "depth": 2}),
    "siglip": TimmConfig(model="vit_base_patch16_siglip_224", args={"img_size": 32, "depth": 1}),
    "clip": TimmConfig(model="vit_base_patch32_clip_224", args={"img_size": 64, "depth": 1}),
    "dinov2": TimmConfig(model="vit_small_patch14_reg4_dinov2", args={"img_size": 28, "depth": 2}),
    "mobileclip_stem": TimmConfig(model="vit_base_mci_224", args={"img_size": 48, "depth": 1}),
    "hybrid": TimmConfig(model="vit_small_r26_s32_224", args={"img_size": (64, 96), "depth": 1}),
    "hybrid_batchnorm": TimmConfig(model="vit_base_resnet26d_224", args={"img_size": 64, "depth": 1}),
    "resnet_stem": TimmConfig(model="vit_tiny_r_s16_p8_224", args={"img_size": 64, "depth": 2}),
}


def encoder_of(config):
    """The encoder with every parameter drawn anew: timm starts several at zero or one."""
    torch.manual_seed(0)
    encoder = TimmEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return encoder


def crop_of(height, width, overview=False, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Crop(pixels, "image", overview)


def encode(encoder, views):
    features, _ = DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))
    return features


def library(encoder, view, mean, std):
    """timm's own forward of one view: patch tokens after its norms."""
    model = encoder.model
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    x = model.forward_features((view.data.unsqueeze(0) / 255 - mean) / std)
    return model.fc_norm(x)[0, model.num_prefix_tokens :]


def assert_equal(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_features_equal_timms_own_at_the_native_size(name):
    encoder = encoder_of(replace(CONFIGS[name], max_scale=1.0))
    height, width = encoder.model.patch_embed.img_size
    view = encoder.prepare(crop_of(height, width))
    assert view.data.shape == (3, height, width)
    data = resolve_data_config(model=encoder.model)
    expected = library(encoder, view, data["mean"], data["std"])
    assert_equal(encode(encoder, [view]), expected)


@pytest.mark.parametrize("extra", [{}, {"class_token": True, "reg_tokens": 2}, {"no_embed_class": True}])
@torch.no_grad()
def test_features_equal_timms_own_at_other_sizes(extra):
    encoder = encoder_of(TimmConfig(config=SMALL | extra))
    args = {"num_classes": 0, "class_token": False, "global_pool": "", "dynamic_img_size": True}
    model = VisionTransformer(**(args | SMALL | extra)).eval()
    model.load_state_dict(encoder.model.state_dict())
    views = [encoder.prepare(crop_of(h, w, seed=h)) for h, w in ((16, 64), (56, 24), (32, 32), (16, 64))]
    packed = encode(encoder, views).split([encoder.feature_count(view.size) for view in views])
    for view, found in zip(views, packed, strict=True):
        x = (view.data.unsqueeze(0) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(1, 3, 1, 1)
        assert_equal(found, model.forward_features(x)[0, model.num_prefix_tokens :])


@torch.no_grad()
def test_regions_of_a_convolutional_stem_do_not_see_each_other():
    encoder = encoder_of(CONFIGS["conv_stem"])
    views = [encoder.prepare(crop_of(h, w, seed=h + w)) for h, w in ((32, 32), (32, 64), (32, 32), (8, 8))]
    assert_equal(encode(encoder, views), torch.cat([encode(encoder, [view]) for view in views]))


def test_position_embeddings_are_trained_at_every_size():
    encoder = encoder_of(CONFIGS["plain"])
    encode(encoder, [encoder.prepare(crop_of(16, 40))]).square().mean().backward()
    assert encoder.model.pos_embed.grad.abs().amin() > 0


def test_stochastic_depth_drops_whole_regions_in_training_only():
    encoder = encoder_of(TimmConfig(config=SMALL | {"depth": 1, "final_norm": False}))
    block = encoder.model.blocks[0]
    block.drop_path1, block.drop_path2 = DropPath(0.5), DropPath(0.5)
    encoder.eval()
    views = [encoder.prepare(crop_of(32, 32))] * 16
    layout = Layout.build([views[0].size], [encoder.token_count(views[0].size)], [0])
    with torch.no_grad():
        kept = encode(encoder, views).unflatten(0, (16, -1))
        encoder.train()
        torch.manual_seed(0)
        dropped = encode(encoder, views).unflatten(0, (16, -1))
        untouched = encoder.embed(views[:1], layout).x
    same = [torch.allclose(region, untouched, atol=1e-5) for region in dropped]
    assert 1 <= sum(same) < 16
    assert all(torch.allclose(region, kept[0], atol=1e-5) for region in kept)


def test_views_keep_to_the_pixel_budgets():
    config = TimmConfig(config=SMALL, overview_pixels=1024, zoom_pixels=2048, max_scale=0.5)
    encoder = TimmEncoder(config)
    assert encoder.prepare(crop_of(256, 256, overview=True)).data.shape == (3, 32, 32)
    assert encoder.prepare(crop_of(64, 64)).size == (4, 4)
    assert encoder.prepare(crop_of(64, 128)).size == (4, 8)


def test_without_budgets_views_have_the_models_own_number_of_pixels_at_most():
    encoder = TimmEncoder(TimmConfig(config=SMALL))
    large = encoder.prepare(crop_of(3000, 4000, overview=True))
    assert 0.7 * 32 * 32 <= large.data[0].numel() <= 32 * 32
    assert encoder.prepare(crop_of(300, 400)).data[0].numel() <= 32 * 32
    assert encoder.prepare(crop_of(16, 16, overview=True)).data.shape == (3, 16, 16), "not enlarged"
    assert encoder.prepare(crop_of(16, 16)).data.shape == (3, 32, 32), "a region may be"


def test_the_constructor_works_on_the_meta_device():
    for config in (CONFIGS["conv_stem"], CONFIGS["resnet_stem"]):
        with torch.device("meta"):
            encoder = TimmEncoder(config)
        assert all(parameter.is_meta for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TimmConfig(path="weights.safetensors"), "needs either `model`"),
        (TimmConfig(model="vit_tiny_patch16_224", config=SMALL), r"both `model` \(.*\) and `config`. .*`config: null`"),
        (TimmConfig(model="vit_tiny_patch17_224"), "Did you mean 'vit_tiny_patch16_224'"),
        (TimmConfig(model="hf-hub:timm/resnet50"), "is an address"),
        (TimmConfig(model="resnet18"), r"'resnet18' is a ResNet. Take encoder `timm_stages`"),
        (TimmConfig(model="zzz"), r"no model 'zzz'. Did you mean '.+', '.+' or '.+'\? To list all: .*list_models"),
        (
            TimmConfig(model="vit_tiny_patch16_224.augreg"),
            r"no weights '.*'. Did you mean '.*\.augreg_in21k'.*list_pre",
        ),
        (TimmConfig(config=SMALL | {"attn_drop_rate": 0.1}), "attention dropout"),
        (TimmConfig(config=SMALL | {"patch_drop_rate": 0.1}), "PatchDropout"),
        (TimmConfig(config=SMALL | {"num_heads": 5}), "timm cannot build"),
        (TimmConfig(config=SMALL | {"hedas": 5}), "hedas"),
        (TimmConfig(config=SMALL, pretrained=True), "`pretrained` needs `model`"),
        (TimmConfig(model="vit_tiny_patch16_224", stem=StemConfig()), "`stem: null`"),
        (
            TimmConfig(config=SMALL, stem=StemConfig((8,), (2, 2))),
            "differ in number. Give each convolution one of both",
        ),
        (TimmConfig(config=SMALL | {"img_size": 33}, stem=StemConfig()), "33 pixels .* multiple of its stride"),
        (TimmConfig(config=SMALL | {"img_size": [32, 32, 32]}, stem=StemConfig()), "has no height and width"),
    ],
)
def test_what_it_was_not_written_for_is_refused_with_the_reason(config, words):
    with pytest.raises(BadConfig, match=words):
        TimmEncoder(config)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = encoder_of(CONFIGS["plain"]).model.state_dict()
    save_file(state | {"head.weight": torch.zeros(2, 24)}, path)
    return path


@torch.no_grad()
def test_local_weights_are_loaded(weights):
    encoder = TimmEncoder(TimmConfig(config=SMALL, path=str(weights))).eval()
    encoder.load_weights()
    view = encoder.prepare(crop_of(32, 32))
    assert torch.equal(encode(encoder, [view]), encode(encoder_of(CONFIGS["plain"]), [view]))


def test_weights_that_do_not_fit_are_listed(weights):
    encoder = TimmEncoder(TimmConfig(config=SMALL | {"depth": 3, "mlp_ratio": 1.0}, path=str(weights)))
    with pytest.raises(InputError, match=r"missing: blocks\.2\..*mis-shaped: blocks\.0\.mlp\.fc1\.bias \["):
        encoder.load_weights()
    encoder = TimmEncoder(TimmConfig(config=SMALL | {"depth": 1}, path=str(weights)))
    with pytest.raises(InputError, match=r"unexpected: blocks\.1\."):
        encoder.load_weights()


def test_the_error_of_foreign_weights_names_their_file_and_what_they_look_like(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({f"layer1.{i}.conv1.weight": torch.zeros(1) for i in range(9)}, path)
    with pytest.raises(InputError) as caught:
        TimmEncoder(TimmConfig(config=SMALL, path=str(path))).load_weights()
    told = str(caught.value)
    assert told.startswith(f"Weights '{path}' are of another architecture, by their names a ResNet (missing: ")
    assert "unexpected: layer1.0.conv1.weight" in told and "and 5 more" in told
    assert told.count(". ") == 1 and len(told) < 500


def test_what_a_model_computes_itself_may_stand_in_a_checkpoint(tmp_path):
    config = TimmEncoder.variants()["relative_table"]
    model = TimmEncoder(config).model
    computed = {name: value.clone() for name, value in model.named_buffers()}
    assert not computed.keys() <= model.state_dict().keys()
    save_file(model.state_dict() | computed, tmp_path / "w.safetensors")
    TimmEncoder(replace(config, path=str(tmp_path / "w.safetensors"))).load_weights()


def test_pickles_missing_and_broken_files_are_refused(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    for file, words in (
        ("weights.pt", "Convert once"),
        ("gone.safetensors", "do not exist"),
        (broken, "cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            TimmEncoder(TimmConfig(config=SMALL, path=str(file))).load_weights()


def test_weights_outside_the_cache_are_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = TimmConfig(
        model="vit_tiny_patch16_224", pretrained=True, local_files_only=True, args={"depth": 1, "img_size": 32}
    )
    with pytest.raises(InputError, match="not in the local cache"):
        TimmEncoder(config).load_weights()


@torch.no_grad()
def test_pretrained_weights_come_from_the_local_cache(monkeypatch, tmp_path):
    args = {"depth": 1, "img_size": 32}
    source = encoder_of(TimmConfig(model="vit_tiny_patch16_224", args=args))
    head = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    save_file(source.model.state_dict() | head, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(tmp_path / "model.safetensors"))
    config = TimmConfig(model="vit_tiny_patch16_224", pretrained=True, local_files_only=True, args=args)
    encoder = TimmEncoder(config).eval()
    encoder.load_weights()
    view = encoder.prepare(crop_of(32, 32))
    assert torch.equal(encode(encoder, [view]), encode(source, [view]))


def test_settings_are_read_from_a_recipe():
    stem = {"channels": [8, 16, 24], "strides": [2, 2, 2], "norm": "groupnorm"}
    config = parse_config(TimmConfig, {"config": SMALL, "stem": stem, "overview_pixels": 1024}, "recipe")
    assert TimmEncoder(config).stride == (8, 8)
