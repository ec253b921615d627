"""The code of a plugin: its file and the files beside it that it imports, read once and run as they were read.

A module is named after all code that it runs, so that equal code is one module, wherever its files lie.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from vilavt_toolkit.errors import BadRecipe

_MOST_BYTES = 10_000_000
"""The largest file that is read as a plugin."""
_NO_IDENTIFIER = re.compile(r"\W")


@dataclass(frozen=True)
class _SourceFile:
    path: Path
    data: bytes
    beside: tuple[str, ...]
    """The names of the files beside it that it imports, without the ending."""


@dataclass(frozen=True)
class PluginCode:
    """The code of one plugin file, with that of every file beside it that it imports, directly or not."""

    path: Path
    """The plugin's own file, absolute."""
    _files: Mapping[str, _SourceFile]

    @property
    def files(self) -> dict[str, bytes]:
        """The bytes of each file by its name, the plugin's own first."""
        return {self._files[name].path.name: self._files[name].data for name in self._reached(self.path.stem)}

    @property
    def paths(self) -> list[Path]:
        """The path of each file, the plugin's own first."""
        return [self._files[name].path for name in self._reached(self.path.stem)]

    @property
    def digest(self) -> str:
        """The SHA-256 of all files with their names: the identity of the code, wherever it lies."""
        return self._digest(self.path.stem)

    @property
    def module(self) -> str:
        """The name of the module that runs the plugin's own file."""
        return self._module(self.path.stem)

    @property
    def modules(self) -> list[str]:
        """The names of all modules that the code consists of."""
        return [self._module(name) for name in self._files]

    def import_module(self) -> ModuleType:
        """Run the code unless it has been run, and return the plugin's module."""
        if _FINDER not in sys.meta_path:
            sys.meta_path.append(_FINDER)
        for name, file in self._files.items():
            renamed = {other: self._module(other) for other in file.beside}
            _FINDER.loaders[self._module(name)] = _CodeLoader(file, renamed, self._digest(name))
        return importlib.import_module(self.module)

    def _reached(self, name: str) -> list[str]:
        """Return the names of a file and of all that it imports, directly or not."""
        found, todo = [name], [name]
        while todo:
            new = [other for other in self._files[todo.pop()].beside if other not in found]
            found += new
            todo += new
        return found

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for other in sorted(self._reached(name)):
            # The length stands before the bytes, so that no two lists of files give the same text.
            digest.update(f"{other}.py {len(self._files[other].data)}\n".encode() + self._files[other].data)
        return digest.hexdigest()

    def _module(self, name: str) -> str:
        return f"vilavt_plugin_{_NO_IDENTIFIER.sub('_', name)}_{self._digest(name)[:16]}"


def read_code(file: Path) -> PluginCode:
    """Read a plugin file and the files beside it that it imports; raises BadRecipe."""
    file = Path(os.path.abspath(file))
    files: dict[str, _SourceFile] = {}
    todo = [file]
    while todo:
        path = todo.pop()
        data = _read_bytes(path)
        beside = tuple(_list_imports_beside(data, path.parent))
        files[path.stem] = _SourceFile(path, data, beside)
        todo += [path.with_name(f"{name}.py") for name in beside if name not in files]
    return PluginCode(file, files)


def digest_class(cls: type[Any]) -> str | None:
    """Return the digest of the code that defined a class; None if it has no source file."""
    loader = getattr(getattr(sys.modules.get(cls.__module__), "__spec__", None), "loader", None)
    if isinstance(loader, _CodeLoader):
        return loader.digest
    try:
        file = inspect.getsourcefile(cls)
        return None if file is None else read_code(Path(file)).digest
    except (BadRecipe, OSError, TypeError):
        return None


def digest_module(name: str) -> str | None:
    """Return a digest of all Python files of the package that an installed module is of, without importing anything.

    None if there is no such package, or if it is too large to be a plugin.
    """
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.rglob("*.py")) or [Path(spec.origin or "")]
    digest = hashlib.sha256(f"{name}\n".encode())
    try:
        # Before anything is read: a name like `torch` would take seconds.
        if sum(file.stat().st_size for file in files) > _MOST_BYTES:
            return None
        for file in files:
            data = file.read_bytes()
            digest.update(f"{file.name} {len(data)}\n".encode() + data)
    except OSError:
        return None
    return digest.hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        # A pipe or a device could be read for ever.
        if not path.is_file():
            raise BadRecipe(f"plugins: there is no file {path}. Write its path relative to the recipe's folder.")
        if path.stat().st_size > _MOST_BYTES:
            raise BadRecipe(f"plugins: {path} is larger than {_MOST_BYTES:,} bytes. Name a file of Python code.")
        return path.read_bytes()
    except OSError as error:
        raise BadRecipe(f"plugins: {path} cannot be read ({error.strerror}). Check the path.") from error


def _list_imports_beside(data: bytes, folder: Path) -> Iterator[str]:
    """Yield the names of the files in `folder` that the code imports."""
    try:
        tree = ast.parse(data)
    # Code that is none says so when it is run.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    seen = set()
    for node in ast.walk(tree):
        for name, is_relative in _imported_names(node):
            # As for a script, a file beside it comes before an installed package, but not before Python's own.
            if name in seen or (name in sys.stdlib_module_names and not is_relative):
                continue
            seen.add(name)
            if (folder / f"{name}.py").is_file():
                yield name


def _imported_names(node: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield the modules that a statement imports and that may be a file beside it, and if the import is relative."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, False) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level <= 1:
        if node.module is not None:
            yield node.module, node.level == 1
        else:
            yield from ((alias.name, True) for alias in node.names)


class _RenameImports(ast.NodeTransformer):
    """Rewrites imports of files beside a plugin to the modules that hold their code."""

    def __init__(self, renamed: Mapping[str, str]) -> None:
        self._renamed = renamed

    def visit_Import(self, node: ast.Import) -> ast.AST:
        node.names = [self._rename(alias) for alias in node.names]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | list[ast.AST]:
        if node.level > 1:
            return node
        if node.module is not None:
            if node.module in self._renamed:
                node.module, node.level = self._renamed[node.module], 0
            return node
        # `from . import a, b`: those that are files beside it become imports of their own.
        files = [self._rename(alias) for alias in node.names if alias.name in self._renamed]
        node.names = [alias for alias in node.names if alias.name not in self._renamed]
        rewritten = [ast.copy_location(ast.Import([alias]), node) for alias in files]
        return [*rewritten, *([node] if node.names else [])]

    def _rename(self, alias: ast.alias) -> ast.alias:
        if alias.name in self._renamed:
            return ast.copy_location(ast.alias(self._renamed[alias.name], alias.asname or alias.name), alias)
        return alias


class _CodeLoader(importlib.abc.InspectLoader):
    """Runs the bytes of a file that were read before; the file itself may have changed or be gone."""

    def __init__(self, file: _SourceFile, renamed: Mapping[str, str], digest: str) -> None:
        self._file, self._renamed, self.digest = file, renamed, digest

    @property
    def origin(self) -> str:
        return str(self._file.path)

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._file.data)

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(self._file.data, self.origin)
        code: CodeType = compile(_RenameImports(self._renamed).visit(tree), self.origin, "exec", dont_inherit=True)
        return code


class _CodeFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of plugins, whose code is in memory."""

    def __init__(self) -> None:
        self.loaders: dict[str, _CodeLoader] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        loader = self.loaders.get(fullname)
        if loader is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, loader, origin=loader.origin)
        # Gives the module its `__file__`, beside which a plugin may keep data.
        spec.has_location = True
        return spec


_FINDER = _CodeFinder()
