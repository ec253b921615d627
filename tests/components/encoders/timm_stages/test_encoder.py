"""The staged encoder computes what timm computes, stage by stage and region by region, and keeps BatchNorm still."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config

from vilavt_components.encoders.timm_stages.encoder import TimmStagesConfig, TimmStagesEncoder
from vilavt_components.encoders.timm_stages.variants import small_models
from vilavt_components.modulators.cross_attention import CrossAttention, CrossAttentionConfig
from vilavt_components.modulators.film import FiLM, FiLMConfig
from vilavt_components.modulators.joint_attention import JointAttention
from vilavt_components.modulators.lora_gated import LoRAGated, LoRAGatedConfig
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.settings import NoSettings
from vilavt_toolkit.testing.bench import WordInquiryEncoder, example_views
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder
from vilavt_toolkit.vision.modulation import ModulatedBlock, layout_after_block

SIZES = ((32, 32), (40, 16), (48, 80), (32, 32))
SWIN = {"img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 5}


def drawn(model):
    """Every weight and statistic drawn anew: timm starts several at zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
    return model.eval()


def whole_resnet():
    name, args, _ = small_models()["resnet"]
    torch.manual_seed(0)
    return drawn(timm.create_model(name, num_classes=5, **args))


def encoder_of(name, args, stages=None):
    torch.manual_seed(0)
    config = TimmStagesConfig(model=name, args=args, stages=stages, overview_pixels=4096, zoom_pixels=4096, max_scale=1)
    encoder = TimmStagesEncoder(config).eval()
    drawn(encoder.model)
    return encoder


def views_of(encoder, sizes=SIZES):
    rng = np.random.default_rng(0)
    crops = [Crop(rng.integers(0, 256, (*size, 3), dtype=np.uint8), "image", False) for size in sizes]
    return [encoder.prepare(crop) for crop in crops]


def encode(encoder, views):
    return DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))[0]


def stages_of(encoder, views):
    """What every stage gives, packed, and the layouts behind them."""
    sizes = [view.size for view in views]
    layout = Layout.build(sizes, [encoder.token_count(size) for size in sizes], range(len(views)))
    tokens, found = encoder.embed(views, layout), []
    for index in range(encoder.spec.depth):
        after = layout_after_block(encoder, index, layout)
        call = ModulatedBlock.from_block(encoder, index, [], tokens, after, None)
        tokens = tokens.after_block(encoder.block(index, tokens, call.modulate_site, call.attend), after)
        found.append((tokens.x, after))
    return found


def library_of(encoder, name, args):
    """timm's own model with the same weights, whole, for any size."""
    any_size = {"strict_img_size": False} if "swin" in name else {}
    model = timm.create_model(name, num_classes=0, **args, **any_size).eval()
    missing, unexpected = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not unexpected
    return model, missing


def pixels(model, view):
    data = resolve_data_config(model=model)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (view.data.unsqueeze(0) / 255 - mean) / std


def last_norm(model, x):
    norm = getattr(getattr(model, "head", None), "norm", None)
    return x if norm is None else norm(x)


def packed(maps, channels_last):
    return (maps if channels_last else maps.permute(0, 2, 3, 1)).flatten(0, 2)


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


CASES = {name: case for name, case in small_models().items() if name != "hiera"} | {
    "swin_padded": ("swin_tiny_patch4_window7_224", SWIN, None),
    "swin_v2_padded": ("swinv2_tiny_window8_256", SWIN, None),
    "swin_always": ("swin_tiny_patch4_window7_224", SWIN | {"always_partition": True}, None),
    "convnext_normed_first": ("convnext_tiny", small_models()["convnext_whole"][1] | {"head_norm_first": True}, None),
    "convnext_overlap": (
        "convnext_tiny",
        small_models()["convnext"][1] | {"stem_type": "overlap", "conv_mlp": True},
        2,
    ),
    "resnext": ("resnext50_32x4d", {"layers": (1, 1, 1, 1)}, 2),
    "squeezed": ("seresnet50", {"layers": (1, 1, 1, 1), "channels": (16, 16, 16, 16)}, 3),
    "blurred": ("resnetblur50", {"layers": (1, 1, 1, 1), "channels": (4, 6, 8, 8)}, 2),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_stages_and_features_equal_timms_own_at_every_size(case):
    name, args, stages = CASES[case]
    encoder = encoder_of(name, args, stages)
    model, missing = library_of(encoder, name, args)
    assert bool(missing) == (stages is not None)
    last, views = "swin" in name, views_of(encoder)
    first = 1 if "resne" in name else 0
    indices = [first + index for index in range(encoder.spec.depth)]
    expected = [
        model.forward_intermediates(pixels(model, view), indices=indices, stop_early=True, output_fmt="NCHW")[1]
        for view in views
    ]
    for index, (found, layout) in enumerate(stages_of(encoder, views)):
        each = [packed(maps[index], channels_last=False) for maps in expected]
        assert_equal(found, torch.cat(each))
        assert layout.sizes == tuple(tuple(maps[index].shape[-2:]) for maps in expected)
    features = encode(encoder, views)
    if stages is None:
        whole = [last_norm(model, model.forward_features(pixels(model, view))) for view in views]
        if last:
            whole = [model.forward_features(pixels(model, view)) for view in views]
        assert_equal(features, torch.cat([packed(maps, last) for maps in whole]))
    else:
        assert torch.equal(features, stages_of(encoder, views)[-1][0])


@torch.no_grad()
def test_a_swin_made_for_another_size_pads_its_windows_as_timm_does():
    encoder = encoder_of("swin_tiny_patch4_window7_224", SWIN)
    view = views_of(encoder, [(48, 80)])[0]
    assert any(side % 5 for side in encoder.block_grid(0, view.size)), "no multiple of the window"


@torch.no_grad()
def test_regions_of_different_sizes_do_not_see_each_other():
    for name in ("convnext_whole", "swin", "swin_v2", "resnet"):
        encoder = encoder_of(*small_models()[name])
        views = views_of(encoder)
        assert_equal(encode(encoder, views), torch.cat([encode(encoder, [view]) for view in views]))


def test_a_stage_runs_once_for_all_views_of_a_size():
    encoder = encoder_of(*small_models()["convnext"])
    calls = []
    stage = encoder.model.stages[1]
    stage.register_forward_pre_hook(lambda module, given: calls.append(tuple(given[0].shape)))
    encode(encoder, views_of(encoder))
    assert sorted(shape[0] for shape in calls) == [1, 1, 2]


def test_batch_norm_keeps_its_statistics_in_training_and_its_weights_learn():
    encoder = encoder_of(*small_models()["resnet"])
    views = views_of(encoder)
    with torch.no_grad():
        expected = encode(encoder, views)
    before = copy.deepcopy(encoder.model.state_dict())
    encoder.train()
    assert encoder.training and encoder.model.training
    found = encode(encoder, views)
    assert_equal(found.detach(), expected)
    found.square().mean().backward()
    assert encoder.model.bn1.weight.grad.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in encoder.model.state_dict().items())


def dynamic(encoder, cls, config):
    torch.manual_seed(1)
    return DynamicEncoder(encoder, [(cls, config)], "all", WordInquiryEncoder()).eval()


@pytest.mark.parametrize(
    ("cls", "config"), [(FiLM, FiLMConfig(zero_init=False)), (CrossAttention, CrossAttentionConfig())]
)
@torch.no_grad()
def test_every_stage_hears_the_inquiry_of_its_own_region_only(cls, config):
    made = dynamic(encoder_of(*small_models()["convnext"]), cls, config)
    for modulator in made.modulators.modules():
        if isinstance(modulator, CrossAttention):
            modulator.out.weight.normal_(std=0.1)
    assert len(made.modulators) == 2
    views = example_views(made.backbone)
    plain = encode(made.backbone, views)
    asked = made.encode(views, [1, 0, 1, 2, 0], [made.tokenize(text) for text in ("a b c", "", "d")])[0]
    counts = [made.backbone.feature_count(view.size) for view in views]
    for region, (found, without) in enumerate(zip(asked.split(counts), plain.split(counts), strict=True)):
        if region in (0, 2):
            assert torch.equal(found, without), "an empty inquiry changes nothing"
        else:
            text = "d" if region == 3 else "a b c"
            assert_equal(found, made.encode([views[region]], [0], [made.tokenize(text)])[0])
            assert (found - without).abs().max() > 1e-4
    for stage in ("0", "1"):
        alone = DynamicEncoder(made.backbone, [(cls, config)], [int(stage)], made.inquiry_encoder).eval()
        alone.modulators[stage].load_state_dict(made.modulators[stage].state_dict())
        heard = alone.encode(views[:1], [0], [made.tokenize("d")])[0]
        assert (heard - plain[: counts[0]]).abs().max() > 1e-5, f"stage {stage} does not listen"


@torch.no_grad()
def test_explanations_of_all_stages_lie_on_the_grid_of_the_view():
    made = dynamic(encoder_of(*small_models()["convnext"]), CrossAttention, CrossAttentionConfig())
    views = example_views(made.backbone)
    found = made.explain_views(views, [0] * 5, [made.tokenize("a b c")])
    for explanation, view in zip(found, views, strict=True):
        assert explanation.weights.shape == (3, *view.size)
        torch.testing.assert_close(explanation.weights.sum(0), torch.ones(view.size))
        cells = explanation.weights.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
        assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4))), "a cell of the first stage is four of the view's"
    single = DynamicEncoder(made.backbone, [(CrossAttention, CrossAttentionConfig())], [0], made.inquiry_encoder).eval()
    single.modulators["0"].load_state_dict(made.modulators["0"].state_dict())
    fine = single.explain_views(views[:1], [0], [made.tokenize("a b c")])[0]
    assert not torch.allclose(fine.weights, found[0].weights), "the second stage has its part in the mean"


@pytest.mark.parametrize(
    ("cls", "config", "words"),
    [
        (LoRAGated, LoRAGatedConfig(), "block 0: it adds to the output of 'qkv'"),
        (JointAttention, NoSettings(), "block 0: it adds keys and values, and the block has no attention of tokens"),
    ],
)
def test_modulators_of_the_inside_of_a_block_are_refused_with_the_reason(cls, config, words):
    with pytest.raises(BadConfig, match=words):
        dynamic(encoder_of(*small_models()["swin"]), cls, config)


def test_compiling_is_refused_with_the_way_out():
    with pytest.raises(BadConfig, match=r"for every distinct size of view.*`compile: false`"):
        DynamicEncoder(encoder_of(*small_models()["convnext"])).compile_blocks()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TimmStagesConfig(model="convnext_tinny"), "Did you mean 'convnext_tiny'"),
        (TimmStagesConfig(model="hf-hub:timm/resnet50"), "is an address"),
        (
            TimmStagesConfig(model="vit_tiny_patch16_224"),
            r"'vit_tiny_patch16_224' is a plain .*\(VisionTransformer\).* Take encoder `timm`",
        ),
        (
            TimmStagesConfig(model="visformer_tiny"),
            r"cannot run 'visformer_tiny' \(Visformer\) stage by stage: timm changes the maps before .*Choose another",
        ),
        (TimmStagesConfig(model="resnet18", stages=5), "has 4 stages. Set `stages` to 4 at most"),
        (TimmStagesConfig(model="resnet18", args={"blocks": 3}), "timm cannot build 'resnet18'"),
        (TimmStagesConfig(pretrained=True), "`pretrained` needs `model`"),
        (TimmStagesConfig(path="weights.safetensors"), "`path` needs `model`"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(config, words):
    with pytest.raises(BadConfig, match=words):
        TimmStagesEncoder(config)


def test_with_nothing_set_a_small_model_fits_views_of_32_pixels():
    encoder = TimmStagesEncoder(TimmStagesConfig())
    overview = encoder.prepare(Crop(np.zeros((256, 256, 3), np.uint8), "image", True))
    assert overview.data.shape == (3, 32, 32) and encoder.feature_grid(overview.size) == (4, 4)
    zoom = encoder.prepare(Crop(np.zeros((64, 128, 3), np.uint8), "image", False))
    assert encoder.feature_grid(zoom.size) == (4, 8)
    assert encoder.spec.out_width == 128
    deeper = TimmStagesEncoder(TimmStagesConfig(args={"depths": [1, 1, 1, 1]}, stages=1))
    assert deeper.spec.depth == 1 and len(deeper.model.stages[0].blocks) == 1


def test_without_budgets_views_have_the_models_own_number_of_pixels_at_most():
    large = Crop(np.zeros((900, 900, 3), np.uint8), "image", True)
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    assert TimmStagesEncoder(TimmStagesConfig(model="resnet18", args=small)).prepare(large).data.shape == (3, 224, 224)
    assert TimmStagesEncoder(TimmStagesConfig(model=CASES["swin"][0], args=SWIN)).prepare(large).size == (16, 16)


def test_copies_and_pickles_are_whole():
    encoder = encoder_of(*small_models()["convnext_whole"])
    views = views_of(encoder)
    with torch.no_grad():
        expected = encode(encoder, views)
        for made in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
            assert torch.equal(encode(made, views), expected)
            made.model.stages[0].downsample[1].weight.zero_()
            assert not torch.equal(encode(made, views), expected), "the copy runs on its own weights"


@pytest.fixture
def checkpoint(tmp_path):
    """All of a ResNet, with its head, as a published checkpoint."""
    path = tmp_path / "weights.safetensors"
    save_file(whole_resnet().state_dict(), path)
    return path


@torch.no_grad()
def test_of_a_whole_checkpoint_the_stages_that_are_used_are_loaded(checkpoint):
    name, args, stages = small_models()["resnet"]
    for used in (stages, None):
        encoder = TimmStagesEncoder(TimmStagesConfig(model=name, args=args, stages=used, path=str(checkpoint)))
        encoder.load_weights()
        expected = whole_resnet().state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in encoder.model.state_dict().items())


SMALL_WHOLES = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "convnext": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    "resnet": ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16)}),
}


@pytest.mark.parametrize("family", SMALL_WHOLES)
@pytest.mark.parametrize("stages", [None, 1])
@pytest.mark.parametrize("buffers", [False, True])
def test_what_timm_saves_of_a_whole_model_is_loaded_head_and_computed_buffers_and_all(
    tmp_path, family, stages, buffers
):
    name, args = SMALL_WHOLES[family]
    whole = timm.create_model(name, **args)
    held = whole.state_dict() | (dict(whole.named_buffers()) if buffers else {})
    assert any(key.startswith(("head.", "fc.")) for key in held)
    path = tmp_path / "weights.safetensors"
    save_file({key: value.clone() for key, value in held.items()}, path)
    encoder = TimmStagesEncoder(TimmStagesConfig(model=name, args=args, stages=stages, path=str(path)))
    encoder.load_weights()
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in encoder.model.state_dict().items())


@pytest.mark.parametrize("stages", [None, 1])
def test_a_swin_as_its_authors_saved_it_is_loaded(tmp_path, stages):
    name, args = SMALL_WHOLES["swin"]
    whole = timm.create_model(name, **args).state_dict()
    old = whole
    for stage in (1, 2):
        old = {key.replace(f"layers.{stage}.down", f"layers.{stage - 1}.down"): value for key, value in old.items()}
    assert old.keys() != whole.keys()
    save_file(old, tmp_path / "weights.safetensors")
    config = TimmStagesConfig(model=name, args=args, stages=stages, path=str(tmp_path / "weights.safetensors"))
    encoder = TimmStagesEncoder(config)
    encoder.load_weights()
    assert all(torch.equal(value, whole[key]) for key, value in encoder.model.state_dict().items())


def test_a_checkpoint_of_another_architecture_is_one_clear_error(checkpoint):
    name, args, stages = small_models()["convnext"]
    encoder = TimmStagesEncoder(TimmStagesConfig(model=name, args=args, stages=stages, path=str(checkpoint)))
    with pytest.raises(InputError, match=r"weights\.safetensors' are of another architecture") as caught:
        encoder.load_weights()
    assert len(str(caught.value)) < 700, "not every tensor is named"


@torch.no_grad()
def test_pretrained_weights_come_from_the_local_cache(monkeypatch, checkpoint):
    name, args, stages = small_models()["resnet"]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: str(checkpoint))
    config = TimmStagesConfig(model=name, pretrained=True, local_files_only=True, args=args, stages=stages)
    encoder = TimmStagesEncoder(config)
    encoder.load_weights()
    assert torch.equal(encoder.model.bn1.running_mean, whole_resnet().bn1.running_mean)
