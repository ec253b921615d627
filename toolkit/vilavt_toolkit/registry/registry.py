"""Components by exact name, each with its typed settings. Imports no torch.

Each kind has one registry. The kind is the word of recipes and commands (`model.stopping`, `vilavt list format`). A
registry is named after its contract where the kind alone would not say what is registered: kind `stopping` holds the
`stopping_policies` (contract `StoppingPolicy`), kind `format` the `formats` of checkpoints (`CheckpointFormat`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vilavt_toolkit.errors import DuplicateName, UnknownName
from vilavt_toolkit.registry.plugin_code import digest_class
from vilavt_toolkit.settings import NoSettings, did_you_mean
from vilavt_toolkit.utils.text import shorten_text

if TYPE_CHECKING:
    from vilavt_toolkit import contracts

ENTRY_POINTS = "vilavt_toolkit.components"
"""The entry point group through which installed packages bring components."""

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])

COMPONENT_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""The form of a registered name, `lower_snake_case`."""
_ORIGIN: ContextVar[str] = ContextVar("origin", default="")
"""The package or plugin that is being loaded. A ContextVar, so that threads that load at once do not mix theirs."""

loaded_plugins: set[str] = set()
"""Plugins that are loaded, by the name of their module, so that loading one again does nothing."""


@functools.cache
def _entry_point_packages() -> dict[str, str]:
    """Return "package version" of every package of the entry point group, by its top-level name."""
    # Cached, since reading the metadata of all installed packages takes as long as a small command.
    found = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        top = point.value.split(".")[0].split(":")[0]
        found[top] = f"{top} {point.dist.version}" if point.dist else top
    return found


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered component."""

    kind: str
    name: str
    cls: type[T]
    config: type[Any]
    origin: str
    """The package, with its version, or the plugin that brought it."""

    @property
    def location(self) -> str:
        """file:line of the class, or its dotted name if it has no source file."""
        try:
            return f"{inspect.getsourcefile(self.cls)}:{inspect.getsourcelines(self.cls)[1]}"
        # A class from a console or from exec has no source.
        except (OSError, TypeError):
            return f"{self.cls.__module__}.{self.cls.__qualname__}"

    @property
    def summary(self) -> str:
        """First line of the class's docstring."""
        return (inspect.getdoc(self.cls) or "").partition("\n")[0]


class Registry(Generic[T]):
    """The components of one kind. Errors call them by `label` and `plural`."""

    def __init__(self, kind: str, label: str = "", plural: str = "") -> None:
        self.kind = kind
        self.label = label or kind.replace("_", " ")
        self.plural = plural or f"{self.label}s"
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, config: type[Any] | None = None) -> Callable[[C], C]:
        """Register the decorated class under `name`, with its settings' dataclass; raises DuplicateName."""
        if not COMPONENT_NAME.fullmatch(name):
            raise ValueError(f"{self.label} name {name!r} is not lower_snake_case. Write it like 'cross_attention'.")
        settings = NoSettings if config is None else config
        if not dataclasses.is_dataclass(settings):
            raise TypeError(f"the config of {self.label} '{name}' is {settings!r}. Give it @dataclass(frozen=True).")
        # In a recipe the settings stand beside `name`, which says what component they are of.
        if any(f.name == "name" for f in dataclasses.fields(settings)):
            raise TypeError(f"{settings.__name__} has a setting 'name', which is the component's. Rename the setting.")

        def register_class(cls: C) -> C:
            self._add_entry(Entry(self.kind, name, cls, settings, _origin_of(cls)))
            return cls

        return register_class

    def _add_entry(self, entry: Entry[T]) -> None:
        old = self._entries.get(entry.name)
        if old is not None and _is_same_code(old.cls, entry.cls):
            # A script that imports a plugin which a checkpoint brings too: either class will do, and the first stays.
            return
        if old is not None:
            raise DuplicateName(
                f"two {self.plural} are named '{entry.name}': {old.location} ({old.origin}) and "
                f"{entry.location} ({entry.origin}). {_duplicate_remedy(old.location, entry.location)}."
            )
        self._entries[entry.name] = entry

    def get(self, name: str) -> Entry[T]:
        """Return the component registered under exactly `name`; raises UnknownName, which lists the names."""
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownName(self.unknown_name_message(name))
        return entry

    def unknown_name_message(self, name: object) -> str:
        """Describe an unknown name: the nearest name, all registered names, and where they came from."""
        names, origins = ", ".join(self.names()) or "none", ", ".join(self.origins()) or "nothing"
        return (
            f"no {self.label} named {shorten_text(repr(name))}.{did_you_mean(name, self.names())}\n"
            f"  registered {self.plural}: {names}\n  loaded from: {origins}"
        )

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)

    def entries(self) -> list[Entry[T]]:
        """Return all entries, sorted by name."""
        return [self._entries[name] for name in self.names()]

    def origins(self) -> list[str]:
        """Return the packages and plugins that brought the entries, in the order of arrival."""
        return list(dict.fromkeys(entry.origin for entry in self._entries.values()))

    def __contains__(self, name: object) -> bool:
        # A recipe can hold anything as a name, also a list, which has no hash.
        return isinstance(name, str) and name in self._entries

    def snapshot(self) -> dict[str, Entry[T]]:
        """Return the current entries, for `restore`."""
        return dict(self._entries)

    def restore(self, snapshot: dict[str, Entry[T]]) -> None:
        """Forget all entries added after `snapshot`, except the components of installed packages."""
        # Python imports a package once, so a component of one that is forgotten could not come back.
        packages = _entry_point_packages()
        installed = {name: entry for name, entry in self._entries.items() if _package_of(entry.cls) in packages}
        self._entries = installed | snapshot


def _is_same_code(first: type[Any], second: type[Any]) -> bool:
    """Return True for one class of two modules that hold the same code."""
    if first.__module__ == second.__module__ or first.__qualname__ != second.__qualname__:
        return False
    digest = digest_class(first)
    return digest is not None and digest == digest_class(second)


def _duplicate_remedy(first: str, second: str) -> str:
    """Return what to do about two components of one name, from their locations `file:line`."""
    if first == second:
        return "It is the same file, imported under two module names: import it under one"
    for location in (first, second):
        file = Path(location.rpartition(":")[0])
        recipe = file.parent.parent / "recipe.yaml"
        # A checkpoint keeps copies of its plugins. Once such a part is installed, the copy is the one to drop.
        if file.parent.name == "plugins" and recipe.is_file():
            return f"To use the other one, remove plugins/{file.name} from `plugins:` in {recipe}"
    return "Rename one of them"


def _package_of(cls: type[Any]) -> str:
    return cls.__module__.split(".")[0]


def _origin_of(cls: type[Any]) -> str:
    package = _package_of(cls)
    # A class may also register outside of any loading, in a notebook for example: then its package is its origin.
    return _ORIGIN.get() or _entry_point_packages().get(package, package)


@contextmanager
def registering_from(origin: str) -> Iterator[None]:
    """Record `origin` as the origin of everything that is registered inside."""
    token = _ORIGIN.set(origin)
    try:
        yield
    finally:
        _ORIGIN.reset(token)


sources: Registry[contracts.Source] = Registry("source")
encoders: Registry[contracts.Encoder] = Registry("encoder")
modulators: Registry[contracts.Modulator] = Registry("modulator")
inquiry_encoders: Registry[contracts.InquiryEncoder] = Registry("inquiry_encoder")
projectors: Registry[contracts.Projector] = Registry("projector")
language_models: Registry[contracts.LanguageModel] = Registry("language_model")
dialogues: Registry[contracts.Dialogue] = Registry("dialogue")
stopping_policies: Registry[contracts.StoppingPolicy] = Registry("stopping", "stopping policy", "stopping policies")
tasks: Registry[contracts.Task] = Registry("task")
optimizers: Registry[contracts.Optimizer] = Registry("optimizer")
rewards: Registry[contracts.Reward] = Registry("reward")
"""All rewards by name: the classes of `vilavt_components.rewards`, and functions from `vilavt_toolkit.rewards`."""
advantages: Registry[contracts.Advantage] = Registry("advantage")
policy_losses: Registry[contracts.PolicyLoss] = Registry("policy_loss", "policy loss", "policy losses")
formats: Registry[Any] = Registry("format", "checkpoint format")


REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry
    for registry in (
        sources,
        encoders,
        modulators,
        inquiry_encoders,
        projectors,
        language_models,
        dialogues,
        stopping_policies,
        tasks,
        optimizers,
        rewards,
        advantages,
        policy_losses,
        formats,
    )
}


@dataclass(frozen=True)
class Part:
    """A component that a recipe chose by name, with its typed settings."""

    kind: str
    name: str
    config: Any

    @property
    def entry(self) -> Entry[Any]:
        """The registered component."""
        return REGISTRIES[self.kind].get(self.name)

    def build(self, *context: Any) -> Any:
        """Build the component from its settings, and from the `context` that its contract's `__init__` names."""
        return self.entry.cls(self.config, *context)

    def __str__(self) -> str:
        return f"{REGISTRIES[self.kind].label} '{self.name}'"
