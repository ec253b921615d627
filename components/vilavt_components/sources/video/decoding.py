"""Frames of a video file, through PyAV: found by their packets' times, decoded on demand."""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vilavt_components.sources.image import Pixels
from vilavt_components.sources.video.frame_selection import end_of
from vilavt_components.sources.video.frames import Frames, check_size
from vilavt_toolkit.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

_NO_VIDEOS = {"tty": "text", "hls": "a playlist", "concat": "a playlist", "dash": "a playlist", "sdp": "a playlist"}
_TIMED = ("matroska,webm", "flv")
"""Formats whose header says how long they last."""
_USUAL_RATE = 25
_ENOUGH = 0.9
"""Share of the duration of a whole file from which it is not cut: its sound may last longer than its pictures."""
_INTERVALS = 1.5
"""Of the longest intervals between two frames, how many may be missing where the pictures' own duration is known."""
_TS_SYNC, _TS_PACKETS = 0x47, ((0, 188), (4, 192), (0, 204))
"""The byte that the packets of an MPEG transport stream have in common, its place and their length."""


class _Packet(NamedTuple):
    """What a frame comes in."""

    stamp: int | None
    """Its time, in the stream's unit."""
    key: bool
    """Whether decoding can begin here."""
    corrupt: bool
    hidden: bool
    """Whether it is only decoded for the sake of others, as in front of where a film was trimmed."""


class FileFrames(Frames):
    """The frames of a file's first video stream, without those that share their time with another.

    Opening reads the whole file once, without decoding. Where packets bear no times (a raw stream), frames follow each
    other at the stream's rate and are found by counting from its start.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.name, self._path = str(path), path
        with _opened(path) as (container, stream):
            context = stream.codec_context
            check_size(context.width, context.height, self.name, max_pixels)
            packets, why = _packets(container, stream, path)
            shown = [packet for packet in packets if not packet.hidden]
            unit, rate = float(stream.time_base or 1), float(stream.guessed_rate or stream.average_rate or _USUAL_RATE)
            self._order(shown, unit, rate)
            why = why or _missing(container, stream, len(packets), self.times)
            if not shown:
                raise _without_frames(path, why)
        if why:
            log.warning(
                "%s ends early: %d frames, %.1f s, can be read (%s), and only they are used.",
                path, len(self.times), self.times[-1], why,
            )  # fmt: skip

    def _order(self, packets: Sequence[_Packet], unit: float, rate: float) -> None:
        """Number the frames by their times, `unit` seconds each, or as they come where any has none."""
        self._stamps: list[int] | None = None
        self._keys: list[int] = []
        self.times = tuple(index / rate for index in range(len(packets)))
        stamped = {packet.stamp: packet.key for packet in packets if packet.stamp is not None}
        if all(packet.stamp is not None for packet in packets):
            self._stamps = sorted(stamped)
            self._keys = [index for index, stamp in enumerate(self._stamps) if stamped[stamp]]
            self.times = tuple((stamp - self._stamps[0]) * unit for stamp in self._stamps)

    def read(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Decode frames from the last key frame before each; what lies between two of them only once."""
        with _opened(self._path) as (container, stream):
            cursor = _Cursor(container, stream, self.name, self._stamps, self._keys)
            for index in wanted:
                frame = cursor.frame(index)
                if frame is None or frame.is_corrupt:
                    why = f" ({cursor.error})" if cursor.error else ""
                    raise InputError(f"{self.named(index)} cannot be decoded{why}; get the video again.")
                yield _upright(frame, stream)


class _Cursor:
    """Goes forward through the frames of an open file."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, name: str, stamps: list[int] | None, keys: list[int]
    ) -> None:
        self._container, self._stream, self._name = container, stream, name
        self._stamps, self._keys = stamps, keys
        self._frames = self._decoded()
        self._passed = -1
        """Index of the last frame that was asked for."""
        self._ahead: VideoFrame | None = None
        """A frame that was decoded and not yet asked for."""
        self.error = ""
        """The last thing that could not be decoded since the last jump."""

    def frame(self, index: int) -> VideoFrame | None:
        """The frame at an index beyond all earlier ones; None where it cannot be decoded."""
        if self._stamps is None:
            return self._counted(index)
        target = self._stamps[index]
        before = bisect_right(self._keys, index) - 1
        if before >= 0 and self._keys[before] > max(self._passed, 0):
            self._jump(self._stamps[self._keys[before]], target)
        self._passed = index
        found = self._ahead if self._ahead is not None and _stamp(self._ahead) >= target else None
        found = found or next((frame for frame in self._frames if _stamp(frame) >= target), None)
        self._ahead = found
        # A later one stands for it only where nothing failed: some packets are never shown.
        return None if found is not None and _stamp(found) > target and self.error else found

    def _counted(self, index: int) -> VideoFrame | None:
        skipped = index - self._passed
        self._passed = index
        return next((frame for number, frame in enumerate(self._frames, 1) if number == skipped), None)

    def _jump(self, key: int, target: int) -> None:
        """Go on from a key frame; where the file's index leads elsewhere, from its start."""
        av = _av(self._name)
        try:
            self._begin(key)
            self._ahead = next(self._frames, None)
        except av.FFmpegError as error:
            log.debug("%s: no seeking to %d (%s)", self._name, key, error)
            self._ahead = None
        if self._ahead is None or _stamp(self._ahead) > target:
            assert self._stamps is not None  # or there were no key frames to go to
            self._begin(self._stamps[0])

    def _begin(self, stamp: int) -> None:
        self._container.seek(stamp, stream=self._stream)
        self._frames, self._ahead, self.error = self._decoded(), None, ""

    def _decoded(self) -> Iterator[VideoFrame]:
        """All frames from here; what cannot be decoded is noted and left out."""
        av = _av(self._name)
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.error = _said(error)
                return
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                self.error = _said(error)


def _packets(container: InputContainer, stream: VideoStream, path: Path) -> tuple[list[_Packet], str]:
    """All packets that can be decoded, and why there are no more where they end early."""
    av, why = _av(str(path)), ""
    found: list[_Packet] = []
    try:
        for packet in container.demux(stream):
            # The last one that comes is empty and has no time.
            if packet.size or packet.dts is not None:
                hidden = packet.is_discard or not packet.size
                found.append(_Packet(packet.pts, packet.is_keyframe, packet.is_corrupt, hidden))
    except av.FFmpegError as error:
        why = _said(error)
    if found and container.format.name == "mpegts" and _ends_inside(path):
        found[-1] = found[-1]._replace(corrupt=True)
    # What a reader had begun when it met the end may come behind what is marked.
    while any(packet.corrupt for packet in found[-2:]):
        found.pop()
        why = "the next is cut off"
    return found, why


def _ends_inside(path: Path) -> bool:
    """Whether an MPEG transport stream, which does not say how long it is, ends inside one of its packets."""
    with path.open("rb") as file:
        head = file.read(2 * max(length for _, length in _TS_PACKETS))
    lengths = [
        length for at, length in _TS_PACKETS if len(head) > at + length and head[at] == head[at + length] == _TS_SYNC
    ]
    return bool(lengths) and path.stat().st_size % lengths[0] != 0


def _missing(container: InputContainer, stream: VideoStream, count: int, times: Sequence[float]) -> str:
    """What the header promises where that is clearly more than the `count` packets there are; empty elsewhere."""
    # Other formats count slots of time there, not frames, or estimate how long they last.
    if "mp4" in container.format.name and len(stream.index_entries) > count:
        return f"of {len(stream.index_entries)} that were promised"
    if container.format.name not in _TIMED:
        return ""
    own = _own_duration(stream)
    promised = own or (container.duration or 0) / 1e6
    least = _ENOUGH * promised
    if times and (own or len(container.streams) == 1):
        longest = max((after - before for before, after in itertools.pairwise(times)), default=promised)
        least = max(
            least, promised - max(0.0, float((stream.start_time or 0) * (stream.time_base or 0))) - _INTERVALS * longest
        )
    if (end_of(times) if times else 0) < least:
        return f"of {promised:.1f} s that were promised"
    return ""


def _own_duration(stream: VideoStream) -> float:
    """Seconds that a Matroska file says its pictures last; 0 where it does not."""
    hours, minutes, seconds = [*stream.metadata.get("DURATION", "").split(":"), "", "", ""][:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _without_frames(path: Path, why: str) -> InputError:
    """What is said of a file without a frame, `why` where there should be some."""
    if why:
        return InputError(f"{path} ends before its first frame ({why}); get the video again.")
    return InputError(f"{path} holds no frames; give a video that has some.")


def _upright(frame: VideoFrame, stream: VideoStream) -> Pixels:
    """RGB as it is to be seen, uint8 [h, w, 3]: turned as the file says, and of the stream's size if that changes."""
    context = stream.codec_context
    pixels = frame.to_ndarray(format="rgb24", width=context.width or None, height=context.height or None)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)), dtype=np.uint8)


def _stamp(frame: VideoFrame) -> float:
    return frame.pts if frame.pts is not None else float("-inf")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream; raises InputError."""
    av = _av(str(path))
    try:
        # Nothing that a file names is fetched from elsewhere, and no colon in its own name means a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except av.EOFError as error:
        raise InputError(f"{path} holds no frames, or is cut off before the first; get the video again.") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is no video in a known format, or cut off ({_said(error)}); convert it or get it again."
        ) from error
    with container:
        if container.format.name in _NO_VIDEOS:
            raise InputError(f"{path} is {_NO_VIDEOS[container.format.name]} and no video; give a video file.")
        if not len(container.streams):
            raise _without_frames(path, "")
        if not container.streams.video:
            # Of a cut index FFmpeg makes streams of nothing known.
            kinds = {each.type for each in container.streams}
            other = "" if kinds & {"audio", "subtitle"} else ", or is cut off"
            raise InputError(
                f"{path} has no video in it{other} ({container.format.long_name}); give a file with pictures."
            )
        if container.streams.video[0].codec_context is None:
            raise InputError(
                f"{path} is coded in a way that this PyAV cannot decode; convert it, for example to H.264."
            )
        yield container, container.streams.video[0]


def _av(name: str) -> ModuleType:
    """PyAV; raises InputError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{name} cannot be read without PyAV: install it (pip install 'vilavt-toolkit[video]'), or give a GIF or "
            "a folder of frames."
        ) from error
    return av


def _said(error: Exception) -> str:
    """What FFmpeg says, without number and path."""
    return str(getattr(error, "strerror", None) or error)
