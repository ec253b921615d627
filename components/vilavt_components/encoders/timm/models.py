"""timm's models: built without weights, checked, and filled with local or pretrained ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor, nn

from vilavt_components.common.suggestions import unknown
from vilavt_components.common.weights import Wanted, as_they_are, check_safetensors, fill, fill_from_file
from vilavt_components.encoders.timm.blocks import adapters, part_types
from vilavt_toolkit.errors import BadConfig, InputError

if TYPE_CHECKING:
    from vilavt_components.encoders.timm.encoder import StemConfig, TimmConfig

# What timm's models hold beside the features; checkpoints may have it, this encoder does not.
_HEADS = ("head.", "head_dist.", "attn_pool.", "fc_norm.", "pre_logits.")
_WORKS = (
    "plain vision transformers work: ViT, DeiT, EVA, DINOv3, BEiT, relative-position ViT "
    "(vit_base_patch16_224, eva02_base_patch14_224, beit_base_patch16_224, ...)"
)


class Named(Protocol):
    """Settings that say which weights are loaded."""

    @property
    def model(self) -> str | None: ...
    @property
    def pretrained(self) -> bool: ...
    @property
    def file(self) -> str | None: ...
    @property
    def local_files_only(self) -> bool: ...
    @property
    def args(self) -> dict[str, Any]: ...


def build_model(config: TimmConfig) -> Any:
    """Build timm's model without weights; raises BadConfig for blocks this encoder was not written for."""
    if config.model is None and config.config is None:
        raise BadConfig("Encoder 'timm' needs either `model` (a timm name) or `config` (arguments of a new one).")
    if config.model is not None and config.config is not None:
        raise BadConfig(
            f"Encoder 'timm' has both `model` ('{config.model}') and `config`; leave out one, as in `config: null`."
        )
    if config.pretrained and config.model is None:
        raise BadConfig("`pretrained` needs `model`; weights of a `config` model come from `file`.")
    if config.stem is not None and config.model is not None:
        raise BadConfig("`stem` belongs to a `config` model; a model by name brings its own, so write `stem: null`.")
    model = _from_config(config) if config.model is None else from_name(config.model, config.args)
    _check(model, config.model)
    # The blocks take any grid; only the check of the input size stands in the way.
    model.patch_embed.strict_img_size = False
    model.reset_classifier(0, "")
    return model


def check_weights(config: Named) -> None:
    """Hold that `file` is there, if it is set; raises InputError."""
    if config.file is not None:
        check_safetensors(Path(config.file))


def load_weights(model: nn.Module, config: Named, unused: tuple[str, ...] = (), wanted: Wanted = as_they_are) -> None:
    """Load `file`, or timm's pretrained weights of `model`; raises InputError.

    Weights whose names begin with one of `unused` are left out, where the model has none of that name. `wanted` gives
    a file's tensors timm's names.
    """

    def skipped(name: str) -> bool:
        return name.startswith(_HEADS + unused)

    if config.file is not None:
        fill_from_file(model, Path(config.file), skipped, wanted)
    elif config.pretrained:
        fill(model, _pretrained(config), f"of '{config.model}'", skipped)


def from_name(name: str, args: Mapping[str, Any]) -> Any:
    """timm's model of a name without weights; raises BadConfig, with the nearest name for one it does not know."""
    import timm

    if ":" in name:
        raise BadConfig(f"Model '{name}' is an address; give the timm name, or `file` for weights from elsewhere.")
    base = name.split(".")[0]
    if not timm.is_model(base):
        listing = "import timm; print(timm.list_models())"
        raise BadConfig(unknown("timm has no model", name, timm.list_models(), listing))
    _check_tag(name)
    try:
        return timm.create_model(name, pretrained=False, **args)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise BadConfig(f"timm cannot build '{name}' with args {dict(args)}: {error}") from error


def _check_tag(name: str) -> None:
    """Refuse a tag, what stands behind the dot, that timm does not know."""
    import timm
    from timm.models import get_pretrained_cfg

    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        pattern = f"{name.partition('.')[0]}.*"
        listing = f"import timm; print(timm.list_pretrained('{pattern}'))"
        known = timm.list_pretrained(pattern)
        raise BadConfig(unknown("timm has no weights", name, known, listing)) from error


def _from_config(config: TimmConfig) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    args: dict[str, Any] = {"num_classes": 0, "class_token": False, "global_pool": ""} | (config.config or {})
    # YAML has no tuples.
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()} | config.args
    if config.stem is not None:
        args |= {"embed_layer": _stem(config.stem, int(args.get("embed_dim", 768))), "patch_size": 1}
    try:
        return VisionTransformer(**args)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise BadConfig(f"timm cannot build a VisionTransformer from `config` {config.config}: {error}") from error


def _stem(stem: StemConfig, embed_dim: int) -> Any:
    import timm.layers
    from timm.models.vision_transformer_hybrid import ConvStem

    if len(stem.channels) != len(stem.strides) or not stem.channels:
        raise BadConfig(f"Stem channels {list(stem.channels)} and strides {list(stem.strides)} must be equally long.")
    layers = cast(Any, timm.layers)
    norm = {"layernorm2d": layers.LayerNorm2d, "groupnorm": layers.GroupNorm1, "batchnorm2d": nn.BatchNorm2d}[stem.norm]
    # Padded by one, so that sides that the strides divide come out divided: timm's own padding is exact for 2 only.
    convolutions = ConvStem(
        depth=len(stem.channels),
        channels=tuple(stem.channels),
        stride=tuple(stem.strides),
        padding=1,
        norm_layer=norm,
    )
    return partial(layers.HybridEmbed, backbone=convolutions, proj=stem.channels[-1] != embed_dim)


@cache
def prefix_tokens() -> Mapping[type, tuple[str, ...]]:
    """The model classes this encoder was written for, and the tokens that stand before a region's patches."""
    from timm.models.beit import Beit
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos

    return {
        VisionTransformer: ("cls_token", "reg_token"),
        VisionTransformerDistilled: ("cls_token", "dist_token"),
        Eva: ("cls_token", "reg_token"),
        Beit: ("cls_token",),
        VisionTransformerRelPos: ("cls_token",),
    }


def _check(model: Any, name: str | None) -> None:
    """Refuse what the encoder's forward was not written for: exact types, subclasses may differ."""
    import timm.layers

    layers = cast(Any, timm.layers)
    _check_family(model, name)
    _only(model.patch_embed, (layers.PatchEmbed, layers.HybridEmbed), "its patch embedding")
    _check_stem(model.patch_embed, layers.HybridEmbed)
    _only(getattr(model, "patch_drop", None), (nn.Identity, type(None)), "patch dropout")
    for index, block in enumerate(model.blocks):
        _check_block(block, index, layers.LayerScale)


def _check_family(model: Any, name: str | None) -> None:
    from vilavt_components.encoders.timm_stages.models import families

    if type(model) in families():
        raise BadConfig(
            f"Model '{name}' is a staged one ({type(model).__name__}), and encoder 'timm' runs plain vision "
            "transformers; take encoder `timm_stages` for it."
        )
    _only(model, prefix_tokens(), f"the model '{name}'" if name else "the model")


def _check_block(block: Any, index: int, layer_scale: type) -> None:
    where = f"block {index}"
    _only(block, adapters(), where)
    attentions, mlps = adapters()[type(block)].parts(block)
    allowed = part_types()
    for part in attentions:
        _only(part, {type(block), *allowed[0]}, where)
        if part.attn_drop.p > 0:
            raise BadConfig("Encoder 'timm' has no attention dropout; leave `attn_drop_rate` at 0.")
    for part in mlps:
        _only(part, allowed[1], where)
    for part in (getattr(block, name, None) for name in ("ls", "ls1", "ls2")):
        _only(part, (layer_scale, nn.Identity, type(None)), where)


def _check_stem(stem: Any, hybrid: Any) -> None:
    if type(stem) is hybrid and any(
        size != cells * stride
        for size, cells, stride in zip(stem.img_size, stem.grid_size, stem.feat_ratio(False), strict=True)
    ):
        raise BadConfig(
            f"The stem turns {stem.img_size[0]} pixels into {stem.grid_size[0]} tokens; "
            "set `img_size` to a multiple of its stride."
        )


def _only(part: Any, types: Collection[type], where: str) -> None:
    if type(part) not in types:
        raise BadConfig(f"Encoder 'timm' was not written for {type(part).__name__} ({where}); {_WORKS}.")


def data_config(model: Any) -> dict[str, Any]:
    """Mean, std and interpolation that the model was trained with."""
    import timm.data

    data = cast(Any, timm.data)
    return dict(data.resolve_data_config(model=model))


def _pretrained(config: Named) -> dict[str, Tensor]:
    """timm's weights of the named model, through its own conversion."""
    import timm
    from timm.models import get_pretrained_cfg

    name = str(config.model)
    source = get_pretrained_cfg(name)
    repository = getattr(source, "hf_hub_id", None)
    if source is None or not source.has_weights:
        raise InputError(f"timm has no pretrained weights for '{name}'; set `pretrained: false` or a `file`.")
    overlay = None
    if config.local_files_only:
        if not repository:
            raise InputError(f"'{name}' is not on the hub, so `local_files_only` finds nothing; set a `file`.")
        overlay = {"file": _cached(name, repository), "custom_load": False}
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **config.args)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The pretrained weights of '{name}' cannot be loaded ({type(error).__name__}); "
            "download them where there is a network, or set `file` to a local .safetensors."
        ) from error
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def _cached(name: str, repository: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return str(hf_hub_download(repository, "model.safetensors", local_files_only=True))
    except OSError as error:
        raise InputError(
            f"'{name}' ({repository}) is not in the local cache and `local_files_only` forbids a download; "
            "run once without it, or set `file`."
        ) from error
