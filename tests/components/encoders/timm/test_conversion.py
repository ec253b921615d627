"""Weights of transformers give the features that transformers computes; positions of another size are resampled."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from vilavt_components.common.transformers_vision import is_transformers_vision, to_timm_names
from vilavt_components.encoders.timm.encoder import TimmConfig, TimmEncoder
from vilavt_toolkit.contracts import Crop
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.vision.dynamic_encoder import DynamicEncoder

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
WIDE = SHAPE | {"intermediate_size": 64}
OWN = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
SIZED = OWN | {"img_size": 32}
# By name: the class of transformers, its settings, timm's model and arguments.
TOWERS = {
    "clip": ("CLIPVision", WIDE | {"image_size": 32}, "vit_base_patch16_clip_quickgelu_224", SIZED),
    "siglip2": ("SiglipVision", WIDE | {"image_size": 32}, "vit_base_patch16_siglip_gap_224", SIZED),
    "siglip2_naflex": (
        "Siglip2Vision",
        WIDE | {"num_patches": 16},
        "naflexvit_base_patch16_siglip",
        OWN | {"pos_embed_grid_size": (4, 4)},
    ),
    "dinov2": ("Dinov2", SHAPE | {"mlp_ratio": 2, "image_size": 32}, "vit_small_patch14_dinov2", SIZED),
    "dinov2_swiglu": (
        "Dinov2",
        SHAPE | {"mlp_ratio": 2, "image_size": 32, "use_swiglu_ffn": True},
        "vit_giant_patch14_dinov2",
        SIZED | {"mlp_ratio": 48 * 2 / 32},
    ),
    "dinov2_registers": (
        "Dinov2WithRegisters",
        SHAPE | {"mlp_ratio": 2, "image_size": 32},
        "vit_small_patch14_reg4_dinov2",
        SIZED,
    ),
    "dinov3": (
        "DINOv3ViT",
        WIDE | {"image_size": 32, "num_register_tokens": 4},
        "vit_small_patch16_dinov3_qkvb",
        SIZED,
    ),
    "dinov3_gated": (
        "DINOv3ViT",
        WIDE | {"image_size": 32, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        "vit_small_plus_patch16_dinov3_qkvb",
        SIZED,
    ),
    "vit": ("ViT", WIDE | {"image_size": 32}, "vit_base_patch16_224", SIZED),
}


def tower_of(name):
    """A tower of transformers with every weight drawn at random."""
    kind, settings, _, _ = TOWERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def encoder_of(name, folder, **more):
    _, _, model, args = TOWERS[name]
    encoder = TimmEncoder(TimmConfig(model=model, args=args | more, path=str(folder), overview_pixels=1024)).eval()
    encoder.load_weights()
    return encoder


def encode(encoder, view):
    return DynamicEncoder(encoder).encode([view], [0], [[]])[0]


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_folder_of_transformers_gives_the_features_of_transformers(name, tmp_path):
    tower = tower_of(name)
    tower.save_pretrained(tmp_path)
    encoder = encoder_of(name, tmp_path)
    height, width = (16, 40) if name == "siglip2_naflex" else (32, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    view = encoder.prepare(Crop(pixels, "image", True))
    images = encoder.normalise_pixels(view.data.unsqueeze(0), next(encoder.model.parameters()))
    if name == "siglip2_naflex":
        # Patches as rows, of another grid than that of the weights.
        rows = images.view(1, 3, 2, 8, 5, 8).permute(0, 2, 4, 3, 5, 1).reshape(1, 10, -1)
        given = {
            "pixel_values": rows,
            "pixel_attention_mask": torch.ones(1, 10),
            "spatial_shapes": torch.tensor([[2, 5]]),
        }
        hidden = tower(**given).last_hidden_state
    else:
        hidden = tower(pixel_values=images).last_hidden_state
    expected = hidden[0, encoder.prefix_tokens :]
    if name == "clip":
        # transformers norms the class token only; the encoder norms every patch with the same norm.
        expected = (
            tower.vision_model.post_layernorm(expected)
            if hasattr(tower, "vision_model")
            else tower.post_layernorm(expected)
        )
    torch.testing.assert_close(encode(encoder, view), expected, rtol=1e-4, atol=1e-4)


def test_published_names_of_older_versions_are_known_too():
    old = ["embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "layernorm.weight"]
    old += [f"encoder.layer.0.attention.attention.{part}.weight" for part in ("query", "key", "value")]
    old += ["encoder.layer.0.attention.output.dense.weight", "encoder.layer.0.layer_scale1.lambda1"]
    old += ["encoder.layer.0.mlp.weights_in.weight", "encoder.layer.0.layernorm_before.weight", "pooler.dense.weight"]
    for root in ("", "vision_model.", "dinov2."):
        names = [root + name for name in old]
        assert is_transformers_vision(names)
        found = to_timm_names({name: torch.zeros(1, 4) for name in names})
        assert set(found) == {
            "cls_token",
            "patch_embed.proj.weight",
            "norm.weight",
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn.proj.weight",
            "blocks.0.ls1.gamma",
            "blocks.0.mlp.fc1.weight",
            "blocks.0.norm1.weight",
        }
    assert not is_transformers_vision(["blocks.0.attn.qkv.weight", "text_model.embeddings.token_embedding.weight"])


@pytest.mark.parametrize("model", ["vit_base_patch16_224", "naflexvit_base_patch16_siglip", "beit_base_patch16_224"])
def test_positions_of_another_size_are_resampled_when_weights_are_loaded(model, tmp_path):
    def args_of(side):
        return OWN | ({"pos_embed_grid_size": (side // 8,) * 2} if "naflex" in model else {"img_size": side})

    whole = timm.create_model(model, num_classes=0, **args_of(48))
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter)
    save_file({key: value.clone() for key, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = TimmEncoder(TimmConfig(model=model, args=args_of(32), path=str(tmp_path / "w.safetensors")))
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    encoder.load_weights()
    (name,) = (key for key in before if key.endswith(("pos_embed", "0.attn.relative_position_bias_table")))
    assert whole.state_dict()[name].shape != before[name].shape
    assert not torch.equal(encoder.model.state_dict()[name], before[name])


def test_shards_of_a_folder_are_read_by_their_index(tmp_path):
    tower = tower_of("dinov2")
    tower.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    encoder = encoder_of("dinov2", tmp_path)
    assert torch.equal(encoder.model.norm.weight, tower.layernorm.weight)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index\.json' is no index of weights"):
        encoder.load_weights()


@torch.no_grad()
def test_activation_and_epsilon_are_those_of_the_folder(tmp_path):
    tower = tower_of("clip")
    tower.save_pretrained(tmp_path)
    encoder = TimmEncoder(TimmConfig(model="vit_base_patch16_clip_224", args=SIZED, path=str(tmp_path)))
    assert isinstance(encoder.model.blocks[0].mlp.act, timm.layers.QuickGELU)
    assert isinstance(
        TimmEncoder(TimmConfig(model="vit_base_patch16_clip_224", args=SIZED)).model.blocks[0].mlp.act, torch.nn.GELU
    )
    tower_of("vit").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    encoder = TimmEncoder(TimmConfig(model="vit_base_patch16_224", args=SIZED, path=str(file)))
    assert encoder.model.norm.eps == encoder.model.blocks[0].norm1.eps == 1e-12
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "wavy"}))
    with pytest.raises(InputError, match=r"activation 'wavy'.* is unknown. Known are gelu, "):
        TimmEncoder(TimmConfig(model="vit_base_patch16_224", args=SIZED, path=str(tmp_path)))
