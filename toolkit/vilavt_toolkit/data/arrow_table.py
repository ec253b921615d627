"""Tables of the library pyarrow: parquet files, Arrow files, and folders that the library datasets saved."""

from __future__ import annotations

import importlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from vilavt_toolkit.data.fields import BadRow
from vilavt_toolkit.data.rows import Rows
from vilavt_toolkit.errors import InputError
from vilavt_toolkit.utils.text import shorten_list, shorten_text

PARQUET, ARROW = b"PAR1", b"ARROW1"
"""The first bytes of these files. Arrow streams, which datasets writes, have none of their own."""


class _Parts(Rows):
    """The rows of a table that lies in several parts; one part is in memory, or mapped, at a time."""

    def __init__(self, path: Path, columns: Sequence[str], sizes: list[int], labels: Mapping[str, list[str]]) -> None:
        super().__init__(path)
        _refuse_repeated_columns(path, columns)
        # Entry k is the number of rows up to and with part k.
        self._ends = list(accumulate(sizes))
        self._labels = labels
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def locate_row(self, index: int) -> str:
        return f"row {index} (counted from 0)"

    def read_row(self, index: int) -> Any:
        part = bisect_right(self._ends, index)
        if self._last[0] != part:
            try:
                self._last = part, self._read_part(part)
            except (ValueError, OSError) as error:
                raise BadRow(f"cannot be read ({error}). Write the file again.") from None
        (row,) = self._last[1].slice(index - (self._ends[part - 1] if part else 0), 1).to_pylist()
        # A label is a number in the file, and its name is what a model should say.
        for name, labels in self._labels.items():
            if isinstance(row.get(name), int) and 0 <= row[name] < len(labels):
                row[name] = labels[row[name]]
        return row

    def _read_part(self, part: int) -> Any:
        """Return a part as a table of pyarrow."""
        raise NotImplementedError


class ParquetTable(_Parts):
    """A parquet file. A row is read with its whole row group, the last of which is kept."""

    def __init__(self, path: Path) -> None:
        parquet = _import_pyarrow("parquet", path)
        with _explain_damage(path):
            file = parquet.ParquetFile(path)
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b'{"info": {}}'))
            labels = _read_labels(about["info"])
        super().__init__(path, file.schema_arrow.names, sizes, labels)

    def _read_part(self, part: int) -> Any:
        # Opened each time: forked workers would share the position in the file.
        return _import_pyarrow("parquet", self.path).ParquetFile(self.path).read_row_group(part)


class ArrowTable(_Parts):
    """An Arrow file, or the Arrow files of a folder that `save_to_disk` of the library datasets wrote."""

    def __init__(self, path: Path) -> None:
        self._files, labels = [path], dict[str, list[str]]()
        if path.is_dir():
            self._files, labels = _read_saved_folder(path)
        with _explain_damage(path):
            tables = [_map_arrow(file) for file in self._files]
        super().__init__(path, tables[0].column_names, [table.num_rows for table in tables], labels)

    def _read_part(self, part: int) -> Any:
        return _map_arrow(self._files[part])


def _refuse_repeated_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise InputError if two columns have one name: a row would hold the last of them without a word."""
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns are called '{shorten_text(twice, 60)}'. Rename one.")


def _map_arrow(file: Path) -> Any:
    """Return the table of an Arrow file. It is mapped, not read: a row takes no more memory than itself."""
    pyarrow = _import_pyarrow("ipc", file)
    mapped = importlib.import_module("pyarrow").memory_map(str(file))
    is_file = mapped.read(len(ARROW)) == ARROW
    mapped.seek(0)
    return (pyarrow.open_file(mapped) if is_file else pyarrow.open_stream(mapped)).read_all()


def is_saved_folder(path: Path) -> bool:
    """Return True if a folder looks like one of the library datasets; raises InputError for one of several splits."""
    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        raise InputError(f"{path} holds several splits. Give the folder of one: {shorten_list(splits, 8)}.")
    return (path / "state.json").is_file()


def _read_saved_folder(path: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """Return the Arrow files of a saved folder and the names of its labels; raises InputError."""
    with _explain_damage(path):
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        names = [str(each["filename"]) for each in state["_data_files"]]
        info = path / "dataset_info.json"
        about = json.loads(info.read_text(encoding="utf-8")) if info.is_file() else {}
        # A name from a file that others wrote must not lead out of its folder.
        if not names or any(Path(name).name != name for name in names) or state.get("_indices_data_files"):
            raise ValueError("its state.json names no plain list of files")
        return [path / name for name in names], _read_labels(about)


def _read_labels(about: Any) -> dict[str, list[str]]:
    """Return the names of the labels of every column that holds their numbers, by what datasets says of a table."""
    features = about.get("features") if isinstance(about, dict) else None
    return {
        str(name): [str(label) for label in feature["names"]]
        for name, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _import_pyarrow(module: str, path: Path) -> Any:
    # An optional dependency of 150 MB: whoever has no such files needs not install it.
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise InputError(
            f"{path} needs the library pyarrow. Run: pip install 'vilavt-toolkit[parquet]', or write JSON lines."
        ) from error


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # What pyarrow raises derives from ValueError, and json gives anything at all.
        raise InputError(f"{path} is damaged ({str(error)[:200]}). Write it again.") from None
