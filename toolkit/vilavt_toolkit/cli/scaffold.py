"""`vilavt new`: write a component of any kind and its test, as a plugin or into a checkout of the toolkit."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vilavt_toolkit.cli.component_list import find_registries
from vilavt_toolkit.errors import InputError, UsageError
from vilavt_toolkit.registry import Registry
from vilavt_toolkit.registry.plugins import display_path, load_builtin
from vilavt_toolkit.registry.registry import COMPONENT_NAME
from vilavt_toolkit.utils.files import write_text

_TEMPLATE_NAME, _TEMPLATE_CLASS = "my_part", "MyPart"
_USAGE = re.compile(r"\n\nUse it in a recipe that stands beside this file:\n\n(?P<lines>.*?)\n\"\"\"\n", re.S)
_PLUGINS_LINE = "    plugins: [./my_part.py]\n"
_TABLE = {"modulator": "column", "encoder": "row"}
"""Kinds that stand in the table of docs/compatibility.md, and as what."""

_TEST = '''"""The contract of the __LABEL__ 'my_part'.

Run it with `pytest __PATH__`.
"""

from __future__ import annotations

__IMPORTS__


def test_my_part_keeps_the_contract_of_its_kind() -> None:
    """Every claim on components of kind __KIND__ holds."""
    __LOAD__
    check("__KIND__", "my_part")
'''
_PLUGIN_IMPORTS = """from pathlib import Path

from vilavt_toolkit.registry.plugins import load_plugins
from vilavt_toolkit.testing import check"""


@dataclass(frozen=True)
class WrittenComponent:
    """Holds the files that were written, and how a recipe uses the component."""

    kind: str
    name: str
    module: Path
    test: Path
    recipe: str
    """Lines of a recipe that use it."""
    in_checkout: bool
    """True if it was written into a checkout of the toolkit, where its place registers it."""


def write_component(kind: str, name: str, folder: Path | None) -> WrittenComponent:
    """Write NAME.py and test_NAME.py, both or neither, and overwrite nothing; raises UsageError, InputError.

    Without `folder` they go to their places in the checkout that the current folder lies in, else into that folder.
    """
    (registry,) = find_registries(kind)
    template = _read_template(registry)
    _check_name(name, registry, template)
    checkout = _find_checkout(Path.cwd()) if folder is None else None
    module, test = _choose_files(registry.kind, name, checkout, folder or Path())
    _check_files(module, test, name, checkout is not None)

    load_builtin()
    if name in registry:
        origin = registry.get(name).origin
        raise UsageError(
            f"there is {_with_article(registry.label)} '{name}' already, of {origin}. Choose another name."
        )
    usage = _USAGE.search(template)
    assert usage is not None
    recipe = usage["lines"]
    if checkout is not None:
        # A component of the package is registered by its place, so its recipe has no plugins.
        recipe = recipe.replace(_PLUGINS_LINE, "")
        template = _USAGE.sub(lambda found: f'\n\nUse it in a recipe:\n\n{recipe}\n"""\n', template)
    texts = {module: template, test: _fill_test(registry, test, checkout)}
    _write_all({file: _rename_part(text, name) for file, text in texts.items()})
    return WrittenComponent(registry.kind, name, module, test, _rename_part(recipe, name), checkout is not None)


def describe_next_steps(written: WrittenComponent) -> list[str]:
    """Return the lines that say what was written and what to type next."""
    module, test = display_path(written.module), display_path(written.test)
    recipe = written.module.with_name(f"{written.name}.yaml") if not written.in_checkout else Path("mine.yaml")
    # In a checkout the recipe names no plugin, so it may lie anywhere.
    lines = [f"wrote {module} and {test}", f"test it:   pytest {test}"]
    if written.in_checkout:
        lines = [lines[0], "           Its place registers it, nothing has to be listed.", f"{lines[1]} tests/contract"]
        if written.kind in _TABLE:
            place = f"Add its {_TABLE[written.kind]} to the table of docs/compatibility.md"
            lines.append(f"           {place}, which tests/contract/test_must_work.py reads.")
    lines.append(f"use it:    write a recipe {display_path(recipe)}:")
    lines += ["    inherits: quickstart", *written.recipe.splitlines()]
    lines.append(f"check it:  vilavt check {display_path(recipe)}")
    return lines


def _read_template(registry: Registry[object]) -> str:
    file = files("vilavt_toolkit.cli") / "templates" / f"{registry.kind}.py"
    if not file.is_file():
        raise UsageError(
            f"there is no template of {_with_article(registry.label)}. Start from a copy of one that "
            f"`vilavt list {registry.kind}` shows."
        )
    return file.read_text(encoding="utf-8")


def _check_name(name: str, registry: Registry[object], template: str) -> None:
    """Refuse a name that cannot be one of a component, of its class, or of its module; raises UsageError."""
    if not COMPONENT_NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(
            f"'{name}' cannot name {_with_article(registry.label)}. Write it in lower_snake_case, like "
            f"'my_{registry.kind}'."
        )
    # `class Modulator(Modulator)` would derive from itself, and `Tensor` would hide torch's.
    if re.search(rf"\b{_class_name(name)}\b", template):
        raise UsageError(
            f"'{name}' cannot name {_with_article(registry.label)}: its class {_class_name(name)} would hide what the "
            f"file imports. Choose another name, like 'my_{name}'."
        )


def _check_files(module: Path, test: Path, name: str, in_checkout: bool) -> None:
    """Refuse to overwrite a file, or to hide a module of Python's; raises UsageError."""
    advice = "Choose another name, or a folder with --dir."
    for file in (module, test):
        try:
            exists = file.exists()
        except OSError as error:  # a name too long, a folder that may not be entered
            raise UsageError(f"cannot write into {module.parent}: {error.strerror}. {advice}") from error
        if exists:
            raise UsageError(f"{display_path(file)} exists already. {advice}")
    # pytest puts a test's folder first on the path, where json.py would be imported in place of Python's.
    if not in_checkout and (name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None):
        raise UsageError(f"a file {name}.py would hide the Python module '{name}'. Choose another name.")


def _find_checkout(folder: Path) -> Path | None:
    """Return the checkout of the toolkit that a folder lies in, or None."""
    for parent in (folder, *folder.parents):
        if (parent / "components" / "vilavt_components" / "__init__.py").is_file():
            return parent
    return None


def _choose_files(kind: str, name: str, checkout: Path | None, folder: Path) -> tuple[Path, Path]:
    if checkout is None:
        return folder / f"{name}.py", folder / f"test_{name}.py"
    plural = {"stopping": "stopping", "policy_loss": "policy_losses"}.get(kind, f"{kind}s")
    module = checkout / "components" / "vilavt_components" / plural / f"{name}.py"
    return module, checkout / "tests" / "components" / plural / f"test_{name}.py"


def _fill_test(registry: Registry[object], test: Path, checkout: Path | None) -> str:
    """Return the test's text, in which the component is still called my_part."""
    # `check` loads the components of installed packages itself, a plugin has to be loaded by its path.
    plugin = 'load_plugins(["./my_part.py"], relative_to=Path(__file__).parent)'
    text = _TEST.replace("__LOAD__\n    ", f"{plugin}\n    " if checkout is None else "")
    text = text.replace("__IMPORTS__", _PLUGIN_IMPORTS if checkout is None else _PLUGIN_IMPORTS.splitlines()[-1])
    path = test.name if checkout is None else test.relative_to(checkout).as_posix()
    return text.replace("__LABEL__", registry.label).replace("__KIND__", registry.kind).replace("__PATH__", path)


def _rename_part(text: str, name: str) -> str:
    return text.replace(_TEMPLATE_NAME, name).replace(_TEMPLATE_CLASS, _class_name(name))


def _with_article(label: str) -> str:
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write all files, or none of them."""
    written: list[Path] = []
    try:
        for file, text in texts.items():
            write_text(file, text)
            written.append(file)
    except InputError:
        for file in written:
            # The error that the user must see is the first one.
            with suppress(OSError):
                file.unlink()
        raise
