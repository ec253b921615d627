"""Every block class of timm that the encoder was written for computes, packed, what timm's own forward computes."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from timm.layers import Attention
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos
from timm.models.vision_transformer import Block, DiffParallelScalingBlock, ParallelScalingBlock
from torch._dynamo.utils import counters

from vilavt_components.encoders.timm.blocks import block_adapters
from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.errors import BadConfig
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
SCALED = SMALL | {"init_values": 0.5}
FLEXIBLE = {key: value for key, value in SCALED.items() if key != "img_size"}


def gated(**kwargs):
    block = Block(**kwargs)
    block.attn = Attention(kwargs["dim"], kwargs["num_heads"], qkv_bias=True, gated=True, attn_head_dim=12)
    return block


def named(model, **args):
    return TimmConfig(model=model, args=args)


def configured(**args):
    return TimmConfig(config=VIT | args)


CONFIGS = TimmEncoder.variants() | {
    "distilled": named("deit_tiny_distilled_patch16_224", **SMALL),
    "deit3": named("deit3_small_patch16_224", **SCALED),
    "gated": configured(block_fn=gated),
    "packed_swiglu": named("vit_giant_patch14_dinov2", **SCALED),
    "aimv2": named("aimv2_large_patch14_224", **SMALL),
    "parallel_qk_norm": named("vit_base_patch16_xp_224", **SMALL),
    "parallel_fused": configured(block_fn=partial(ParallelScalingBlock, fuse_out_proj=True), qkv_bias=False),
    "dual_lambda": configured(embed_dim=24, block_fn=partial(DiffParallelScalingBlock, dual_lambda=True)),
    "differential_normed": named("vit_dwee_patch16_reg1_gap_256", **(SCALED | {"qk_norm": True})),
    "side_by_side_scaled": named("vit_small_patch16_18x2_224", **(SCALED | {"scale_attn_norm": True})),
    "eva_giant": named("eva_giant_patch14_224", **SMALL),
    "eva02_fused": named("eva02_tiny_patch14_224", **SMALL),
    "eva_scaled": named("eva02_base_patch16_clip_224", **SMALL),
    "eva_post_norm_swiglu": named(
        "eva02_enormous_patch14_clip_224", **(SMALL | {"swiglu_mlp": True, "use_rot_pos_emb": True})
    ),
    "perception": named("vit_pe_core_tiny_patch16_384", **SCALED),
    "rope_registers": named("vit_medium_patch16_rope_reg1_gap_256", **SCALED),
    "rope_axial": named("vit_small_patch16_rope_224", **SCALED),
    "rope_mixed_absolute": named("vit_small_patch16_rope_mixed_ape_224", **SCALED),
    "rope_mrope": named(
        "vit_medium_patch16_rope_reg1_gap_256", **(SCALED | {"rope_type": "mrope", "rope_mrope_section": (2, 3, 3)})
    ),
    "dinov3_biased": named("vit_tiny_patch16_dinov3_qkvb", **SCALED),
    "dinov3_swiglu": named("vit_huge_plus_patch16_dinov3", **SCALED),
    "grouped_queries": named("vit_large_patch16_sapiens2", **SCALED, num_kv_heads=1),
    "beit_shared": named("beitv2_base_patch16_224", **(SCALED | {"use_shared_rel_pos_bias": True})),
    "beit_absolute": named(
        "beit_base_patch16_224", **(SMALL | {"use_rel_pos_bias": False, "use_abs_pos_emb": True, "swiglu_mlp": True})
    ),
    "relative_class": named("vit_relpos_base_patch16_clsgap_224", **(SCALED | {"rel_pos_type": "bias"})),
    "relative_swin": named("vit_relpos_base_patch16_cls_224", **(SCALED | {"rel_pos_type": "mlpswin"})),
    "relative_shared": named("vit_srelpos_small_patch16_224", **SCALED),
    "relative_post_norm": named("vit_relpos_small_patch16_rpn_224", **SCALED),
    "naflex_linear": named("naflexvit_base_patch16_siglip", **FLEXIBLE, pos_embed_grid_size=(3, 2)),
    "naflex_factorised": named("naflexvit_base_patch16_parfac_gap", **FLEXIBLE, reg_tokens=2),
    "naflex_rope": named(
        "naflexvit_base_patch16_gap", **FLEXIBLE, rope_type="axial", pos_embed="none", class_token=True
    ),
    "oblong": named("vit_relpos_small_patch16_224", **(SCALED | {"img_size": (16, 40), "rel_pos_type": "bias"})),
}


def encoder_of(config):
    """The encoder with every parameter drawn anew: timm starts several at zero or one."""
    torch.manual_seed(0)
    encoder = TimmEncoder(config).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1 if "bias_table" in name else 0.05))
    return encoder


def crop_of(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Crop(pixels, "image", False)


def views_of(encoder, grid, number=2):
    height, width = (cells * stride for cells, stride in zip(grid, encoder.stride, strict=True))
    data = [torch.from_numpy(crop_of(height, width, seed).data).permute(2, 0, 1) for seed in range(number)]
    view = encoder.prepare(crop_of(height, width))
    return [type(view)(one, grid) for one in data]


def encode(encoder, views):
    features, _ = DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))
    return features


def library(encoder, views):
    """timm's own forward of equally large views, its model brought to their size by timm's own means."""
    model = deepcopy(encoder.model)
    if hasattr(model, "set_input_size"):  # a NaFlexViT takes any size
        model.set_input_size(tuple(views[0].data.shape[1:]))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in zip(*encoder._mean_and_std, strict=True))
    x = model.forward_features((torch.stack([view.data for view in views]) - mean) / std)
    return model.fc_norm(x)[:, model.num_prefix_tokens :].flatten(0, 1)


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_features_equal_timms_own_at_any_size(name):
    encoder = encoder_of(CONFIGS[name])
    embedding = getattr(encoder.model, "patch_embed", None)
    native = (3, 3) if embedding is None else embedding.grid_size
    for grid in (native, (2, 7), (6, 3), (1, 1)):
        if name == "relative_swin" and grid == (1, 1):
            continue  # timm divides by zero there
        views = views_of(encoder, tuple(grid))
        assert_equal(encode(encoder, views), library(encoder, views))


@pytest.mark.parametrize("name", ["eva", "rope_dinov3", "rope_mixed", "deit3"])
@torch.no_grad()
def test_features_equal_those_of_a_model_with_dynamic_image_size(name):
    config = CONFIGS[name]
    fixed = encoder_of(config)
    dynamic = TimmEncoder(TimmConfig(model=config.model, args={**config.args, "dynamic_img_size": True})).eval()
    dynamic.model.load_state_dict(fixed.model.state_dict())
    views = views_of(fixed, (3, 5))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in zip(*fixed._mean_and_std, strict=True))
    own = dynamic.model.forward_features((torch.stack([view.data for view in views]) - mean) / std)
    expected = dynamic.model.fc_norm(own)[:, dynamic.model.num_prefix_tokens :].flatten(0, 1)
    for encoder in (fixed, dynamic):
        assert_equal(encode(encoder, views), expected)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_regions_packed_have_the_features_they_have_alone(name):
    encoder = encoder_of(CONFIGS[name])
    views = [views_of(encoder, grid, 1)[0] for grid in ((4, 4), (2, 6), (4, 4), (4, 3))]
    assert_equal(encode(encoder, views), torch.cat([encode(encoder, [view]) for view in views]))


def test_every_block_class_is_compared():
    modules = (vision_transformer, vision_transformer_relpos, eva, beit)
    found = [item for module in modules for item in vars(module).items()]
    written = {cls for name, cls in found if name.endswith(("Block", "BlockPostNorm")) and isinstance(cls, type)}
    compared = {type(block) for config in CONFIGS.values() for block in TimmEncoder(config).model.blocks}
    compared |= {Block}
    assert set(block_adapters()) == written == compared


@pytest.mark.parametrize("name", ["eva", "rope_mixed", "rope_dinov3", "rope_mrope", "perception"])
@torch.no_grad()
def test_prefix_tokens_and_position_zero_do_not_turn(name):
    encoder = encoder_of(CONFIGS[name])
    (view,) = views_of(encoder, (2, 3), 1)
    layout = Layout.build([view.size], [encoder.token_count(view.size)], [0])
    positions = encoder.embed([view], layout).positions
    prefix = encoder.model.num_prefix_tokens
    assert positions.shape == (6 + prefix, 2)
    assert not positions[:prefix].any()
    block = encoder.spec.blocks[0]
    x = torch.randn(3, block.heads, block.head_dim)
    assert torch.equal(encoder.rotate(x, encoder.rotation(1, torch.zeros(3, 2))), x)


@pytest.mark.parametrize(
    ("name", "room"), [("rope_mixed", 7), ("rope_axial", 7), ("rope_mrope", 7), ("rope_dinov3", 0), ("eva", 0)]
)
def test_regions_stand_one_after_another_only_where_positions_count_tokens(name, room):
    encoder = TimmEncoder(CONFIGS[name])
    assert encoder.position_stride((3, 7)) == room


def test_rotary_coordinates_are_augmented_in_training_only_and_region_by_region():
    args = SCALED | {"rope_shift_coords": 0.1, "rope_jitter_coords": 1.2, "rope_rescale_coords": 2.0}
    encoder = encoder_of(named("vit_small_patch16_dinov3", **args))
    views = views_of(encoder, (3, 3), 1) * 2
    layout = Layout.build([view.size for view in views], [encoder.token_count(view.size) for view in views], [0, 0])
    plain = encoder.embed(views, layout).positions
    augmented = encoder.train().embed(views, layout).positions
    prefix = encoder.model.num_prefix_tokens
    still, moved = (torch.stack(p.chunk(2)) for p in (plain, augmented))
    assert torch.equal(still[0], still[1])
    assert not torch.allclose(moved[0], moved[1])
    assert not torch.allclose(moved, still)
    assert not moved[:, :prefix].any()
    assert moved.abs().max() <= 2 * 1.2 * (still.abs().max() + 0.1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("relative_table", "relative bias"),
        ("relative_network", "relative bias"),
        ("relative_shared", "relative bias"),
        ("relative_post_norm", "relative bias"),
        ("differential", "difference of two"),
        ("parallel_differential", "difference of two"),
        ("eva", ""),
        ("parallel", ""),
        ("beit_absolute", ""),
    ],
)
def test_attention_that_takes_no_other_keys_says_so(name, reason):
    for block in TimmEncoder(CONFIGS[name]).spec.blocks:
        assert (reason in block.no_context_reason) and bool(reason) == bool(block.no_context_reason)


@pytest.mark.parametrize("name", ["relative_table", "relative_network", "oblong"])
def test_relative_biases_are_trained_at_every_size(name):
    encoder = encoder_of(CONFIGS[name])
    encode(encoder, views_of(encoder, (3, 5), 1)).square().mean().backward()
    grads = [p.grad for key, p in encoder.named_parameters() if "bias_table" in key or "rel_pos.mlp.fc1.w" in key]
    assert grads
    assert all((grad != 0).float().mean() > 0.5 for grad in grads)


@pytest.mark.parametrize("name", ["parallel", "parallel_fused"])
def test_each_reader_of_a_shared_norm_is_changed_by_itself(name):
    encoder = encoder_of(CONFIGS[name])
    (view,) = views_of(encoder, (2, 2), 1)
    layout = Layout.build([view.size], [encoder.token_count(view.size)], [0])
    tokens = encoder.embed([view], layout)

    def run(changed):
        seen = {}

        def site(site, x, y):
            seen[site] = y
            return y + 1 if site == changed else y

        encoder.block(0, tokens, site, lambda q, k, v, scale=None, bias=None: v)
        return seen

    plain, first, second = run(None), run("norm1"), run("norm2")
    assert torch.equal(first["fc1"], plain["fc1"]) and not torch.allclose(first["qkv"], plain["qkv"])
    assert torch.equal(second["qkv"], plain["qkv"]) and not torch.allclose(second["fc1"], plain["fc1"])


@pytest.fixture
def _fresh_graphs():
    limits = torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.accumulated_recompile_limit = limits


@pytest.mark.nightly
@pytest.mark.usefixtures("_fresh_graphs")
@pytest.mark.parametrize("name", ["eva", "relative_table"])
@torch.no_grad()
def test_compiled_blocks_give_the_same_and_other_sizes_make_no_new_graph(name):
    encoder = encoder_of(CONFIGS[name])
    compiled = DynamicEncoder(encoder)
    compiled.compile_blocks(backend="aot_eager")
    graphs = set()
    for grids in ([(4, 4), (2, 6)], [(3, 3), (5, 2), (3, 3)]):
        views = [views_of(encoder, grid, 1)[0] for grid in grids]
        found, _ = compiled.encode(views, range(len(views)), [[]] * len(views))
        assert_equal(found, encode(encoder, views))
        graphs.add(counters["stats"]["unique_graphs"])
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (named("samvit_base_patch16", img_size=64, depth=1), "is a VisionTransformerSAM. Take encoder `timm_stages`"),
        (configured(block_fn=type("Own", (Block,), {})), "Own .block 0"),
        (named("eva02_tiny_patch14_224", **SMALL, attn_drop_rate=0.1), "attention dropout"),
        (named("eva02_tiny_patch14_224", **SMALL, patch_drop_rate=0.1), "PatchDropoutWithIndices"),
    ],
)
def test_what_it_was_not_written_for_is_refused_by_name(config, words):
    with pytest.raises(BadConfig, match=words):
        TimmEncoder(config)
