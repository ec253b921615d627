"""Our tower is transformers' tower: its features, its windows, its pixels, its checkpoints."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vilavt_components.encoders.qwen2_5_vl import vision_weights, windows
from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLConfig, Qwen25VLEncoder
from vilavt_components.encoders.qwen2_5_vl.resizing import smart_size
from vilavt_components.encoders.qwen2_5_vl.tower import QwenVisionConfig
from vilavt_toolkit.contracts import Crop, ShownAs, View
from vilavt_toolkit.contracts.pixel_budget import PixelBudget
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.packed.tokens import Layout
from vilavt_toolkit.testing import bench
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

SHAPE = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_heads": 2,
    "out_hidden_size": 40,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": (1, 3),
}
# In patches: below a window, a window, several, none of them whole windows, and two moments.
GRIDS = [(2, 2), (8, 8), (16, 24), (10, 6), (18, 2), (4, 26), (2, 6, 10)]


def encoder_of(**settings):
    return Qwen25VLEncoder(Qwen25VLConfig(config=QwenVisionConfig(**SHAPE), **settings)).eval()


def transformers_tower():
    """transformers' own tower with random weights that are large enough to show mistakes."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    torch.manual_seed(0)
    tower = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**SHAPE)).eval()
    with torch.no_grad():
        for name, value in tower.named_parameters():
            value.normal_(1.0 if "norm" in name or "ln_q" in name else 0.0, 0.1 if value.dim() < 2 else 0.15)
    return tower


def filled(encoder, weights):
    shapes = {key: value.shape for key, value in encoder.tower.state_dict().items()}
    encoder.tower.load_state_dict(vision_weights.from_checkpoint(weights, shapes, SHAPE["intermediate_size"], "here"))
    return encoder


def patches_of(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return View(torch.randn(math.prod(size), 3 * 2 * 14 * 14, generator=generator), size)


def features_of(encoder, views, groups=None):
    groups = range(len(views)) if groups is None else groups
    return DynamicEncoder(encoder).eval().encode(views, groups, [[]] * len(views))[0]


def thw(size):
    return (1, *size) if len(size) == 2 else size


@pytest.mark.parametrize("size", GRIDS)
@torch.no_grad()
def test_features_are_those_of_transformers(size):
    theirs = transformers_tower()
    encoder, view = filled(encoder_of(), theirs.state_dict()), patches_of(size)
    expected = theirs(view.data, torch.tensor([thw(size)])).pooler_output
    bench.assert_close(features_of(encoder, [view]), expected, f"grid {size}")


@torch.no_grad()
def test_packed_features_are_those_of_transformers_in_the_callers_order():
    theirs = transformers_tower()
    encoder = filled(encoder_of(), theirs.state_dict())
    views = [patches_of(size, seed) for seed, size in enumerate(GRIDS)]
    expected = theirs(torch.cat([view.data for view in views]), torch.tensor([thw(size) for size in GRIDS]))
    found = features_of(encoder, views, [3, 0, 5, 1, 1, 0, 3])
    bench.assert_close(found, expected.pooler_output, "all grids, groups in no order")


@torch.no_grad()
@torch.no_grad()
def test_norms_run_as_one_kernel_under_autocast(recwarn):
    weights = transformers_tower().state_dict()
    encoder = filled(encoder_of(), weights)
    tokens = torch.randn(9, SHAPE["hidden_size"])
    norm = encoder.tower.blocks[0].norm1
    with torch.autocast("cpu", torch.bfloat16):
        views = [patches_of((8, 8))]
        features_of(encoder, views)
        found = norm(tokens.bfloat16())
    assert not [str(each.message) for each in recwarn if "fused" in str(each.message)]
    # Rollouts hold the weights in bfloat16, and must compute the same.
    assert found.dtype == torch.bfloat16 and torch.equal(found, norm.bfloat16()(tokens.bfloat16()))


def test_images_become_the_patches_of_transformers_image_processor():
    from transformers import Qwen2VLImageProcessor

    theirs, pixels = transformers_tower(), np.random.default_rng(0).integers(0, 256, (84, 140, 3), dtype=np.uint8)
    encoder = filled(encoder_of(), theirs.state_dict())
    view = encoder.prepare(Crop(pixels, "image", overview=True))
    assert view.size == (6, 10) and view.data.dtype == torch.uint8
    processed = Qwen2VLImageProcessor()(pixels, return_tensors="pt")
    assert processed["image_grid_thw"].tolist() == [[1, 6, 10]]
    expected = theirs(processed["pixel_values"], processed["image_grid_thw"]).pooler_output
    bench.assert_close(features_of(encoder, [view]), expected, "an image")


@torch.no_grad()
def test_an_image_is_a_film_of_the_same_frame():
    encoder = encoder_of()
    image = torch.randint(0, 256, (3, 84, 56), dtype=torch.uint8)
    film = View(image.expand(4, -1, -1, -1), (2, 6, 4))
    assert encoder.feature_grid(film.size) == (2, 3, 2)
    moments = features_of(encoder, [film]).view(2, 6, -1)
    for moment in moments:
        bench.assert_close(moment, features_of(encoder, [View(image, (6, 4))]), "one moment")


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("cells", [(1, 1), (4, 4), (5, 3), (2, 3, 5), (1, 9)])
def test_windows_cut_every_moment_into_squares(cells, side):
    order, lengths = windows.window_order(cells, side)
    assert sorted(order.tolist()) == list(range(math.prod(cells)))
    assert sum(lengths) == len(order)
    places = np.stack(np.unravel_index(order, cells), axis=-1)
    start = 0
    for length in lengths:
        inside = places[start : start + length]
        assert length <= side**2
        assert len({(*row[:-2], row[-2] // side, row[-1] // side) for row in inside.tolist()}) == 1
        start += length
    assert len(lengths) == math.prod(cells[:-2]) * math.prod(-(-n // side) for n in cells[-2:])


@torch.no_grad()
def test_values_of_tokens_come_back_as_pictures():
    encoder = encoder_of()
    layout = Layout.build(GRIDS, [math.prod(s) for s in GRIDS], [1, 0, 2, 2, 0, 1, 3], encoder.partitions)
    views = [patches_of(GRIDS[region]) for region in layout.order]
    tokens = encoder.embed(views, layout)
    for picture, size in zip(encoder.to_grids(tokens.positions, layout), layout.sizes, strict=True):
        rows, columns = torch.meshgrid(torch.arange(size[-2]), torch.arange(size[-1]), indexing="ij")
        expected = torch.stack([rows, columns], dim=-1).expand(*size, 2)
        assert torch.equal(picture, expected)


def test_positions_of_the_first_token_turn_nothing():
    encoder = encoder_of()
    x = torch.randn(3, 2, 16)
    rotation = encoder.rotation(0, torch.zeros(3, 2, dtype=torch.long))
    assert torch.equal(encoder.rotate(x, rotation), x)


def test_attention_depends_on_distances_alone():
    encoder = encoder_of()
    q, k = torch.randn(2, 1, 2, 16).unbind(0)

    def logit(at_q, at_k):
        turned = [encoder.rotate(x, encoder.rotation(0, torch.tensor([at]))) for x, at in ((q, at_q), (k, at_k))]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(logit((3, 9), (1, 4)), logit((12, 5), (10, 0)))
    assert not torch.allclose(logit((3, 9), (1, 4)), logit((3, 9), (4, 1)))


# --- Checkpoints -------------------------------------------------------------------------------------------------


def save(folder, weights, shards=1, model_type="qwen2_5_vl"):
    vision = {**SHAPE, "fullatt_block_indexes": [1, 3], "hidden_act": "silu", "in_chans": 3}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vision_config": vision}))
    keys = sorted(weights)
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    places = {key: f"model-{index % shards + 1:05d}-of-{shards:05d}.safetensors" for index, key in enumerate(keys)}
    for name in set(places.values()):
        save_file({key: weights[key] for key in keys if places[key] == name}, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize("prefix", ["visual.", "model.visual."])
@pytest.mark.parametrize("shards", [1, 3])
@torch.no_grad()
def test_checkpoints_load_from_one_file_or_several_with_old_and_new_keys(tmp_path, prefix, shards):
    theirs = transformers_tower()
    weights = {prefix + key: value for key, value in theirs.state_dict().items()}
    weights["model.embed_tokens.weight"] = torch.zeros(3, 2)
    encoder = Qwen25VLEncoder(Qwen25VLConfig(path=str(save(tmp_path, weights, shards)), local_files_only=True)).eval()
    encoder.load_weights()
    view = patches_of((10, 6))
    expected = theirs(view.data, torch.tensor([[1, 10, 6]])).pooler_output
    bench.assert_close(features_of(encoder, [view]), expected, "loaded")


@torch.no_grad()
def test_padded_mlps_compute_the_same_and_are_written_back_without_padding():
    weights = transformers_tower().state_dict()
    plain, padded = (filled(encoder_of(pad_mlp=multiple), weights) for multiple in (1, 32))
    assert padded.spec.blocks[0].sites["fc1"] == 2 * 64
    views = [patches_of(size) for size in GRIDS]
    bench.assert_close(features_of(padded, views), features_of(plain, views), "padded")
    written = vision_weights.to_checkpoint(padded.tower.state_dict(), SHAPE["intermediate_size"])
    assert set(written) == set(weights)
    assert all(torch.equal(written[key], value) for key, value in weights.items())


def test_padding_stays_zero_in_training():
    torch.manual_seed(0)
    encoder = encoder_of(pad_mlp=32).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    for _ in range(2):
        bench.backpropagate(features_of(encoder, [patches_of((4, 6))]).square().sum())
        optimizer.step()
    mlp = encoder.tower.blocks[0].mlp
    assert not mlp.gate_up.weight.view(2, 64, -1)[:, 44:].any()
    assert not mlp.down_proj.weight[:, 44:].any()
    assert mlp.down_proj.weight[:, :44].abs().min() > 0


def test_the_papers_checkpoints_load_without_their_modulation(tmp_path, caplog):
    weights = {f"visual.{key}": value for key, value in transformers_tower().state_dict().items()}
    weights["visual.blocks.2.attn.instruct_key_proj.weight"] = torch.zeros(32, 32)
    folder = save(tmp_path, weights, model_type="vilavt")
    Qwen25VLEncoder(Qwen25VLConfig(path=str(folder), local_files_only=True)).load_weights()
    assert "1 tensors of a modulation" in caplog.text


def test_weights_that_do_not_fit_are_named(tmp_path):
    weights = {f"visual.{key}": value for key, value in transformers_tower().state_dict().items()}
    del weights["visual.blocks.2.mlp.up_proj.bias"]
    weights["visual.merger.mlp.2.bias"] = torch.zeros(7)
    encoder = Qwen25VLEncoder(Qwen25VLConfig(path=str(save(tmp_path, weights)), local_files_only=True))
    with pytest.raises(
        InputError, match=r"blocks\.2\.mlp\.up_proj\.bias is missing.*mlp\.2\.bias is \[7\], not \[40\]"
    ):
        encoder.load_weights()


def test_what_is_no_such_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="'qwen2_vl'"):
        Qwen25VLEncoder(Qwen25VLConfig(path=str(save(tmp_path, {}, model_type="qwen2_vl")), local_files_only=True))
    save(tmp_path, {})
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    encoder = Qwen25VLEncoder(Qwen25VLConfig(path=str(tmp_path), local_files_only=True))
    with pytest.raises(InputError, match="no safetensors"):
        encoder.load_weights()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("{}/nowhere", "there is no such folder"),
        ("./nowhere", "there is no such folder"),
        ("{}/file", "it is a file, not its folder"),
        ("{}/empty", "it has no config.json"),
        ("{}/broken", "not a valid JSON file"),
        ("nowhere", "there is no such folder, and the hub answers: "),
        ("owner/nowhere", "there is no such folder, and the hub answers: "),
    ],
)
def test_a_place_without_a_checkpoint_is_one_reason_and_one_remedy(tmp_path, model, reason):
    for folder in ("empty", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "file").write_text("{}")
    place = model.format(tmp_path)
    with pytest.raises(InputError) as caught:
        Qwen25VLEncoder(Qwen25VLConfig(path=place, local_files_only=True))
    told = str(caught.value)
    assert told.startswith(f"encoder '{place}' cannot be read (") and reason in told
    assert told.endswith(
        "). Give a folder with config.json and safetensors weights of a Qwen2.5-VL model, or a hub "
        "name in reach or cached."
    )
    assert len(re.findall(r"[.?!] [A-Z]", told)) == 1


def test_that_weights_are_there_is_seen_without_reading_them(tmp_path):
    weights = {f"visual.{key}": value for key, value in transformers_tower().state_dict().items()}
    encoder = Qwen25VLEncoder(Qwen25VLConfig(path=str(save(tmp_path, weights)), local_files_only=True))
    encoder.check_weights()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no safetensors"):
        encoder.check_weights()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 3}, "multiple of 4"),
        ({"window_size": 20}, "window_size"),
        ({"fullatt_block_indexes": (4,)}, "names block 4"),
    ],
)
def test_shapes_that_make_no_tower_are_refused(change, words):
    with pytest.raises(BadConfig, match=words):
        Qwen25VLEncoder(Qwen25VLConfig(config=QwenVisionConfig(**{**SHAPE, **change})))


def test_it_takes_a_checkpoint_or_a_shape_and_not_both():
    with pytest.raises(BadConfig, match="from `path` or from `config`, not from both"):
        Qwen25VLEncoder(Qwen25VLConfig(path="a", config=QwenVisionConfig(**SHAPE)))


def test_with_neither_it_is_small_and_so_are_its_views_unless_told_otherwise():
    small, told = Qwen25VLEncoder(Qwen25VLConfig()), Qwen25VLEncoder(Qwen25VLConfig(overview_pixels=64 * 64))
    assert sum(weight.numel() for weight in small.parameters()) < 1_000_000
    picture = np.zeros((256, 256, 3), dtype=np.uint8)
    assert small.feature_grid(small.prepare(Crop(picture, "image", overview=True)).size) == (4, 4)
    assert told.feature_grid(told.prepare(Crop(picture, "image", overview=True)).size) == (8, 8)


def test_views_keep_to_their_budgets_in_whole_cells():
    encoder = encoder_of(overview_pixels=56 * 56, zoom_pixels=112 * 112, min_pixels=3136)
    crop = np.zeros((300, 200, 3), dtype=np.uint8)
    overview = encoder.prepare(Crop(crop, "image", overview=True))
    zoom = encoder.prepare(Crop(crop, "image", overview=False))
    tiny = encoder.prepare(Crop(crop[:9, :9], "image", overview=False))
    assert overview.data[0].numel() <= 56 * 56 < zoom.data[0].numel() <= 112 * 112
    assert tiny.data[0].numel() == 3136
    for view in (overview, zoom, tiny):
        assert view.data.shape[1:] == tuple(14 * side for side in view.size)
        assert encoder.feature_count(view.size) * 4 == encoder.token_count(view.size) == math.prod(view.size)


SMART = json.loads((Path(__file__).parents[3] / "golden" / "smart_resize.json").read_text(encoding="utf-8"))
THIN = {(14, 2800, 3136, 50176): (28, 1792)}
"""(height, width, fewest, most pixels) to which the paper's code gives no pixels -> the size (h, w) that ours has."""


def test_sizes_are_those_of_the_papers_smart_resize():
    for height, width, least, most, expected in SMART["rows"]:
        budget = PixelBudget(overview=most or 16384 * 28 * 28, minimum=least or 4 * 28 * 28)
        found = smart_size(width, height, 28, budget, overview=True)[::-1]
        thin = THIN.get((height, width, least, most))
        assert found == (thin or tuple(expected)), (height, width, least, most)
        assert not thin or thin != tuple(expected)


def test_the_docs_list_exactly_the_sizes_that_differ():
    text = (Path(__file__).parents[4] / "docs" / "vilavt-differences.md").read_text(encoding="utf-8")
    section = text.split("\n## Sizes\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"`{height} x {width}, {least}..{most}`" for height, width, least, most in THIN]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2 * 56**2, 10**6))
def test_resized_as_the_paper_does_a_view_has_whole_cells_within_the_budget(width, height, most):
    assume(max(width, height) <= 200 * min(width, height))
    size = smart_size(width, height, 28, PixelBudget(overview=most), overview=True)
    assert min(size) >= 28 and not any(side % 28 for side in size) and math.prod(size) <= most


def test_first_views_share_a_budget_and_zooms_have_their_own():
    pixels = np.zeros((1000, 1000, 3), dtype=np.uint8)
    for resize in ("native", "paper"):
        encoder = encoder_of(overview_total=4 * 112 * 112, zoom_pixels=56 * 56, resize=resize)
        sides = [
            encoder.extent(encoder.prepare(Crop(pixels, "image", True, ShownAs(overview_count=among))))
            for among in (1, 4, 16)
        ]
        assert sides == [(224, 224), (112, 112), (56, 56)]
        assert encoder.extent(encoder.prepare(Crop(pixels, "image", False, ShownAs(overview_count=16)))) == (56, 56)


def test_more_first_views_than_a_budget_can_be_shared_by_are_refused():
    encoder = encoder_of(overview_total=8 * 3136, min_pixels=3136)
    with pytest.raises(InputError, match="9 first views share the 25,088 pixels of `overview_total`"):
        encoder.prepare(Crop(np.zeros((56, 56, 3), dtype=np.uint8), "image", True, ShownAs(overview_count=9)))


@pytest.mark.parametrize("resize", ["native", "paper"])
def test_a_region_too_thin_for_a_view_is_refused(resize):
    with pytest.raises(InputError, match="201 x 1 pixels cannot be used"):
        encoder_of(resize=resize).prepare(Crop(np.zeros((1, 201, 3), dtype=np.uint8), "image", True))
