"""Long comments, line ends and marks of every system, counts that do not fit, colours as fractions, uneven lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vilavt_components.sources.point_cloud import ply_binary
from vilavt_components.sources.point_cloud.source import PointCloudSource, PointCloudSourceConfig
from vilavt_toolkit.errors import InputError

PLAIN, COLOURED = PointCloudSourceConfig(features=[]), PointCloudSourceConfig()
XYZ = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
FACES = [[0, 1, 2], [0, 1, 3, 2]]


def ply(kind: str = "ascii", comments: tuple[str, ...] = (), vertices: int = 4, end: str = "\n") -> bytes:
    """Four vertices and two faces in a file that promises `vertices`."""
    lines = ["ply", f"format {kind} 1.0", *(f"comment {text}" for text in comments), f"element vertex {vertices}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += ["element face 2", "property list uchar int vertex_indices", "end_header", ""]
    if kind == "ascii":
        rows = [*XYZ.astype(int).tolist(), *([len(face), *face] for face in FACES)]
        return end.join([*lines[:-1], *(" ".join(map(str, row)) for row in rows), ""]).encode()
    order = "<" if "little" in kind else ">"
    faces = b"".join(bytes([len(face)]) + np.array(face, f"{order}i4").tobytes() for face in FACES)
    return end.join(lines).encode() + XYZ.astype(f"{order}f4").tobytes() + faces


def opened(path: Path, data: bytes, config: PointCloudSourceConfig = PLAIN) -> np.ndarray:
    path.write_bytes(data)
    return PointCloudSource.open(path, config).points


KINDS = ["ascii", "binary_little_endian", "binary_big_endian"]
COMMENTS = {
    "one": ("x",),
    "a long one": ("provenance " * 1000,),
    "many": ("x" * 200,) * 3000,
    "what ends a header": ("end_header", "a", "property float w"),
}


@pytest.mark.parametrize("comments", COMMENTS.values(), ids=COMMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_ply_with_any_comments_has_its_vertices(tmp_path: Path, kind: str, comments: tuple[str, ...]) -> None:
    assert np.array_equal(opened(tmp_path / "a.ply", ply(kind, comments)), XYZ)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ply_may_have_the_line_ends_and_the_mark_of_any_system(
    tmp_path: Path, kind: str, end: str, mark: bytes
) -> None:
    assert np.array_equal(opened(tmp_path / "a.ply", mark + ply(kind, end=end)), XYZ)


@pytest.mark.parametrize("vertices", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ply_that_promises_another_number_of_vertices_is_refused_where_faces_follow(
    tmp_path: Path, kind: str, vertices: int
) -> None:
    with pytest.raises(InputError, match=r"a\.ply.*(header promises|list here cannot|it has 4 numbers)"):
        opened(tmp_path / "a.ply", ply(kind, vertices=vertices))


@pytest.mark.parametrize("vertices", [3, 5])
def test_faces_that_look_like_vertices_are_counted(tmp_path: Path, vertices: int) -> None:
    lines = ["ply", "format ascii 1.0", f"element vertex {vertices}", *(f"property float {name}" for name in "xyzq")]
    lines += ["element face 2", "property list uchar int vertex_indices", "end_header"]
    lines += ["0 0 0 1", "1 0 0 1", "0 1 0 1", "0 0 1 1", "3 0 1 2", "3 0 1 3", ""]
    with pytest.raises(InputError, match=f"promises {vertices} vertices and 2 lines behind them"):
        opened(tmp_path / "a.ply", "\n".join(lines).encode())


def test_a_mesh_in_off_that_promises_too_few_vertices_is_refused(tmp_path: Path) -> None:
    body = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n"
    assert len(opened(tmp_path / "a.off", f"OFF\n4 2 0\n{body}".encode())) == 4
    with pytest.raises(InputError, match="promises 3 vertices and 2 lines behind them and more follow"):
        opened(tmp_path / "a.off", f"OFF\n3 2 0\n{body}".encode())


def coloured(kind: str, *colours: str) -> bytes:
    lines = ["ply", "format ascii 1.0", "element vertex 2", *(f"property float {axis}" for axis in "xyz")]
    lines += [f"property {kind} {name}" for name in ("red", "green", "blue")]
    return "\n".join([*lines, "end_header", *(f"{k} 0 0 {rgb}" for k, rgb in enumerate(colours)), ""]).encode()


@pytest.mark.parametrize(
    ("kind", "colours", "expected"),
    [
        ("uchar", ("0.9 0 0", "0 0.5 1"), [[0.9, 0, 0], [0, 0.5, 1]]),
        ("uint8", ("0.25 0 0", "0 0 0"), [[0.25, 0, 0], [0, 0, 0]]),
        ("uchar", ("127.5 0 0", "0 255 0"), [[0.5, 0, 0], [0, 1, 0]]),
        ("ushort", ("32767.5 0 0", "0 65535 0"), [[0.5, 0, 0], [0, 1, 0]]),
        ("uchar", ("51.0 0 0", "0 1 0"), [[0.2, 0, 0], [0, 1 / 255, 0]]),
        ("float", ("0.9 0 0", "0 1 0"), [[0.9, 0, 0], [0, 1, 0]]),
    ],
)
def test_fractions_are_fractions_whatever_type_is_declared(
    tmp_path: Path, kind: str, colours: tuple[str, str], expected: list[list[float]]
) -> None:
    assert np.allclose(opened(tmp_path / "a.ply", coloured(kind, *colours), COLOURED)[:, 3:], expected)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"property float green", b"property uchar green", "its colours red, green, blue are of different types"),
        (b"end_header", b"element vertex 2\nproperty float x\nend_header", "declares the element vertex twice"),
        (b"format ascii 1.0", b"format ascii 1.0\nformat binary_big_endian 1.0", "line 3: .* names its format twice"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    data = coloured("float", "0.9 0 0", "0 1 0")
    with pytest.raises(InputError, match=words):
        opened(tmp_path / "a.ply", data.replace(old, new), COLOURED)


# --- Lists of unequal lengths ---------------------------------------------------------------------------


def uneven(faces: int, order: str = "<") -> bytes:
    pair = b"\x03" + np.arange(3, dtype=f"{order}i4").tobytes() + b"\x04" + np.arange(4, dtype=f"{order}i4").tobytes()
    kind = "binary_little_endian" if order == "<" else "binary_big_endian"
    head = ply(kind).split(b"end_header\n")[0].replace(b"face 2", f"face {faces}".encode()) + b"end_header\n"
    return head + XYZ.astype(f"{order}f4").tobytes() + pair * (faces // 2)


@pytest.mark.parametrize("order", ["<", ">"])
def test_uneven_faces_are_walked_through_and_of_very_many_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    data = uneven(1000, order)
    assert np.array_equal(opened(tmp_path / "a.ply", data), XYZ)
    with pytest.raises(InputError, match="the data go on after them"):
        opened(tmp_path / "a.ply", data + b"\3\1\1\1")
    walked = []
    real = ply_binary.BinaryReader._walk
    monkeypatch.setattr(
        ply_binary.BinaryReader, "_walk", lambda self, *given: walked.append(given[1]) or real(self, *given)
    )
    monkeypatch.setattr(ply_binary, "_MAX_WALKED", 100)
    assert np.array_equal(opened(tmp_path / "a.ply", data + b"\3\1\1\1"), XYZ)
    assert max(walked) == 100
    wrong = data.replace(b"element vertex 4", b"element vertex 3")
    with pytest.raises(InputError, match=r"a\.ply"):
        opened(tmp_path / "a.ply", wrong)


def test_very_many_uneven_rows_that_must_be_passed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "ply\nformat binary_little_endian 1.0\nelement strip 6\nproperty list uchar uchar ends\nelement vertex 2\n"
    head += "property float x\nproperty list uchar uchar tags\nproperty float y\nproperty float z\nend_header\n"
    rows = b"\1\0\2\0\0" * 3 + b"".join(
        np.float32(x).tobytes() + tags + np.array([x, 0], "<f4").tobytes() for x, tags in ((1, b"\0"), (2, b"\1\7"))
    )
    assert opened(tmp_path / "a.ply", head.encode() + rows).tolist() == [[1, 1, 0], [2, 2, 0]]
    for limit, what in ((1, "6 rows of 'strip'"), (5, "6 rows of 'strip'")):
        monkeypatch.setattr(ply_binary, "_MAX_WALKED", limit)
        with pytest.raises(InputError, match=f"{what} with lists of unequal lengths, and at most {limit}"):
            opened(tmp_path / "a.ply", head.encode() + rows)


# --- Plain text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 9_999, 10_000, 10_001, 30_000, 2_000_000])
@pytest.mark.parametrize("mark", ["#", "# x", "//"])
def test_a_comment_of_any_length_costs_no_point(tmp_path: Path, mark: str, length: int) -> None:
    rows = "0 0 0\n1 2 3\n4 5 6\n"
    for text in (f"{mark}{'y' * length}\n{rows}", f"{mark}{'y' * length}\n3\n{rows}"):
        assert len(opened(tmp_path / "a.xyz", text.encode())) == 3
    behind = f"0 0 0\n1 2 3 #{'y' * length}\n4 5 6\n"
    assert len(opened(tmp_path / "a.xyz", behind.encode())) == 3
    with pytest.raises(InputError, match="line 5: 'x' is no number"):
        opened(tmp_path / "a.xyz", f"#{'y' * length}\n{rows}x 1 1\n".encode())


def test_thousands_of_comments_before_the_points_are_no_end_of_them(tmp_path: Path) -> None:
    assert len(opened(tmp_path / "a.xyz", b"# note\n" * 5000 + b"0 0 0\n1 2 3\n")) == 2


def test_a_line_without_end_is_no_row(tmp_path: Path) -> None:
    for text in ("1 " * 600_000, "0 0 0\n" + "1 " * 600_000):
        with pytest.raises(InputError, match=r"line \d: it has more than 1,048,576 letters"):
            opened(tmp_path / "a.xyz", text.encode())


# --- npy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3",
        b"{'a': (((",
        b"'''",
        b"(" * 5000,
        b"{'descr': '<f9'}",
        b"\x00",
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_damaged_header_of_an_array_is_one_sentence(tmp_path: Path, header: bytes, version: int) -> None:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    with pytest.raises(InputError, match=r"is no whole \.npy file of numbers") as error:
        opened(tmp_path / "a.npy", b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(100))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(tmp_path))
