"""The open_clip encoder computes what open_clip computes, region by region, and says what it cannot load or build."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip import model as library
from safetensors.torch import save_file

from vilavt_components.encoders.open_clip.encoder import OpenClipConfig, OpenClipEncoder
from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.testing.bench import assert_close
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

VISION = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 8, "mlp_ratio": 2.0}
TEXT = {"context_length": 16, "width": 16, "heads": 2, "layers": 1}
POOL = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2}
CUSTOM = dict.fromkeys(("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True)
TIMM = {"timm_model_name": "test_vit", "image_size": 160}


def config_of(vision=(), width=20, **more):
    base = {} if "timm_model_name" in dict(vision) else VISION
    return {"embed_dim": width, "vision_cfg": {**base, **dict(vision)}, "text_cfg": TEXT, **more}


NATIVE = {
    "plain": config_of(),
    "quick_gelu": config_of(quick_gelu=True),
    "layer_scale": config_of({"ls_init_value": 0.3}),
    "no_ln_pre": config_of({"no_ln_pre": True}),
    "average": config_of({"pool_type": "avg"}),
    "norm_after_pooling": config_of({"pool_type": "avg", "final_ln_after_pool": True}),
    "no_pooling": config_of({"pool_type": "none"}),
    "sines_and_cosines": config_of({"pos_embed_type": "sin_cos_2d"}),
    "norms_and_activations": config_of({"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}),
    "custom_block": config_of(CUSTOM),
    "attention_pool": config_of(POOL),
    "attention_pool_of_equal_width": config_of(POOL, width=24),
    "attention_pool_average": config_of(POOL | {"pool_type": "avg"}),
    "attention_pool_all": config_of(POOL | {"pool_type": "none"}),
}
TRUNKS = {
    "token": config_of(TIMM | {"timm_pool": "token", "timm_proj": "linear"}),
    "average_by_timms_head": config_of(TIMM | {"timm_pool": "avg", "timm_proj": ""}),
    "map": config_of(TIMM | {"timm_pool": "map", "timm_proj": "none"}),
    "rotary": config_of({"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None}),
}


def tower_of(config):
    """open_clip's own tower with every parameter drawn anew: several start at zero or one."""
    torch.manual_seed(0)
    tower = library._build_vision_tower(
        config["embed_dim"], dict(config["vision_cfg"]), config.get("quick_gelu", False)
    )
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return tower.eval()


def encoder_of(config, tower=None, **settings):
    """The encoder with the weights of open_clip's tower."""
    encoder = OpenClipEncoder(OpenClipConfig(config=config, **({"max_scale": 1.0} | settings))).eval()
    tower = tower or tower_of(config)
    state = getattr(tower, "trunk", tower).state_dict()
    encoder.tower.model.load_state_dict({key: state[key] for key in encoder.tower.model.state_dict()})
    return encoder


def crop_of(height, width, overview=False, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Crop(pixels, "image", overview)


def encode(encoder, views):
    features, _ = DynamicEncoder(encoder).encode(views, range(len(views)), [[]] * len(views))
    return features


def last_tokens(encoder, view):
    """What the last block gives; [tokens, D]."""
    read = SimpleNamespace(tokens=None)
    encoder.tower.readout = lambda tokens: setattr(read, "tokens", tokens.x) or tokens.x[1:]
    encode(encoder, [view])
    del encoder.tower.readout
    return read.tokens


def image_of(view, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return ((view.data / 255 - mean) / std).unsqueeze(0)


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_pooled_output_and_tokens_are_open_clips_own(name):
    config = NATIVE[name]
    tower = tower_of(config)
    tower.output_tokens = True
    encoder = encoder_of(config, tower)
    view = encoder.prepare(crop_of(32, 32))
    pooled, tokens = tower(image_of(view))
    found_pooled, found_tokens = tower._pool(last_tokens(encoder, view).unsqueeze(0))
    assert_close(found_pooled @ tower.proj, pooled, "pooled")
    assert_close(found_tokens, tokens, "tokens")


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_features_are_the_patches_under_the_last_norm_they_go_through(name):
    config = NATIVE[name]
    tower = tower_of(config)
    encoder = encoder_of(config, tower)
    view = encoder.prepare(crop_of(32, 32))
    raw = tower.transformer(tower._embeds(image_of(view)))[0, 1:]
    norm = tower.ln_post if tower.attn_pool is None else tower.attn_pool.ln_k
    assert_close(encode(encoder, [view]), norm(raw), name)


@pytest.mark.parametrize("name", [name for name in NATIVE if "attention_pool" in name])
@torch.no_grad()
def test_queries_are_the_tokens_that_open_clip_hands_to_its_own_language_model(name):
    config = NATIVE[name]
    tower = tower_of(config)
    tower.output_tokens = True
    encoder = encoder_of(config, tower, features="queries", min_pixels=1024)
    count = 5 if name.endswith("all") else 4
    views = [encoder.prepare(crop_of(h, w, seed=h)) for h, w in ((32, 32), (40, 24), (32, 32), (16, 16))]
    assert [encoder.feature_grid(view.size) for view in views] == [(count,)] * 4
    features = encode(encoder, views).unflatten(0, (4, count))
    for index in (0, 2):
        assert_close(features[index], tower(image_of(views[index]))[1][0], "queries")
    assert_close(features, torch.stack([encode(encoder, [view]) for view in views]), "packed and alone")


@torch.no_grad()
def test_projected_patches_lie_in_the_space_of_the_pooled_image():
    config = NATIVE["average"]
    tower = tower_of(config)
    encoder = encoder_of(config, tower, features="projected")
    view = encoder.prepare(crop_of(32, 32))
    assert_close(encode(encoder, [view]).mean(0), tower(image_of(view))[0], "mean of the projected patches")


@pytest.mark.parametrize("size", [(16, 56), (56, 24), (64, 64), (8, 8)])
@torch.no_grad()
def test_positions_of_other_grids_are_those_that_open_clip_would_load(size):
    config = NATIVE["norm_after_pooling"]
    tower = tower_of(config)
    encoder = encoder_of(config, tower, overview_pixels=8192)
    other = tower_of(config_of(config["vision_cfg"] | {"image_size": size}))
    state = {f"visual.{key}": value.clone() for key, value in tower.state_dict().items()}
    library.resize_pos_embed(state, SimpleNamespace(visual=other))
    other.load_state_dict({key.removeprefix("visual."): value for key, value in state.items()})
    view = encoder.prepare(crop_of(*size, overview=True))
    assert view.data.shape[1:] == size
    other.output_tokens = True
    assert_close(encode(encoder, [view]), tower.ln_post(other(image_of(view))[1][0]), f"{size}")


def test_position_embeddings_are_trained_at_every_size():
    encoder = encoder_of(NATIVE["plain"], overview_pixels=8192)
    encode(encoder, [encoder.prepare(crop_of(16, 40, overview=True))]).square().mean().backward()
    assert encoder.tower.model.positional_embedding.grad.abs().amin() > 0


@pytest.mark.parametrize("name", TRUNKS)
@torch.no_grad()
def test_a_tower_of_timm_goes_through_the_timm_encoder(name):
    config = TRUNKS[name]
    tower = tower_of(config)
    half = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    encoder = encoder_of({"model_cfg": config, "preprocess_cfg": half}, tower)
    assert encoder.tower.interpolation == "bilinear"
    view = encoder.prepare(crop_of(*tower.trunk.patch_embed.img_size))
    expected = tower.trunk.forward_features(image_of(view, [0.5] * 3, [0.5] * 3))
    expected = getattr(tower.trunk, "fc_norm", torch.nn.Identity())(expected)[0, tower.trunk.num_prefix_tokens :]
    assert_close(encode(encoder, [view]), expected, name)


def test_nothing_named_builds_a_small_model_for_the_quickstarts_views():
    encoder = OpenClipEncoder(OpenClipConfig())
    assert encoder.prepare(crop_of(256, 256, overview=True)).size == (4, 4)
    assert encoder.prepare(crop_of(64, 128)).size == (4, 8)
    assert encoder.spec.depth == 3 and encoder.spec.out_width == 128
    encoder.load_weights()  # there are none


def test_a_named_model_has_views_of_its_own_size():
    with torch.device("meta"):
        encoder = OpenClipEncoder(OpenClipConfig(model="ViT-B/32"))
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert encoder.prepare(crop_of(900, 900, overview=True)).data.shape == (3, 224, 224)
    assert encoder.spec.out_width == 768 and encoder.spec.depth == 12


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (
            {"model": "ViT-B-33"},
            BadConfig,
            "no model 'ViT-B-33'. Did you mean 'ViT-B-32', .* To list all: .*list_models",
        ),
        ({"model": "zzz"}, BadConfig, "Did you mean"),
        ({"model": "vit-b-32"}, BadConfig, "Did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32", "pretrained": "openia"}, BadConfig, "'ViT-B-32' named 'openia'. Did you mean 'openai'"),
        ({"model": "ViT-M-32", "pretrained": "openai"}, BadConfig, "It has none"),
        ({"model": "ViT-B-32", "config": config_of()}, BadConfig, "Leave out one of them, as in `config: null`"),
        ({"pretrained": "openai"}, BadConfig, "tag of a `model`"),
        ({"model": "hf-hub:a/b", "pretrained": "openai"}, BadConfig, "its own weights"),
        ({"model": "local-dir:here"}, BadConfig, "as `path`"),
        ({"path": "weights.safetensors"}, BadConfig, "Say what its weights are of"),
        ({"model": "RN50"}, BadConfig, "not written for ModifiedResNet. .* ViT-B-32"),
        ({"config": {"vision_cfg": VISION}}, BadConfig, "lacks `embed_dim`"),
        ({"config": config_of({"hedas": 3})}, BadConfig, "'hedas', which open_clip does not know"),
        ({"config": config_of({"widht": 3})}, BadConfig, "Did you mean 'width'"),
        ({"config": config_of({"width": 25})}, BadConfig, "cannot build the vision tower"),
        ({"config": config_of({"scaled_cosine_attn": True})}, BadConfig, "scaled cosine"),
        ({"config": config_of(POOL | {"attentional_pool": "parallel"})}, BadConfig, "`attentional_pool: parallel`"),
        ({"config": config_of(), "features": "queries"}, BadConfig, "coca_ViT-B-32"),
        ({"config": config_of(POOL), "features": "projected"}, BadConfig, "attentional pooling makes"),
        ({"config": config_of(TIMM), "features": "projected"}, BadConfig, "Take `features: patches`"),
    ],
)
def test_what_it_cannot_build_is_refused_with_the_reason(settings, error, words):
    with pytest.raises(error, match=words):
        OpenClipEncoder(OpenClipConfig(**settings))


def test_published_patch_dropout_belongs_to_contrastive_training(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config_of({"patch_dropout": 0.5})}))
    encoder = OpenClipEncoder(OpenClipConfig(path=str(tmp_path))).train()
    view = encoder.prepare(crop_of(32, 32))
    assert torch.equal(encode(encoder, [view]), encode(encoder.eval(), [view]))


def test_patch_dropout_of_a_users_own_config_is_left_out_with_a_word(caplog):
    encoder = OpenClipEncoder(OpenClipConfig(config=config_of({"patch_dropout": 0.5}))).train()
    assert "`patch_dropout` of `vision_cfg` is not used" in caplog.text
    view = encoder.prepare(crop_of(32, 32))
    assert torch.equal(encode(encoder, [view]), encode(encoder.eval(), [view]))


@pytest.mark.parametrize("config", [config_of(), TRUNKS["token"]])
def test_views_have_an_extent_in_pixels_for_dialogues_whose_boxes_are_in_pixels(config):
    encoder = OpenClipEncoder(OpenClipConfig(config=config))
    view = encoder.prepare(crop_of(32, 64))
    assert encoder.extent(view) == (view.data.shape[2], view.data.shape[1])


@torch.no_grad()
def test_a_staged_tower_of_timm_runs_stage_by_stage(tmp_path):
    config = config_of(
        {"timm_model_name": "test_mambaout", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}
    )
    tower = tower_of(config)
    save_file({f"visual.{key}": value for key, value in tower.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = OpenClipEncoder(OpenClipConfig(config=config, path=str(tmp_path / "w.safetensors"))).eval()
    encoder.load_weights()
    assert encoder.spec.depth == 4 and encoder.no_compile_reason
    views = [encoder.prepare(crop_of(*size)) for size in ((64, 96), (32, 64))]
    for view in views:
        x = tower.trunk.head.norm(tower.trunk.forward_features(image_of(view)))
        assert_close(encode(encoder, [view]), x.flatten(0, 2), "one view")
        assert tuple(x.shape[1:3]) == encoder.feature_grid(view.size)
    assert_close(encode(encoder, views), torch.cat([encode(encoder, [view]) for view in views]), "packed")


@pytest.mark.parametrize("features", ["patches", "projected"])
@torch.no_grad()
def test_a_clip_of_transformers_gives_the_features_of_transformers(tmp_path, features):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    shape = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    torch.manual_seed(0)
    settings = CLIPVisionConfig(**shape, image_size=32, patch_size=8, projection_dim=20)
    theirs = CLIPVisionModelWithProjection(settings).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    # The folder's activation is quick_gelu, which the configuration does not say.
    budget = {"overview_pixels": 2304, "features": features, "path": str(tmp_path)}
    encoder = OpenClipEncoder(OpenClipConfig(config=config_of(), **budget)).eval()
    encoder.load_weights()
    view = encoder.prepare(crop_of(32, 32, overview=True))
    found = theirs.vision_model(pixel_values=image_of(view))
    expected = theirs.vision_model.post_layernorm(found.last_hidden_state[0, 1:])
    expected = theirs.visual_projection(expected) if features == "projected" else expected
    assert_close(encode(encoder, [view]), expected, features, tolerance=1e-4)
    # Positions of another grid are resampled when they are loaded.
    larger = OpenClipEncoder(OpenClipConfig(config=config_of({"image_size": 48}), **budget)).eval()
    larger.load_weights()
    view = encoder.prepare(crop_of(48, 48, overview=True))
    assert view.size == (6, 6)
    assert_close(encode(larger, [view]), encode(encoder, [view]), "resampled")


def test_a_tag_decides_the_activation_its_weights_were_trained_with():
    with torch.device("meta"):
        openai = OpenClipEncoder(OpenClipConfig(model="ViT-B-32", pretrained="openai"))
        laion = OpenClipEncoder(OpenClipConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))
    kinds = [type(made.tower.model.transformer.resblocks[0].mlp.gelu).__name__ for made in (openai, laion)]
    assert kinds == ["QuickGELU", "GELU"]


@pytest.fixture
def saved(tmp_path):
    """A model as open_clip saves it: a folder with its configuration and its weights."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**config_of(), cast_dtype=None)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "weights.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    described = {"model_cfg": config_of(), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    (folder / "open_clip_model.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes())
    return SimpleNamespace(model=model.eval(), file=tmp_path / "weights.safetensors", folder=folder)


def features_of(config):
    encoder = OpenClipEncoder(replace(config, max_scale=1.0)).eval()
    encoder.load_weights()
    view = encoder.prepare(crop_of(32, 32))
    with torch.no_grad():
        return encode(encoder, [view]), view


@torch.no_grad()
def test_a_file_a_folder_and_the_hub_give_the_same_weights(saved, monkeypatch):
    def download(repository, name, local_files_only=False):
        assert repository == "owner/model" and local_files_only
        return str(saved.folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    saved.model.visual.output_tokens = True
    from_file, view = features_of(OpenClipConfig(config=config_of(), path=str(saved.file)))
    assert_close(from_file, saved.model.visual(image_of(view))[1][0], "file")
    expected = saved.model.visual(image_of(view, [0.5] * 3, [0.5] * 3))[1][0]
    assert_close(features_of(OpenClipConfig(path=str(saved.folder)))[0], expected, "folder")
    hub = OpenClipConfig(model="hf-hub:owner/model", local_files_only=True)
    assert_close(features_of(hub)[0], expected, "hub")


def test_the_weights_of_a_tag_are_its_safetensors(saved, monkeypatch):
    asked = []

    def download(repository, name, local_files_only=False):
        asked.append((repository, name, local_files_only))
        return str(saved.file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with torch.device("meta"):
        encoder = OpenClipEncoder(OpenClipConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))
    assert not asked, "building downloads nothing"
    with pytest.raises(InputError, match="another architecture"):
        encoder.load_weights()
    assert asked == [("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors", False)]


def test_weights_of_another_architecture_are_one_error_with_what_differs(saved):
    deeper = OpenClipConfig(config=config_of({"layers": 3, "mlp_ratio": 1.0}), path=str(saved.file))
    with pytest.raises(InputError, match=r"missing: transformer\.resblocks\.2\.\S+.* and \d+ more.*mis-shaped: trans"):
        OpenClipEncoder(deeper).load_weights()
    shallower = OpenClipConfig(config=config_of({"layers": 1}), path=str(saved.file))
    with pytest.raises(InputError, match=r"unexpected: transformer\.resblocks\.1\."):
        OpenClipEncoder(shallower).load_weights()
    with pytest.raises(InputError, match="another architecture"):
        OpenClipEncoder(OpenClipConfig(config=TRUNKS["token"], path=str(saved.file))).load_weights()


def test_the_error_of_foreign_weights_names_their_file_and_what_they_look_like(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({f"blocks.{i}.attn.qkv.weight": torch.zeros(1) for i in range(9)}, path)
    with pytest.raises(InputError) as caught:
        OpenClipEncoder(OpenClipConfig(config=config_of(), path=str(path))).load_weights()
    told = str(caught.value)
    assert told.startswith(f"Weights '{path}' are of another architecture, by their names a plain vision transformer (")
    assert "''" not in told and told.count(". ") == 1 and len(told) < 500


def test_that_weights_are_there_is_seen_without_reading_them(saved, tmp_path):
    for file in (saved.file, saved.folder):
        config = None if file.is_dir() else config_of()
        OpenClipEncoder(OpenClipConfig(config=config, path=str(file))).check_weights()
    (saved.folder / "open_clip_model.safetensors").unlink()
    for settings, words in (
        ({"path": str(saved.folder)}, "should hold weights"),
        ({"config": config_of(), "path": str(tmp_path / "gone.safetensors")}, "do not exist"),
    ):
        with pytest.raises(InputError, match=words):
            OpenClipEncoder(OpenClipConfig(**settings)).check_weights()


@torch.no_grad()
def test_weights_of_timms_towers_come_without_their_heads(tmp_path):
    tower = tower_of(TRUNKS["map"])
    save_file({f"visual.{key}": value for key, value in tower.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = OpenClipEncoder(OpenClipConfig(config=TRUNKS["map"], path=str(tmp_path / "w.safetensors"))).eval()
    encoder.load_weights()
    view = encoder.prepare(crop_of(64, 64))
    assert torch.equal(encode(encoder, [view]), encode(encoder_of(TRUNKS["map"], tower), [view]))


def test_pickles_missing_and_broken_files_are_refused(saved, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    for file, words in (("weights.pt", "Convert once"), ("gone.safetensors", "do not exist"), (broken, "cannot be re")):
        with pytest.raises(InputError, match=words):
            OpenClipEncoder(OpenClipConfig(config=config_of(), path=str(file))).load_weights()
    weights = saved.folder / "open_clip_model.safetensors"
    weights.rename(saved.folder / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=r"only open_clip_pytorch_model\.bin, .* Convert it once"):
        OpenClipEncoder(OpenClipConfig(path=str(saved.folder))).load_weights()
    for content, words in (("{", "cannot be read"), ("[]", "no JSON object")):
        (saved.folder / "open_clip_config.json").write_text(content)
        with pytest.raises(InputError, match=words):
            OpenClipEncoder(OpenClipConfig(path=str(saved.folder)))
    with pytest.raises(InputError, match=r"no open_clip_config\.json"):
        OpenClipEncoder(OpenClipConfig(path=str(Path(tmp_path))))


def test_what_is_not_cached_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    settings = {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "local_files_only": True}
    with torch.device("meta"):
        encoder = OpenClipEncoder(OpenClipConfig(**settings))
    with pytest.raises(InputError, match="not in the local cache and `local_files_only` forbids"):
        encoder.load_weights()
    with pytest.raises(InputError, match="'hf-hub:owner/model' cannot be read"):
        OpenClipEncoder(OpenClipConfig(model="hf-hub:owner/model", local_files_only=True))


def test_settings_are_read_from_a_recipe():
    config = parse_config(OpenClipConfig, {"config": config_of(), "features": "projected"}, "recipe")
    assert OpenClipEncoder(config).spec.out_width == 20
