"""Vision towers of transformers (CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, ViT): their tensors under timm's names."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vilavt_toolkit.errors import InputError

_ROOT = re.compile(r"(.*?)embeddings\.patch_embeddings?\.")
_LAYER = re.compile(r"(?:model\.)?(?:encoder\.)?layers?\.(\d+)\.(.+)\.(weight|bias|lambda1)")
_IN_LAYER: Mapping[str, str] = {
    r"(layer_)?norm1|layernorm_before": "norm1",
    r"(layer_)?norm2|layernorm_after": "norm2",
    r"self_attn\.([qkv])_proj|attention\.([qkv])_proj|attention\.attention\.(q)uery|attention\.attention\.(k)ey"
    r"|attention\.attention\.(v)alue": "attn.{}",
    r"self_attn\.out_proj|attention\.o_proj|attention\.output\.dense": "attn.proj",
    r"mlp\.gate_proj": "mlp.gate",
    r"mlp\.up_proj": "mlp.up",
    r"mlp\.fc1|mlp\.weights_in|intermediate\.dense": "mlp.fc1",
    r"mlp\.fc2|mlp\.weights_out|mlp\.down_proj|output\.dense": "mlp.fc2",
    r"layer_scale([12])": "ls{}",
}
_OUTSIDE: Mapping[str, str] = {
    r"embeddings\.(?:class_embedding|cls_token)": "cls_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.(?:position_embedding\.weight|position_embeddings)": "pos_embed",
    r"embeddings\.patch_embeddings?(?:\.projection)?\.(weight|bias)": "patch_embed.proj.{}",
    r"pre_layr?norm\.(weight|bias)": "norm_pre.{}",
    r"(?:post_layernorm|layernorm|norm)\.(weight|bias)": "norm.{}",
}
# After the features, or of no use without training on masked images.
_LEFT_OUT = re.compile(r"(head|pooler|classifier)\.|embeddings\.(mask_token|position_ids)")


def is_transformers_vision(names: Collection[str]) -> bool:
    """Return True if tensors of these names are those of a vision tower of transformers."""
    return _find_root(names) is not None and any(
        re.search(r"layers?\.\d+\.(self_attn|attention)\.", name) for name in names
    )


def to_timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a vision tower under timm's names, and in timm's shapes.

    Queries, keys and values are one tensor, `attn.qkv`, whose missing biases are zero. Other towers and heads are left
    out.
    """
    root = _find_root(weights) or ""
    named: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key == "visual_projection.weight":
            named["head.weight"] = value
        elif key.startswith(root) and not _LEFT_OUT.match(key.removeprefix(root)):
            named[_rename(key.removeprefix(root))] = value
    return {name: _reshape(name, value) for name, value in _fuse(named).items()}


def to_open_clip_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that have timm's names under those of open_clip's own vision transformer."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        new = re.sub(r"^blocks\.", "transformer.resblocks.", name)
        new = re.sub(r"\battn\.qkv\.", "attn.in_proj_", new).replace(".attn.proj.", ".attn.out_proj.")
        new = re.sub(r"\.norm([12])\.", r".ln_\1.", new).replace(".mlp.fc1.", ".mlp.c_fc.")
        new = new.replace(".mlp.fc2.", ".mlp.c_proj.").replace("patch_embed.proj.", "conv1.")
        new = new.replace("norm_pre.", "ln_pre.")
        renamed[re.sub(r"^norm\.", "ln_post.", new)] = value
    # timm has these with dimensions of one in front, open_clip without.
    for old, new in (("cls_token", "class_embedding"), ("pos_embed", "positional_embedding")):
        if old in renamed:
            renamed[new] = renamed.pop(old)[0]
    if "class_embedding" in renamed:
        renamed["class_embedding"] = renamed["class_embedding"][0]
    if "head.weight" in renamed:
        renamed["proj"] = renamed.pop("head.weight").T
    return renamed


def _find_root(names: Collection[str]) -> str | None:
    """Return what stands before the names of the vision tower, such as `vision_model.`; None without one."""
    return next((found[1] for name in names if (found := _ROOT.match(name))), None)


def _rename(name: str) -> str:
    """Return timm's name of a tensor; its own name if it is unknown, which is told where it is loaded."""
    layer = _LAYER.fullmatch(name)
    table, inner = (_OUTSIDE, name) if layer is None else (_IN_LAYER, layer[2])
    for pattern, new in table.items():
        found = re.fullmatch(pattern, inner)
        if found:
            inner = new.format(next((group for group in found.groups() if group), ""))
            break
    else:
        return name
    if layer is None:
        return inner
    return f"blocks.{layer[1]}.{inner}.{'gamma' if layer[3] == 'lambda1' else layer[3]}"


def _fuse(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put queries, keys and values into one tensor, and gate and value of an MLP into one."""
    fused = {name: value for name, value in named.items() if not re.search(r"\.attn\.[qkv]\.|\.mlp\.(gate|up)\.", name)}
    for name in named:
        block = name.rpartition(".attn.q.")[0]
        if name == f"{block}.attn.q.weight":
            weights = [named[f"{block}.attn.{part}.weight"] for part in "qkv"]
            biases = [named.get(f"{block}.attn.{part}.bias") for part in "qkv"]
            fused[f"{block}.attn.qkv.weight"] = torch.cat(weights)
            if any(bias is not None for bias in biases):
                # DINOv3 has no bias of keys, which would change no softmax.
                pairs = zip(biases, weights, strict=True)
                filled = [weight.new_zeros(len(weight)) if bias is None else bias for bias, weight in pairs]
                fused[f"{block}.attn.qkv.bias"] = torch.cat(filled)
    for name, gate in named.items():
        if ".mlp.gate." in name:
            fused[name.replace(".gate.", ".fc1.")] = torch.cat([gate, named[name.replace(".gate.", ".up.")]])
        elif ".mlp.up." in name and name.replace(".up.", ".gate.") not in named:
            fused[name.replace(".up.", ".fc1.")] = named[name]
    return fused


def _reshape(name: str, value: Tensor) -> Tensor:
    """Return a tensor in the shape that timm gives it."""
    if name in ("cls_token", "pos_embed", "reg_token"):
        return value.reshape(1, -1, value.shape[-1])
    if name == "patch_embed.proj.weight" and value.dim() == 2 and value.shape[1] % 3 == 0:
        # SigLIP 2 of any resolution takes patches as rows of pixels, colours last.
        side = round((value.shape[1] / 3) ** 0.5)
        return value.view(len(value), side, side, 3).permute(0, 3, 1, 2)
    return value


def read_vision_config(path: Path) -> Mapping[str, Any]:
    """Return the settings of the vision tower whose weights lie at `path`, a folder of transformers or a file in one.

    Empty if there are none. Raises InputError for a file that cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return {}
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}' cannot be read ({error}). Copy the file again.") from error
    # timm and open_clip write a config.json too, which says nothing of this kind.
    if not isinstance(given, dict) or "model_type" not in given:
        return {}
    inner = given.get("vision_config")
    return inner if isinstance(inner, dict) else given
