"""Point clouds of every format are read right, whatever else a file holds; bad ones are refused in a sentence."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vilavt_components.sources.point_cloud.source import PointCloudSource, PointCloudSourceConfig
from vilavt_toolkit.errors import InputError

PLAIN = PointCloudSourceConfig(features=[])
COLOURED = PointCloudSourceConfig()
ALL = PointCloudSourceConfig(features=["colour", "normal"])
DTYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}

coordinates = hnp.arrays(
    np.float32,
    st.tuples(st.integers(2, 6), st.just(3)),
    elements=st.floats(-1000, 1000, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x),
).filter(lambda xyz: np.ptp(xyz, axis=0).max() > 1)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, config: PointCloudSourceConfig = PLAIN) -> np.ndarray:
    """The points of a file, with coordinates as they are there."""
    cloud = PointCloudSource.open(path, config)
    return np.concatenate([cloud.xyz, cloud.points[:, 3:]], axis=1)


def refusal(path: Path, config: PointCloudSourceConfig = PLAIN) -> str:
    with pytest.raises(InputError) as caught:
        PointCloudSource.open(path, config)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    return message


def ply(
    path: Path,
    xyz: np.ndarray,
    kind: str,
    colours: np.ndarray | None = None,
    before: int = 0,
    lists: tuple[int, ...] = (),
    newline: str = "\n",
) -> Path:
    """Write a PLY: an element with lists before the vertices, lists in them, and faces after them."""
    sign = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[kind]
    lines = ["ply", f"format {kind} 1.0", "comment made by a test", "obj_info nothing"]
    if before:
        lines += [f"element strip {before}", "property list uchar short ends", "property double weight"]
    lines += [f"element vertex {len(xyz)}", "property float y", "property float x", "property short mood"]
    lines += ["property list int uchar tags"] if lists else []
    lines += ["property float z"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")] if colours is not None else []
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    body = io.BytesIO()

    def put(row: list[tuple[str, float]]) -> None:
        if sign:
            body.write(b"".join(np.array(value, dtype=f"{sign}{DTYPES.get(t, t)}").tobytes() for t, value in row))
        else:
            body.write((" ".join(str(value) for _, value in row) + newline).encode())

    for number in range(before):
        put([("u1", number % 3), *[("i2", 7)] * (number % 3), ("f8", 0.5)])
    for number, (x, y, z) in enumerate(xyz.tolist()):
        row = [("f4", y), ("f4", x), ("i2", -3)]
        if lists:
            length = lists[number % len(lists)]
            row += [("i4", length), *[("u1", 1)] * length]
        row += [("f4", z)]
        if colours is not None:
            row += [("u1", int(value)) for value in colours[number]]
        put(row)
    put([("u1", 3), ("i4", 0), ("i4", 1), ("i4", 1)])
    path.write_bytes((newline.join(lines) + newline).encode() + body.getvalue())
    return path


@unhurried
@given(
    xyz=coordinates,
    kind=st.sampled_from(["ascii", "binary_little_endian", "binary_big_endian"]),
    before=st.integers(0, 4),
    lists=st.sampled_from([(), (2,), (0, 3, 1)]),
    newline=st.sampled_from(["\n", "\r\n"]),
    coloured=st.booleans(),
)
def test_a_ply_of_any_kind_reads_as_it_was_written(
    tmp_path: Path, xyz: np.ndarray, kind: str, before: int, lists: tuple[int, ...], newline: str, coloured: bool
) -> None:
    colours = (np.arange(3 * len(xyz)).reshape(-1, 3) * 11 % 256).astype(np.uint8) if coloured else None
    path = ply(tmp_path / "a.ply", xyz, kind, colours, before, lists, newline)
    points = read(path, COLOURED if coloured else PLAIN)
    assert np.array_equal(points[:, :3], xyz)
    if colours is not None:
        assert np.allclose(points[:, 3:], colours / 255)


@unhurried
@given(xyz=coordinates, mark=st.sampled_from([" ", "\t", ", ", ";", "  "]), header=st.booleans())
def test_a_text_table_reads_as_it_was_written(tmp_path: Path, xyz: np.ndarray, mark: str, header: bool) -> None:
    lines = ["# a comment", "", *(["x" + mark + "y" + mark + "z"] if header else [])]
    lines += [mark.join(str(value) for value in row) + "  # here" for row in xyz.tolist()]
    for suffix in ("xyz", "txt", "csv"):
        (tmp_path / f"a.{suffix}").write_text("\n".join(lines))
        assert np.array_equal(read(tmp_path / f"a.{suffix}"), xyz)


@unhurried
@given(xyz=coordinates, kind=st.sampled_from(["f2", "f4", "f8", ">f8", "i4"]))
def test_an_array_reads_as_its_32_bit_numbers_from_a_file_as_from_memory(
    tmp_path: Path, xyz: np.ndarray, kind: str
) -> None:
    array = np.asfortranarray(xyz.astype(kind))
    longest, farthest = float(np.ptp(array, axis=0).max()), array.dtype.type(abs(array).max())
    # A cloud whose numbers cannot tell its points apart is refused, which 16 bits often cannot.
    assume(longest > 0 and (array.dtype.kind != "f" or np.spacing(farthest) <= 1e-3 * longest))
    np.save(tmp_path / "a.npy", array)
    expected = array.astype(np.float32)
    assert np.array_equal(read(tmp_path / "a.npy"), expected)
    cloud = PointCloudSource.open(array, PLAIN)
    given = cloud.points
    assert np.array_equal(cloud.xyz, expected) and given.flags.c_contiguous and given.dtype == np.float32


OFF = "0 0 0{}\n1 0 0{}\n0 2 0{}\n3 0 1 2\n"


@pytest.mark.parametrize("start", ["OFF\n3 1 0\n", "OFF 3 1 0\n", "OFF3 1 0\n", "# old\nOFF\n# counts\n3 1 0\n\n"])
def test_vertices_of_an_off_file_are_its_points(tmp_path: Path, start: str) -> None:
    (tmp_path / "a.off").write_text(start + OFF.format("", "", ""))
    assert read(tmp_path / "a.off").tolist() == [[0, 0, 0], [1, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize(
    ("word", "row"),
    [("COFF", " 255 0 51 255"), ("COFF", " 1.0 0.0 0.2 1.0"), ("CNOFF", " 0 0 1 255 0 51 255"), ("OFF", " 255 0 51")],
)
def test_colours_and_normals_of_an_off_file_are_features(tmp_path: Path, word: str, row: str) -> None:
    (tmp_path / "a.off").write_text(f"{word}\n3 1 0\n" + OFF.format(row, row, row))
    config = ALL if "N" in word else COLOURED
    points = read(tmp_path / "a.off", config)
    assert np.allclose(points[:, 3:6], [1, 0, 0.2])
    assert points.shape[1] == 6 or points[0, 6:].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], np.uint16), [0, 0.2, 1]),
        (np.array([0, 0.2, 1]), [0, 0.2, 1]),
        (np.array([0, 51, 255.0]), [0, 0.2, 1]),
        (np.array([0, 13107, 65535], np.int32), [0, 0.2, 1]),
    ],
)
def test_colours_of_every_usual_range_become_0_to_1(tmp_path: Path, values: np.ndarray, read_as: list[float]) -> None:
    table = np.concatenate([np.arange(6).reshape(2, 3), np.tile(values, (2, 1))], axis=1).astype(values.dtype)
    if values.dtype.kind == "f" or values.dtype.itemsize == 4:
        np.save(tmp_path / "a.npy", table)
        assert np.allclose(read(tmp_path / "a.npy", COLOURED)[0, 3:], read_as)
    assert np.allclose(PointCloudSource.open(table, COLOURED).points[0, 3:], read_as)


def test_columns_of_a_table_are_what_the_setting_says(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.txt", [[0, 0, 0, 9, -1, 0, 0], [1, 2, 3, 9, 0, 0, 1]])
    config = PointCloudSourceConfig(features=["normal"], columns=["ignored", "normal"])
    assert read(tmp_path / "a.txt", config).tolist() == [[0, 0, 0, -1, 0, 0], [1, 2, 3, 0, 0, 1]]


def test_a_line_that_counts_the_points_is_none_and_must_be_right(tmp_path: Path) -> None:
    path = tmp_path / "a.pts"
    path.write_text("2\n0 0 0\n1 1 1\n")
    assert len(read(path)) == 2
    path.write_text("3\n0 0 0\n1 1 1\n")
    assert "promises 3 points and it has 2" in refusal(path)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = rng.random((50, 9)).astype(np.float32)
    table[:, 3:6] = np.rint(table[:, 3:6] * 255) / 255
    source = PointCloudSource.open(table, PointCloudSourceConfig(features=["normal", "colour"]))
    source.save(tmp_path / "a.ply")
    again = PointCloudSource.open(tmp_path / "a.ply", PointCloudSourceConfig(features=["normal", "colour"]))
    assert np.allclose(again.points, source.points, atol=1e-6) and again.extent == source.extent


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


HEADER = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
POINT = struct.pack("<3f", 1, 2, 3)
LISTS = HEADER.replace("end_header", "property list int uchar tags\nend_header")
BAD = {
    "a.ply": [
        (HEADER.format("ascii", 5) + "0 0 0\n1 1 1\n", r"promises 5 vertices and the file has 2 lines"),
        (HEADER.format("ascii", 2) + "0 0 0\n1 1 x\n", r"line 9: 'x' is no number"),
        (HEADER.format("ascii", 2) + "0 0 0\n1 1\n", r"line 9: it has 2 numbers and those before it 3"),
        (HEADER.format("ascii", 2) + "0 0\n1 1\n", r"line 8: it has 2 numbers and the header names 3"),
        (HEADER.format("ascii", 2) + "0 0 0\n1 nan 1\n", r"line 9: a point is not finite"),
        (HEADER.format("ascii", 0), "has no points"),
        (HEADER.format("binary_little_endian", 3).encode() + 2 * POINT + b"1234", r"at byte \d+, in row 2"),
        (HEADER.format("binary_little_endian", 10**12).encode() + POINT, "too many points"),
        (HEADER.format("binary_little_endian", 2 * 10**7).encode() + POINT, "promises 20,000,000 rows of 'vertex'"),
        (
            HEADER.format("binary_little_endian", 2).encode() + POINT + struct.pack("<3f", 0, np.nan, 0),
            r"byte \d+: a point is not finite",
        ),
        (HEADER.format("binary_middle_endian", 1), "line 2: format 'binary_middle_endian 1.0' is unknown"),
        (HEADER.format("ascii", "²"), r"line 3: .* is no valid declaration"),
        (HEADER.format("ascii", 2).replace("float z", "float x"), "line 6: 'property float x' repeats a name"),
        (HEADER.format("ascii", 2).replace("float z", "quad z"), "line 6: 'property quad z' is no valid declaration"),
        (
            HEADER.format("ascii", 2).replace("float z", "float w"),
            "columns x, y, w, without x, y and z. Call",
        ),
        (HEADER.format("ascii", 2).replace("vertex", "corner"), "has no vertices, only corner"),
        (HEADER.format("ascii", 2).replace("end_header\n", ""), "has no end"),
        (
            LISTS.replace("list int", "list float").format("binary_little_endian", 1),
            "line 7: .* is no valid declaration",
        ),
        ("plx\n", "does not begin with 'ply'"),
        ("", "is empty"),
        (HEADER.format("ascii", 2) + "0 0 0\n1 1 1\n\n2 2 2\n", r"line 11: .* promises 2 vertices and more follow"),
        (LISTS.format("ascii", 2) + "0 0 0 0\n1 1 1 0\n2 2 2 0\n", r"line 11: .* promises 2 vertices and more follow"),
        (LISTS.format("ascii", 1) + f"0 0 0 {'9' * 5000}\n", "line 9: a count has 5,000 digits"),
        (HEADER.format("binary_little_endian", 1).encode() + 2 * POINT, "promises 1 rows of 'vertex' .* at byte 127"),
        (HEADER.format("ascii", 9).encode() + 9 * POINT, "line 8: it is not text. Get the file again"),
    ],
    "a.off": [
        ("OFF\n4 0 0\n0 0 0\n1 1 1\n", "promises 4 vertices and the file has 2 lines"),
        ("OFF\nmany\n", "line 2: the number of vertices"),
        ("COFF\n2 0 0\n0 0 0\n1 1 1\n", "has 3 numbers for each, not 6"),
        ("OFF BINARY\n", "kind of OFF that cannot be read"),
        ("4OFF\n1 0 0\n", "kind of OFF that cannot be read"),
        ("0 0 0\n", "does not begin with OFF"),
        ("OFF\n2 0 0\n0 0 0\n1 1 1\n2 2 2\n", "line 5: the header promises 2 vertices and more follow"),
        (f"OFF\n{'9' * 5000} 0 0\n", "line 2: a count has 5,000 digits"),
        ("OFF\n99999999999 0 0\n", "too many points"),
        (b"OFF\n\x00\x00", "is not text"),
    ],
    "a.xyz": [
        ("0 0 0\n\n1 1 one\n", "line 3: 'one' is no number"),
        ("0 0 0\n1 1 1 1\n", "line 2: it has 4 numbers and those before it 3"),
        ("0 0 0\n1 1 inf\n", "line 2: a point is not finite .* set model.source.invalid to drop"),
        ("0 0 0\n1 1 1e60\n", "line 2: a point is not finite"),
        ("0 0\n1 1\n", "has 2 columns, and a point needs three, x, y and z. Give another cloud"),
        ("0 0 0\n1 1 1_0\n", "line 2: '1_0' is no number"),
        ("1d0 2d0 3d0\n4 5 6\n7 8 9\n", "line 1: '1d0' is no number"),
        ("0x1,0x2,0x3\n4,5,6\n7,8,9\n", "line 1: '0x1' is no number"),
        ("\u0661 \u0662 \u0663\n4 5 6\n7 8 9\n", "line 1: .* is no number"),
        ("\u22121 \u22122 \u22123\n4 5 6\n7 8 9\n", "line 1: .* is no number"),
        ("\u200b1 \u200b2 \u200b3\n4 5 6\n7 8 9\n", "line 1: .* is no number"),
        (f"{'9' * 5000}\n0 0 0\n1 1 1\n", "line 1: a count has 5,000 digits"),
        ("0 0 0 7\n1 1 1 7\n", "has 4 columns .* model.source.columns"),
        ("# nothing\n", "has no points"),
        ("1 2 3\n", "has one point"),
        ("1 2 3\n" * 5, "5 points, all in one place"),
        ("0 0 0\n1e-30 0 0\n", "is 1e-30 long, which no cloud is"),
        ("0 0 0\n1e30 0 0\n", r"is 1e\+30 long, which no cloud is"),
        ("4e18 5 0\n4000000000000001024 5 0\n", "its 64-bit numbers cannot tell its points apart"),
        (b"\x00\x01\x02", "is not text"),
    ],
    "a.npy": [
        (b"not an array", "is no whole .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "is no whole .npy file"),
    ],
    "a.obj": [("v 0 0 0\n", "is no point cloud by its suffix. Save it as one of .npy")],
}


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("of", [lambda n: n / 4, np.sqrt], ids=["short fractions", "long fractions"])
def test_numbers_in_the_wrong_byte_order_are_no_cloud(tmp_path: Path, kind: str, of: Callable) -> None:
    values = of(np.arange(1, 301)).astype(kind).reshape(100, 3)
    np.save(tmp_path / "a.npy", values)
    right = (tmp_path / "a.npy").read_bytes()
    assert len(PointCloudSource.open(tmp_path / "a.npy", PointCloudSourceConfig(features=[])).points) == 100
    wrong = text(tmp_path / "b.npy", right.replace(f"<{kind}".encode(), f">{kind}".encode()))
    assert re.search("long, which no cloud is|not finite|cannot tell its points", refusal(wrong))


def test_what_follows_an_array_in_its_file_is_not_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    with file.open("wb") as stream:
        np.save(stream, np.eye(3))
        np.save(stream, np.eye(3))
    assert "200 bytes follow them. Save one array in a file" in refusal(file)


def test_colours_in_fields_of_different_types_are_refused(tmp_path: Path) -> None:
    fields = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u2"), ("blue", "u1")]
    np.save(tmp_path / "a.npy", np.zeros(4, dtype=fields))
    assert "its colours are fields of different types" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize(("name", "content", "words"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_a_bad_file_is_refused_in_a_sentence_that_says_where(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    message = refusal(text(tmp_path / name, content))
    assert re.search(words, message), message


@pytest.mark.parametrize("lists", [(), (2,), (0, 1)])
@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_blank_lines_and_elements_behind_the_vertices_are_nothing_wrong(
    tmp_path: Path, kind: str, lists: tuple[int, ...]
) -> None:
    xyz = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole = ply(tmp_path / "a.ply", xyz, kind, lists=lists).read_bytes()
    assert np.array_equal(read(text(tmp_path / "a.ply", whole + b"\n\n")), xyz)
    alone = whole.replace(b"element face 1\nproperty list uchar int vertex_indices\n", b"")
    alone = alone[: -len(b"3 0 1 1\n")] if kind == "ascii" else alone[:-13]
    assert np.array_equal(read(text(tmp_path / "b.ply", alone + b"\n \r\n")), xyz)


def test_a_text_table_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for start in ("", "x,y,z\n", "2\n", "# points\n"):
        text(tmp_path / "a.csv", "\ufeff" + start + "0,0,0\n1,2,3\n")
        assert read(tmp_path / "a.csv").tolist() == [[0, 0, 0], [1, 2, 3]]


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_finite_are_refused_without_a_word_of_numpys(tmp_path: Path) -> None:
    assert "not finite" in refusal(text(tmp_path / "a.xyz", "0 0 inf\n1 1 -inf\n"))
    refusal(text(tmp_path / "b.txt", "0 0 0 inf 0 0\n1 1 1 -inf 0 0\n"), COLOURED)
    numbers = np.random.default_rng(0).integers(0, 2**63, (500, 3), dtype=np.uint64)  # as of the wrong byte order
    header = HEADER.replace("float", "double").format("binary_big_endian", len(numbers)).encode()
    assert "not finite" in refusal(text(tmp_path / "a.ply", header + numbers.tobytes()))


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.ply").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.ply")
    assert "does not exist" in refusal(tmp_path / "missing.ply")
    with pytest.raises(InputError, match="must be a path or an array"):
        PointCloudSource.open([[0, 0, 0]], PLAIN)


def test_nothing_is_unpickled_and_no_header_is_believed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}, None], dtype=object), allow_pickle=True)
    assert "no whole .npy file" in refusal(tmp_path / "a.npy")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 9)})
    text(tmp_path / "b.npy", header.getvalue() + bytes(800))
    tracemalloc.start()
    refusal(tmp_path / "b.npy")
    for lying in BAD["a.ply"][7:9]:
        refusal(text(tmp_path / "a.ply", lying[0]))
    refusal(text(tmp_path / "a.off", "OFF\n19000000 0 0\n0 0 0\n1 1 1\n"))
    refusal(text(tmp_path / "a.xyz", 2 * ("0 " * 2000 + "\n")))
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    np.save(tmp_path / "c.npy", np.zeros((2, 3), dtype=complex))
    assert "holds complex128 [2, 3]" in refusal(tmp_path / "c.npy")


def test_points_that_are_not_finite_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    text(tmp_path / "a.xyz", "0 0 0\nnan nan nan\n1 1 1\n")
    assert read(tmp_path / "a.xyz", PointCloudSourceConfig(features=[], invalid="drop")).tolist() == [
        [0, 0, 0],
        [1, 1, 1],
    ]
    text(tmp_path / "a.xyz", "nan nan nan\n" * 3)
    assert "has no points" in refusal(tmp_path / "a.xyz", PointCloudSourceConfig(features=[], invalid="drop"))


def test_features_that_a_file_lacks_are_named_with_what_it_has(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.xyz", np.eye(3))
    message = refusal(tmp_path / "a.xyz", COLOURED)
    assert "has no colours, only coordinates, and model.source.features asks for them. Give a cloud" in message
    assert "set it to [] before training" in message, "a trained model asks for what it was trained with"
    ply(tmp_path / "a.ply", np.eye(3, dtype=np.float32), "ascii", np.zeros((3, 3), np.uint8))
    message = refusal(tmp_path / "a.ply", ALL)
    assert "has no normals, only coordinates and colour" in message and "set it to [colour]" in message


def test_normals_taken_for_colours_are_noticed() -> None:
    table = np.concatenate([np.eye(3), -np.eye(3)], axis=1)
    with pytest.raises(InputError, match=r"colours from -1 to .*name them so in model\.source\.columns"):
        PointCloudSource.open(table, COLOURED)


def test_more_points_than_allowed_are_not_read(tmp_path: Path) -> None:
    few = PointCloudSourceConfig(features=[], max_points=3)
    np.savetxt(tmp_path / "a.xyz", np.arange(12).reshape(4, 3))
    np.save(tmp_path / "a.npy", np.arange(12).reshape(4, 3))
    ply(tmp_path / "a.ply", np.arange(12).reshape(4, 3), "ascii")
    for name in ("a.xyz", "a.npy", "a.ply"):
        assert "at most 3 are read" in refusal(tmp_path / name, few)
    with pytest.raises(InputError, match="at most 3 are taken"):
        PointCloudSource.open(np.arange(12.0).reshape(4, 3), few)


@unhurried
@given(st.binary(max_size=300), st.sampled_from(["ply", "off", "xyz", "npy"]))
def test_no_bytes_whatever_do_anything_but_read_or_be_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    start = {"ply": b"ply\nformat binary_little_endian 1.0\n", "off": b"OFF\n", "xyz": b"", "npy": b"\x93NUMPY\x01\x00"}
    for whole in (content, start[suffix] + content):
        path = text(tmp_path / f"a.{suffix}", whole)
        try:
            assert np.isfinite(PointCloudSource.open(path, PLAIN).points).all()
        except InputError as error:
            assert str(path) in str(error)


@unhurried
@given(st.data(), st.sampled_from(["ascii", "binary_little_endian", "binary_big_endian"]))
def test_a_ply_cut_or_changed_anywhere_reads_or_is_refused(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    xyz = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole = bytearray(ply(tmp_path / "a.ply", xyz, kind, before=2, lists=(1, 2)).read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[place:]
    else:
        whole[place] = data.draw(st.integers(0, 255))
    path = text(tmp_path / "a.ply", bytes(whole))
    try:
        PointCloudSource.open(path, PLAIN)
    except InputError as error:
        assert str(path) in str(error)


def test_a_million_points_are_read_at_once(tmp_path: Path) -> None:
    """By numpy, not in a loop: a loop over them would take a hundred times as long as this allows."""
    import time

    xyz = np.random.default_rng(0).random((1_000_000, 3), dtype=np.float32)
    start = HEADER.format("binary_little_endian", len(xyz)).encode()
    text(tmp_path / "a.ply", start + xyz.tobytes())
    begun = time.process_time()
    assert np.array_equal(read(tmp_path / "a.ply"), xyz)
    assert time.process_time() - begun < 2


def test_a_binary_ply_that_promises_too_few_vertices_is_refused_where_faces_follow_too(tmp_path):
    from vilavt_components.sources.point_cloud.ply import read_ply

    def ply(promised):
        header = (
            f"ply\nformat binary_little_endian 1.0\nelement vertex {promised}\nproperty float x\nproperty float y\n"
            "property float z\nelement face 2\nproperty list uchar int vertex_indices\nend_header\n"
        )
        faces = b"".join(bytes([3]) + np.array([0, 1, 2], "<i4").tobytes() for _ in range(2))
        path = tmp_path / f"{promised}.ply"
        path.write_bytes(header.encode() + np.zeros((4, 3), "<f4").tobytes() + faces)
        return path

    assert len(read_ply(ply(4), 100).xyz) == 4
    with pytest.raises(InputError, match=r"2\.ply"):
        read_ply(ply(2), 100)
