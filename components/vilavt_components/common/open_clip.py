"""open_clip's models by name and tag, file, folder or configuration: their architecture and their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vilavt_components.common.hf_errors import as_input_error
from vilavt_components.common.library_errors import as_bad_config
from vilavt_components.common.suggestions import unknown_name_message
from vilavt_components.common.transformers_vision import is_transformers_vision, read_vision_config
from vilavt_components.common.weights import WEIGHT_FILES, check_safetensors, identity_names, load_file_into
from vilavt_toolkit.errors import BadConfig, InputError
from vilavt_toolkit.settings import did_you_mean, setting
from vilavt_toolkit.utils.text import format_value

HUB = "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
_CONVERT = (
    "safetensors.torch.save_file(open_clip.create_model(name, pretrained=path).state_dict(), 'weights.safetensors')"
)
SMALL_ARCHITECTURE: Mapping[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 3, "head_width": 32, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
}
"""The model that is built if none is named: both towers small and random."""


@dataclass(frozen=True)
class OpenClipSettings:
    """The choice of an open_clip model, the same for both towers, so that one model can be named twice."""

    model: str | None = setting(
        None,
        help="open_clip architecture such as ViT-B-32, or hf-hub:owner/repository",
        replaces=("config", "path"),
    )
    pretrained: str | None = setting(
        None, help="tag of open_clip's weights of `model`, such as laion2b_s34b_b79k", replaces=("path",)
    )
    path: str | None = setting(
        None,
        help="local weights (.safetensors), a folder with open_clip_config.json and such weights, or with `model` a "
        "folder of transformers",
        formerly=("file",),
        is_path=True,
    )
    config: dict[str, Any] | None = setting(
        None,
        help="open_clip's model configuration for a new model (embed_dim, vision_cfg, text_cfg, quick_gelu)",
        replaces=("model", "pretrained", "path"),
    )
    local_files_only: bool = setting(False, help="take everything from the local cache, never download")

    @property
    def is_small(self) -> bool:
        """True if no model is named, so that the small one is built."""
        return self.model is None and self.path is None and self.config is None


@dataclass(frozen=True)
class OpenClipModel:
    """A model's architecture, as open_clip's configuration files have it, and a way to find its weights."""

    name: str
    """Its name in errors."""
    architecture: Mapping[str, Any]
    """The keys embed_dim, vision_cfg, text_cfg, quick_gelu, ..."""
    is_from_user: bool
    """True if the user wrote the architecture, and can change it."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """The keys mean, std, interpolation, ... of the pixels."""
    find_weights: Callable[[], Path] | None = None
    """Finds the weights, by a download if the settings allow one; None if there are none to load."""
    folder: Path | None = None
    """The folder of its tokenizer, if it has files of its own."""

    def tower_config(self, key: str) -> dict[str, Any]:
        """Return a copy of vision_cfg or text_cfg; raises BadConfig if it is missing or has an unknown key."""
        from open_clip import CLIPTextCfg, CLIPVisionCfg

        given = self.architecture.get(key)
        if not isinstance(given, Mapping) or not isinstance(self.architecture.get("embed_dim"), int):
            raise BadConfig(f"The configuration of {self.name} lacks `embed_dim` or `{key}`. Add them.")
        # open_clip would raise a TypeError that names its dataclass; ours names the key and the nearest known one.
        known = tuple(f.name for f in fields({"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}[key]))
        wrong = next((name for name in given if name not in known), None)
        if wrong is not None:
            raise BadConfig(
                f"`{key}` of {self.name} has {wrong!r}, which open_clip does not know.{did_you_mean(wrong, known)}"
            )
        return copy.deepcopy(dict(given))

    def build_tower(self, tower: str, part: Mapping[str, Any]) -> Any:
        """Build open_clip's `vision` or `text` tower of `part` without weights; raises BadConfig."""
        from open_clip import model as library

        make = {"vision": library._build_vision_tower, "text": library._build_text_tower}[tower]
        quick_gelu = bool(self.architecture.get("quick_gelu", False))
        shown = format_value(dict(part))
        with as_bad_config(f"open_clip cannot build the {tower} tower of {self.name} from {shown}", "Correct them."):
            return make(self.architecture["embed_dim"], dict(part), quick_gelu)

    def load_weights_into(
        self,
        tower: nn.Module,
        rename_key: Callable[[str], str | None],
        is_unused: Callable[[str], bool] = lambda name: False,
        convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Load the tensors that `rename_key` names into a tower, if there are weights; raises InputError.

        With `convert`, which then changes them, the tensors of transformers' vision towers are read too.
        """
        if self.find_weights is None:
            return

        def rename_keys(keys: Sequence[str]) -> dict[str, str]:
            if convert is not None and is_transformers_vision(keys):
                return identity_names(keys)
            # Checkpoints of distributed training prefix every name with `module.`; open_clip strips it too.
            names = ((key, rename_key(key.removeprefix("module."))) for key in keys)
            return {key: name for key, name in names if name is not None}

        load_file_into(tower, self.find_weights(), is_unused, rename_keys, convert or dict, _CONVERT)

    def check_weights(self, settings: OpenClipSettings) -> None:
        """Check that the weights of `path`, a file or a folder, are there; raises InputError."""
        if settings.path is not None and self.find_weights is not None:
            check_safetensors(self.find_weights(), _CONVERT)


def resolve_model(settings: OpenClipSettings) -> OpenClipModel:
    """Return the model that settings name, reading its configuration but no weight; raises BadConfig, InputError."""
    _check_choice(settings)
    # A folder goes before `model` and `config`: it describes itself, and with either of them it is refused.
    if settings.is_small:
        return OpenClipModel(
            "the small default model", SMALL_ARCHITECTURE, is_from_user=True, preprocessing=_merge_preprocessing()
        )
    file = None if settings.path is None else Path(settings.path)
    if file is not None and ((file / CONFIG_FILE).is_file() or not (settings.model or settings.config)):
        return _from_folder(settings, file)
    local = None if file is None else lambda: file
    if settings.config is not None:
        found = _model_from_config("`config`", settings.config, own=True, find_weights=local)
    elif str(settings.model).startswith(HUB):
        found = _from_hub(settings, str(settings.model).removeprefix(HUB), local)
    else:
        found = _from_name(settings, str(settings.model).replace("/", "-"), local)
    return found if file is None else _with_activation(found, file)


def _with_activation(model: OpenClipModel, path: Path) -> OpenClipModel:
    """Return the model with the activation that weights of transformers at `path` were trained with."""
    activation = read_vision_config(path).get("hidden_act")
    if activation is None:
        return model
    return replace(model, architecture={**model.architecture, "quick_gelu": activation == "quick_gelu"})


def _check_choice(settings: OpenClipSettings) -> None:
    if settings.model is not None and settings.config is not None:
        raise BadConfig(
            "open_clip: `model` and `config` both say what is built. Leave out one of them, as in `config: null`."
        )
    if settings.pretrained is not None and settings.model is None:
        raise BadConfig("open_clip: `pretrained` is a tag of a `model`. Name one, such as ViT-B-32.")
    if settings.pretrained is not None and str(settings.model).startswith(HUB):
        raise BadConfig(f"open_clip: '{settings.model}' brings its own weights. Leave out `pretrained`.")
    if settings.model is not None and settings.model.startswith("local-dir:"):
        raise BadConfig(f"open_clip: give the folder of '{settings.model}' as `path`.")


def _from_name(settings: OpenClipSettings, name: str, local: Callable[[], Path] | None) -> OpenClipModel:
    import open_clip

    architecture = open_clip.get_model_config(name)
    if architecture is None:
        listing = "import open_clip; print(open_clip.list_models())"
        raise BadConfig(unknown_name_message("open_clip has no model", name, open_clip.list_models(), listing))
    if settings.pretrained is None:
        return _model_from_config(f"'{name}'", architecture, find_weights=local)
    tag = settings.pretrained
    source = open_clip.get_pretrained_cfg(name, tag)
    if not source:
        raise BadConfig(_unknown_tag_message(name, tag))
    # A tag knows the activation its weights were trained with (quick_gelu); the architecture's name alone does not.
    architecture["quick_gelu"] = bool(architecture.get("quick_gelu") or source.get("quick_gelu"))
    repository, _, file = str(source.get("hf_hub", "")).rpartition("/")
    if local is None and not repository:
        raise BadConfig(
            f"The weights '{tag}' of '{name}' are not on the hub as .safetensors, and other formats can run code when "
            f"read. Convert them once ({_CONVERT}) and set `path`."
        )
    hub = _hub_weight_finder(repository, file, settings.local_files_only)
    return _model_from_config(f"'{name}' ({tag})", architecture, preprocessing=source, find_weights=local or hub)


def _from_hub(settings: OpenClipSettings, repository: str, local: Callable[[], Path] | None) -> OpenClipModel:
    from huggingface_hub import hf_hub_download

    with as_input_error(f"'{HUB}{repository}' cannot be read", "Name a repository of open_clip in reach or cached."):
        path = hf_hub_download(repository, CONFIG_FILE, local_files_only=settings.local_files_only)
    hub = _hub_weight_finder(repository, "", settings.local_files_only)
    return _model_from_config(f"'{HUB}{repository}'", _read_json(Path(path)), find_weights=local or hub)


def _from_folder(settings: OpenClipSettings, folder: Path) -> OpenClipModel:
    if settings.model is not None or settings.config is not None:
        raise BadConfig(
            f"open_clip: folder '{folder}' has its own {CONFIG_FILE}. Leave out `model` and `config`,"
            " or set `path` to one file of weights."
        )
    # A file of weights alone does not tell its architecture: names of tensors say the family, not heads or image size.
    if not folder.is_dir():
        raise BadConfig(
            f"open_clip: `path` {str(folder)!r} is no folder with {CONFIG_FILE}. Say what its weights are of, in "
            "`model` or `config`."
        )
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"Folder '{folder}' has no {CONFIG_FILE}. Give a folder as open_clip saves it.")
    given = _read_json(folder / CONFIG_FILE)
    return _model_from_config(f"'{folder}'", given, find_weights=lambda: _find_weight_file(folder), folder=folder)


def _model_from_config(
    name: str,
    given: Mapping[str, Any],
    own: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
    find_weights: Callable[[], Path] | None = None,
    folder: Path | None = None,
) -> OpenClipModel:
    """Make a model of its configuration: bare, or as open_clip saves it, next to that of its preprocessing."""
    # `model_cfg` is how open_clip saves it; get_model_config and a recipe's `config` give the bare mapping.
    architecture = given.get("model_cfg", given)
    if not isinstance(architecture, Mapping):
        raise BadConfig(f"The configuration of {name} is no mapping of embed_dim, vision_cfg and text_cfg.")
    data = _merge_preprocessing(preprocessing if preprocessing is not None else given.get("preprocess_cfg", {}))
    return OpenClipModel(name, dict(architecture), own, data, find_weights, folder)


def _merge_preprocessing(overlay: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return open_clip's default preprocessing with `overlay` in place of some keys."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    return dict(merge_preprocess_dict(PreprocessCfg(), dict(overlay or {})))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read ({error}). It should be JSON as open_clip saves it.") from error
    if not isinstance(found, dict):
        raise InputError(f"'{path}' holds no JSON object. It should be as open_clip saves it.")
    return found


def _find_weight_file(folder: Path) -> Path:
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    found += sorted(folder.glob("*.safetensors"))
    if not found:
        other = next((path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth")), None)
        held = f"only {other}, and that format can run code when read. Convert it once: {_CONVERT}" if other else "none"
        raise InputError(f"Folder '{folder}' should hold weights in {WEIGHT_FILES[0]}. It holds {held}.")
    return found[0]


def _hub_weight_finder(repository: str, file: str, local_files_only: bool) -> Callable[[], Path]:
    """Return a finder of a repository's .safetensors; open_clip's list may name a pickled file in their place."""
    # Most repositories hold the same weights as .safetensors under the same stem.
    names = [WEIGHT_FILES[0]] if file in ("", "open_clip_pytorch_model.bin") else [f"{Path(file).stem}.safetensors"]

    def find() -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(repository, names[0], local_files_only=local_files_only))
        # Before EntryNotFoundError, its base class: not cached is another fault than not in the repository.
        except LocalEntryNotFoundError as error:
            forbidden = (
                " and `local_files_only` forbids a download" if local_files_only else ", nor is the hub in reach"
            )
            raise InputError(
                f"{names[0]} of '{repository}' is not in the local cache{forbidden}. Fetch it once, or set `path`."
            ) from error
        except EntryNotFoundError as error:
            raise InputError(
                f"'{repository}' has no {names[0]}, and other formats can run code when read. Convert its weights "
                f"once ({_CONVERT}) and set `path`."
            ) from error
        except OSError as error:
            raise InputError(f"{names[0]} of '{repository}' cannot be fetched ({error}). Set `path`.") from error

    return find


def _unknown_tag_message(name: str, tag: str) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        return f"open_clip has no weights '{tag}' of '{name}'. It has none, so leave out `pretrained` or set a `path`."
    listing = f"import open_clip; print(open_clip.list_pretrained_tags_by_model('{name}'))"
    return unknown_name_message(f"open_clip has no weights of '{name}' named", tag, tags, listing)
