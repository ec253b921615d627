"""timm's models: built without weights, checked, and filled with weights from a file or from timm."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from vilavt_components.common.library_errors import as_bad_config
from vilavt_components.common.suggestions import unknown_name_message
from vilavt_components.common.weights import check_safetensors, load_file_into, load_weights_into
from vilavt_components.encoders.timm.blocks import block_adapters, branch_types
from vilavt_components.encoders.timm.conversion import to_timm_weights
from vilavt_components.encoders.timm.stem import StemConfig, check_stem, stem_layer
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.utils.text import format_value

# Parts of timm's models after the features: checkpoints may hold them, and this encoder leaves them out.
_HEADS = ("head.", "head_dist.", "attn_pool.", "fc_norm.", "pre_logits.")
_SUPPORTED = (
    "Choose a plain vision transformer: ViT, DeiT, EVA, DINOv3, BEiT, relative-position ViT "
    "(vit_base_patch16_224, eva02_base_patch14_224, beit_base_patch16_224, ...)"
)


class WeightSource(Protocol):
    """Settings that say which weights are loaded; those of `timm` and of `timm_stages` are."""

    @property
    def model(self) -> str | None: ...
    @property
    def pretrained(self) -> bool: ...
    @property
    def path(self) -> str | None: ...
    @property
    def local_files_only(self) -> bool: ...
    @property
    def args(self) -> dict[str, Any]: ...


def build_by_name(name: str, args: Mapping[str, Any]) -> Any:
    """Build timm's model `name` without weights; raises BadConfig, with the nearest name for an unknown one."""
    import timm

    if ":" in name:
        # timm would download the configuration, and could run code of the repository.
        raise BadConfig(f"Model '{name}' is an address. Give the timm name, or `path` for weights from elsewhere.")
    base = name.split(".")[0]
    if not timm.is_model(base):
        listing = "import timm; print(timm.list_models())"
        raise BadConfig(unknown_name_message("timm has no model", name, timm.list_models(), listing))
    _check_tag(name)
    _check_channels(args)
    with as_bad_config(f"timm cannot build '{name}' with args {format_value(dict(args))}", "Correct `args`."):
        return timm.create_model(name, pretrained=False, **args)


def build_by_config(config: Mapping[str, Any], args: Mapping[str, Any], stem: StemConfig | None) -> Any:
    """Build timm's VisionTransformer from its arguments, with patches or with a stem; raises BadConfig."""
    from timm.models.vision_transformer import VisionTransformer

    merged: dict[str, Any] = {"num_classes": 0, "class_token": False, "global_pool": ""} | dict(config)
    # YAML has no tuples.
    merged = {key: tuple(value) if isinstance(value, list) else value for key, value in merged.items()} | dict(args)
    _check_channels(merged)
    shown = format_value(dict(config))
    with as_bad_config(f"timm cannot build a VisionTransformer from `config` {shown}", "Correct `config`."):
        if stem is not None:
            merged |= {"embed_layer": stem_layer(stem, int(merged.get("embed_dim", 768))), "patch_size": 1}
        return VisionTransformer(**merged)


def _check_channels(settings: Mapping[str, Any]) -> None:
    # Such a model is built, and fails at the first picture.
    if settings.get("in_chans", 3) != 3:
        raise BadConfig(
            f"in_chans is {format_value(settings['in_chans'])}, and pictures have 3 channels. Leave it out."
        )


def check_model(model: Any, where: str) -> None:
    """Raise BadConfig for a model that the forward of encoder `timm` was not written for; `where` names the model."""
    import timm.layers

    layers = cast(Any, timm.layers)
    # Exact types everywhere: a subclass may compute something else, and the result would be wrong without a sign.
    if type(model) not in prefix_token_names():
        raise BadConfig(
            f"Encoder 'timm' runs plain vision transformers, and {where} is a {type(model).__name__}. "
            "Take encoder `timm_stages` for it."
        )
    if not is_naflex(model):
        _check_type(model.patch_embed, (layers.PatchEmbed, layers.HybridEmbed), "its patch embedding")
        check_stem(model.patch_embed)
    # Patch dropout would leave out tokens that the layout counts.
    _check_type(getattr(model, "patch_drop", None), (nn.Identity, type(None)), "patch dropout")
    for index, block in enumerate(model.blocks):
        _check_block(block, f"block {index}", layers.LayerScale)


def is_plain(model: Any) -> bool:
    """Return True if encoder `timm` runs the model."""
    try:
        check_model(model, "the model")
    except BadConfig:
        return False
    return True


def is_naflex(model: Any) -> bool:
    """Return True for a NaFlexVit, which makes patches, positions and prefix tokens in one module, `embeds`."""
    return hasattr(model, "embeds")


def native_size(model: Any) -> tuple[int, int]:
    """Return height and width in pixels of the images that a plain model was made for."""
    if not is_naflex(model):
        height, width = model.patch_embed.img_size
        return int(height), int(width)
    # It takes images of any size. timm's default is the size at which its patches are as many as in training.
    rows, columns = resolve_preprocessing(model)["input_size"][1:]
    return int(rows), int(columns)


@cache
def prefix_token_names() -> Mapping[type, tuple[str, ...]]:
    """Return the plain model classes of timm, each with the attributes that hold its prefix tokens, in order.

    A NaFlexVit adds its prefix tokens itself.
    """
    from timm.models.beit import Beit
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.models.naflexvit import NaFlexVit
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    # In the order in which each class concatenates them.
    return {
        VisionTransformer: ("cls_token", "reg_token"),
        VisionTransformerDistilled: ("cls_token", "dist_token"),
        Eva: ("cls_token", "reg_token"),
        Beit: ("cls_token",),
        VisionTransformerRelPos: ("cls_token",),
        NaFlexVit: (),
    }


def check_weights(config: WeightSource) -> None:
    """Check that the file `path` exists, if it is set; raises InputError."""
    if config.path is not None:
        check_safetensors(Path(config.path))


def load_weights(model: nn.Module, config: WeightSource, whole: Any) -> None:
    """Load the file `path`, or timm's pretrained weights of `model`; raises InputError.

    `whole` is timm's model of the same settings with all of its parts, on the meta device. What it has and `model` has
    not is left out.
    """
    unused = set(whole.state_dict()) - set(model.state_dict())

    def is_unused(name: str) -> bool:
        return name in unused or name.startswith(_HEADS)

    if config.path is not None:
        load_file_into(model, Path(config.path), is_unused, convert=partial(to_timm_weights, whole=whole))
    elif config.pretrained:
        load_weights_into(model, _read_pretrained(config), f"of '{config.model}'", is_unused)


def resolve_preprocessing(model: Any) -> dict[str, Any]:
    """Return mean, std and interpolation that the model was trained with."""
    import timm.data

    data = cast(Any, timm.data)
    return dict(data.resolve_data_config(model=model))


def _check_tag(name: str) -> None:
    """Raise BadConfig for a tag, the part of a name after the dot, that timm does not know."""
    import timm
    from timm.models import get_pretrained_cfg

    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        pattern = f"{name.partition('.')[0]}.*"
        listing = f"import timm; print(timm.list_pretrained('{pattern}'))"
        known = timm.list_pretrained(pattern)
        raise BadConfig(unknown_name_message("timm has no weights", name, known, listing)) from error


def _check_block(block: Any, where: str, layer_scale: type) -> None:
    _check_type(block, block_adapters(), where)
    attentions, mlps = block_adapters()[type(block)].find_branches(block)
    attention_types, mlp_types = branch_types()
    for attention in attentions:
        # A block with fused branches is its own attention.
        _check_type(attention, {type(block), *attention_types}, where)
        if attention.attn_drop.p > 0:
            raise BadConfig("Encoder 'timm' has no attention dropout. Leave `attn_drop_rate` at 0.")
    for mlp in mlps:
        _check_type(mlp, mlp_types, where)
    for scale in (getattr(block, name, None) for name in ("ls", "ls1", "ls2")):
        _check_type(scale, (layer_scale, nn.Identity, type(None)), where)


def _check_type(module: Any, types: Collection[type], where: str) -> None:
    if type(module) not in types:
        raise BadConfig(f"Encoder 'timm' was not written for {type(module).__name__} ({where}). {_SUPPORTED}.")


def _read_pretrained(config: WeightSource) -> dict[str, Tensor]:
    """Read timm's weights of the named model, converted by timm itself; raises InputError."""
    import timm
    from timm.models import get_pretrained_cfg

    name = str(config.model)
    source = get_pretrained_cfg(name)
    repository = getattr(source, "hf_hub_id", None)
    if source is None or not source.has_weights:
        raise InputError(f"timm has no pretrained weights for '{name}'. Set `pretrained: false` or a `path`.")
    overlay = None
    if config.local_files_only:
        if not repository:
            raise InputError(f"'{name}' is not on the hub, so `local_files_only` finds nothing. Set a `path`.")
        # timm has no such setting: it gets the cached file as if it were a local one, and never asks the hub.
        overlay = {"file": _find_cached_file(name, repository), "custom_load": False}
    try:
        # A second model, because timm converts weights (resized positions, renamed tensors) only while building one.
        model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **config.args)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The pretrained weights of '{name}' cannot be loaded ({type(error).__name__}). "
            "Download them on a machine with a network, or set `path` to a local .safetensors file."
        ) from error
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def _find_cached_file(name: str, repository: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(repository, "model.safetensors", local_files_only=True))
    except OSError as error:
        raise InputError(
            f"'{name}' ({repository}) is not in the local cache and `local_files_only` forbids a download. "
            "Run once without it, or set `path`."
        ) from error
