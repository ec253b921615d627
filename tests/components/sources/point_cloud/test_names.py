"""Columns of point files are what their names say, and names that contradict their place are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vilavt_components.sources.point_cloud.source import PointCloudSource, PointCloudSourceConfig
from vilavt_toolkit.errors import InputError

COLOURED = PointCloudSourceConfig()
PLAIN = PointCloudSourceConfig(features=[])
ALL = PointCloudSourceConfig(features=["colour", "normal"])
VALUES = {
    "x": [0, 1, 2], "y": [3, 4, 5], "z": [6, 7, 9], "r": [255, 0, 51], "g": [0, 51, 255], "b": [51, 255, 0],
    "nx": [1, 0, 0], "ny": [0, 1, 0], "nz": [0, 0, 1], "intensity": [5, 5, 5], "time": [1, 2, 3],
}  # fmt: skip
XYZ = np.array([VALUES[name] for name in "xyz"]).T
RGB = np.array([VALUES[name] for name in "rgb"]).T / 255
NORMAL = np.eye(3)


def table(names: list[str]) -> np.ndarray:
    return np.array([VALUES[name] for name in names]).T


def as_csv(path: Path, names: list[str], shown: list[str], mark: str = ",", start: str = "") -> Path:
    lines = [start + mark.join(shown), *(mark.join(str(value) for value in row) for row in table(names))]
    path.write_text("\n".join(lines))
    return path


def as_npy(path: Path, names: list[str], shown: list[str]) -> Path:
    kinds = [(new, "u1" if old in "rgb" else "f4") for old, new in zip(names, shown, strict=True)]
    array = np.empty(3, dtype=kinds)
    for old, new in zip(names, shown, strict=True):
        array[new] = VALUES[old]
    np.save(path.with_suffix(".npy"), array)
    return path.with_suffix(".npy")


def as_ply(path: Path, names: list[str], shown: list[str]) -> Path:
    lines = ["ply", "format ascii 1.0", "element vertex 3"]
    lines += [f"property {'uchar' if old in 'rgb' else 'float'} {new}" for old, new in zip(names, shown, strict=True)]
    lines += ["end_header", *(" ".join(str(value) for value in row) for row in table(names)), ""]
    path = path.with_suffix(".ply")
    path.write_text("\n".join(lines))
    return path


ORDERS = [
    ["r", "g", "b", "x", "y", "z"],
    ["x", "y", "z", "intensity", "r", "g", "b"],
    ["z", "y", "x", "b", "g", "r"],
    ["nx", "ny", "nz", "x", "y", "z", "time", "r", "g", "b"],
    ["time", "x", "r", "y", "g", "z", "b"],
]


@pytest.mark.parametrize("names", ORDERS, ids=" ".join)
@pytest.mark.parametrize("write", [as_csv, as_npy, as_ply])
def test_columns_are_read_by_their_names_in_every_format(tmp_path: Path, write: object, names: list[str]) -> None:
    for shown in (names, [name.upper() for name in names]):
        path = write(tmp_path / "a.csv", names, shown)  # type: ignore[operator]
        points = PointCloudSource.open(path, ALL if "nx" in names else COLOURED).points
        assert np.array_equal(points[:, :3], XYZ) and np.allclose(points[:, 3:6], RGB)
        assert points.shape[1] == 6 or np.array_equal(points[:, 6:], NORMAL)


@pytest.mark.parametrize("mark", [",", ";", " ", "\t", ", "])
@pytest.mark.parametrize("start", ["", "# ", "//"])
def test_names_may_stand_in_a_comment_and_have_quotes_and_units(tmp_path: Path, mark: str, start: str) -> None:
    names = ["r", "g", "b", "x", "y", "z"]
    shown = ['"Red"', '"Green"', '"Blue"', '"X [m]"' if mark[0] in ",;\t" else "X", '"Y"', "Z(m)"]
    if mark == "\t":
        shown[3] = "X"
    path = as_csv(tmp_path / "a.csv", names, shown, mark, start)
    assert np.array_equal(PointCloudSource.open(path, PLAIN).points, XYZ)


@pytest.mark.parametrize("names", [["x", "y", "z", "intensity", "time", "time"], ["x", "y", "z", "r", "g", "time"]])
def test_what_is_called_no_colour_is_none(tmp_path: Path, names: list[str]) -> None:
    shown = [*names[:5], "return_number" if names[5] == "time" and names[4] == "time" else names[5]]
    with pytest.raises(InputError, match="has no colours, only coordinates"):
        PointCloudSource.open(as_csv(tmp_path / "a.csv", names, shown), COLOURED)
    assert np.array_equal(PointCloudSource.open(tmp_path / "a.csv", PLAIN).points, XYZ)


@pytest.mark.parametrize(
    ("names", "shown", "columns", "words"),
    [
        ("xyzrgb", "u v w r g b", None, "names its columns u, v, w, r, g, b, without x, y and z"),
        ("xyzrgb", "a b c d e f", None, "calls them a, b, c, d, e, f"),
        ("xyzrgb", "x y z r g", None, "line 1: it names 5 columns and the rows have 6"),
        ("xyzrgb", "x x y z g b", None, "two columns called 'x'"),
        ("xyzrgb", "r g b x y z", ["colour"], "model.source.columns says otherwise"),
        ("xyzrgb", "x y z nx ny nz", ["colour"], "model.source.columns says otherwise"),
        ("xyzrgb", "x y z b g r", ["colour"], "model.source.columns says otherwise"),
        ("xyz", "r g b", None, "names its columns r, g, b, without x, y and z"),
    ],
)
def test_names_that_contradict_are_refused(
    tmp_path: Path, names: str, shown: str, columns: list[str] | None, words: str
) -> None:
    path = as_csv(tmp_path / "a.csv", list(names), shown.split())
    with pytest.raises(InputError, match=words):
        PointCloudSource.open(path, PointCloudSourceConfig(features=[], columns=columns))  # type: ignore[arg-type]


def test_names_that_agree_with_the_setting_or_say_nothing_are_no_trouble(tmp_path: Path) -> None:
    names = ["x", "y", "z", "intensity", "r", "g", "b"]
    setting = PointCloudSourceConfig(columns=["ignored", "colour"])
    for shown in (names, ["x", "y", "z", "i", "c1", "c2", "c3"], list("abcdefg"), ["a", "title"]):
        points = PointCloudSource.open(as_csv(tmp_path / "a.csv", names, shown), setting).points
        assert np.array_equal(points[:, :3], XYZ) and np.allclose(points[:, 3:], RGB)
    assert np.array_equal(
        PointCloudSource.open(as_csv(tmp_path / "a.csv", names[:3], ["a", "b", "c"]), PLAIN).points, XYZ
    )
