"""Parts of a file read as a file of their own."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vilavt_toolkit.utils.embedded import EmbeddedFile, SpanReader

CONTENT = bytes(range(200))
spans = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 200)).map(lambda ends: (min(ends), max(ends))), max_size=5
)


@given(spans, st.integers(0, 500), st.integers(-1, 500))
def test_parts_one_after_another_read_as_their_bytes(parts: list[tuple[int, int]], start: int, count: int) -> None:
    expected = b"".join(CONTENT[first:end] for first, end in parts)
    with io.BufferedReader(SpanReader(io.BytesIO(CONTENT), parts)) as file:
        assert file.read() == expected and file.seek(0, io.SEEK_END) == len(expected)
        file.seek(start)
        assert file.read(count) == expected[start:][: count if count >= 0 else None]


def test_an_embedded_file_can_be_sent_to_a_worker_and_opened_there(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    for content, expected in ((CONTENT, CONTENT), ((tmp_path / "a.tar", (10, 30)), CONTENT[10:30])):
        sent: EmbeddedFile = pickle.loads(pickle.dumps(EmbeddedFile("inside", content)))
        with sent.open() as file:
            assert file.read() == expected and str(sent) == "inside"
