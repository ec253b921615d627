"""Reader of video files through PyAV: frames are indexed by the times of their packets and decoded on demand."""

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

from vilavt_components.sources.picture_decoding import Pixels
from vilavt_components.sources.video.frame_selection import end_time
from vilavt_components.sources.video.frames import FrameReader, check_size
from vilavt_toolkit.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

_NO_VIDEOS = {"tty": "text", "hls": "a playlist", "concat": "a playlist", "dash": "a playlist", "sdp": "a playlist"}
_TIMED = ("matroska,webm", "flv")
"""Formats whose header says how long the file lasts."""
_USUAL_RATE = 25
_ENOUGH = 0.9
"""Share of the promised duration above which a file counts as whole: its sound may last longer than its pictures."""
_INTERVALS = 1.5
"""Number of the longest intervals between frames that may be missing if the pictures' own duration is known."""
_TS_SYNC, _TS_PACKETS = 0x47, ((0, 188), (4, 192), (0, 204))
"""The sync byte of an MPEG transport stream, and (its place, the length of a packet) in the three variants."""


class _Packet(NamedTuple):
    """The packet of a frame."""

    stamp: int | None
    """Its presentation time in the stream's unit."""
    key: bool
    """True if decoding can begin here."""
    corrupt: bool
    hidden: bool
    """True if it is only decoded for the sake of others, as before the point where a film was trimmed."""


class FileFrames(FrameReader):
    """The frames of a file's first video stream; of frames with the same time only one.

    Opening reads the whole file once, without decoding. If packets have no times (a raw stream), frames follow each
    other at the stream's rate and are found by counting from the start.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.name, self._path = str(path), path
        with _open_stream(path) as (container, stream):
            context = stream.codec_context
            check_size(context.width, context.height, self.name, max_pixels)
            # All packets rather than the header, whose promise is wrong for a file that is cut off.
            packets, why = _read_packets(container, stream, path)
            shown = [packet for packet in packets if not packet.hidden]
            unit, rate = float(stream.time_base or 1), float(stream.guessed_rate or stream.average_rate or _USUAL_RATE)
            self._index_packets(shown, unit, rate)
            why = why or _describe_missing(container, stream, packets, self.times)
            if not shown:
                raise _no_frames_error(path, why)
        if why:
            log.warning(
                "%s ends early: %d frames, %.1f s, can be read (%s), and only they are used.",
                path, len(self.times), self.times[-1], why,
            )  # fmt: skip

    def _index_packets(self, packets: Sequence[_Packet], unit: float, rate: float) -> None:
        """Number the frames by their times in units of `unit` seconds, or in file order if any has no time."""
        self._stamps: list[int] | None = None
        self._keys: list[int] = []
        self.times = tuple(index / rate for index in range(len(packets)))
        # Packets come in the order of decoding, in which B-frames follow frames that are shown later.
        stamped = {packet.stamp: packet.key for packet in packets if packet.stamp is not None}
        if all(packet.stamp is not None for packet in packets):
            self._stamps = sorted(stamped)
            self._keys = [index for index, stamp in enumerate(self._stamps) if stamped[stamp]]
            self.times = tuple((stamp - self._stamps[0]) * unit for stamp in self._stamps)

    def read_frames(self, wanted: Sequence[int]) -> Iterator[Pixels]:
        """Decode frames in one pass, each from the last key frame before it."""
        with _open_stream(self._path) as (container, stream):
            cursor = _Cursor(container, stream, self.name, self._stamps, self._keys)
            for index in wanted:
                frame = cursor.frame_at(index)
                if frame is None or frame.is_corrupt:
                    why = f" ({cursor.error})" if cursor.error else ""
                    raise InputError(f"{self.describe_frame(index)} cannot be decoded{why}. Get the video again.")
                yield _to_upright_rgb(frame, stream)


class _Cursor:
    """A position in an open file that moves forward through its frames."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, name: str, stamps: list[int] | None, keys: list[int]
    ) -> None:
        self._container, self._stream, self._name = container, stream, name
        self._stamps, self._keys = stamps, keys
        self._frames = self._decode_forward()
        self._passed = -1
        """Index of the last requested frame."""
        self._ahead: VideoFrame | None = None
        """A frame that was decoded but not yet requested."""
        self.error = ""
        """The last decoding error since the last seek."""

    def frame_at(self, index: int) -> VideoFrame | None:
        """Return the frame at an index above all earlier ones; None if it cannot be decoded."""
        if self._stamps is None:
            return self._frame_by_count(index)
        target = self._stamps[index]
        before = bisect_right(self._keys, index) - 1
        # Seeking pays only if a key frame lies between here and there.
        if before >= 0 and self._keys[before] > max(self._passed, 0):
            self._seek_key_frame(self._stamps[self._keys[before]], target)
        self._passed = index
        found = self._ahead if self._ahead is not None and _frame_stamp(self._ahead) >= target else None
        found = found or next((frame for frame in self._frames if _frame_stamp(frame) >= target), None)
        self._ahead = found
        # A later frame is accepted only if nothing failed on the way: some packets have no frame of their own.
        return None if found is not None and _frame_stamp(found) > target and self.error else found

    def _frame_by_count(self, index: int) -> VideoFrame | None:
        """Return the frame at an index by counting, in a stream without times; None if it cannot be decoded."""
        skipped = index - self._passed
        self._passed = index
        return next((frame for number, frame in enumerate(self._frames, 1) if number == skipped), None)

    def _seek_key_frame(self, key: int, target: int) -> None:
        """Go on from a key frame, or from the start of the file if its index leads elsewhere."""
        av = _import_av(self._name)
        try:
            self._restart_at(key)
            self._ahead = next(self._frames, None)
        except av.FFmpegError as error:
            log.debug("%s: no seeking to %d (%s)", self._name, key, error)
            self._ahead = None
        if self._ahead is None or _frame_stamp(self._ahead) > target:
            # Only streams with times have key frames to seek.
            assert self._stamps is not None
            self._restart_at(self._stamps[0])

    def _restart_at(self, stamp: int) -> None:
        """Seek a time and forget everything decoded before."""
        self._container.seek(stamp, stream=self._stream)
        self._frames, self._ahead, self.error = self._decode_forward(), None, ""

    def _decode_forward(self) -> Iterator[VideoFrame]:
        """Decode all frames from here on; errors are noted in `error` and their frames left out."""
        av = _import_av(self._name)
        # By hand rather than `container.decode`, which would end at the first error.
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.error = _error_text(error)
                return
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                self.error = _error_text(error)


def _read_packets(container: InputContainer, stream: VideoStream, path: Path) -> tuple[list[_Packet], str]:
    """Read all packets that can be decoded; returns them and, if they end early, the reason."""
    av, why = _import_av(str(path)), ""
    found: list[_Packet] = []
    try:
        for packet in container.demux(stream):
            # PyAV ends with an empty packet without a time, which flushes decoders.
            if packet.size or packet.dts is not None:
                hidden = packet.is_discard or not packet.size
                found.append(_Packet(packet.pts, packet.is_keyframe, packet.is_corrupt, hidden))
    except av.FFmpegError as error:
        why = _error_text(error)
    if found and container.format.name == "mpegts" and _ends_mid_packet(path):
        found[-1] = found[-1]._replace(corrupt=True)
    # A packet that was begun when the file ended can follow the one that is marked as corrupt.
    while any(packet.corrupt for packet in found[-2:]):
        found.pop()
        why = "the next is cut off"
    return found, why


def _ends_mid_packet(path: Path) -> bool:
    """Return True if an MPEG transport stream, which has no length in its header, ends inside a packet."""
    with path.open("rb") as file:
        head = file.read(2 * max(length for _, length in _TS_PACKETS))
    # Three variants differ in the length of packets and the place of the sync byte; two in a row tell which it is.
    lengths = [
        length for at, length in _TS_PACKETS if len(head) > at + length and head[at] == head[at + length] == _TS_SYNC
    ]
    return bool(lengths) and path.stat().st_size % lengths[0] != 0


def _describe_missing(
    container: InputContainer, stream: VideoStream, packets: Sequence[_Packet], times: Sequence[float]
) -> str:
    """Describe what the header promises if it is clearly more than the packets; empty if nothing is missing."""
    # The index of other formats counts slots of time rather than frames, or is an estimate.
    if "mp4" in container.format.name and len(stream.index_entries) > len(packets):
        return f"of {len(stream.index_entries)} that were promised"
    # The file's duration includes its sound, the pictures' own does not, and allows a tighter bound.
    own = _matroska_duration(stream)
    if container.format.name == "avi" and not (packets and packets[-1].hidden):
        # Its header counts slots of time. The duration that FFmpeg tells is an estimate from the file's size.
        own = float(stream.frames * (stream.time_base or 0))
    elif container.format.name not in _TIMED:
        return ""
    promised = own or (container.duration or 0) / 1e6
    least = _ENOUGH * promised
    if times and (own or len(container.streams) == 1):
        longest = max((after - before for before, after in itertools.pairwise(times)), default=promised)
        least = max(
            least, promised - max(0.0, float((stream.start_time or 0) * (stream.time_base or 0))) - _INTERVALS * longest
        )
    if (end_time(times) if times else 0) < least:
        return f"of {promised:.1f} s that were promised"
    return ""


def _matroska_duration(stream: VideoStream) -> float:
    """Return the seconds that a Matroska file says its pictures last; 0 if it does not say."""
    hours, minutes, seconds = [*stream.metadata.get("DURATION", "").split(":"), "", "", ""][:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _no_frames_error(path: Path, why: str) -> InputError:
    """Return the error about a file without frames; `why` says what happened if there should be some."""
    if why:
        return InputError(f"{path} ends before its first frame ({why}). Get the video again.")
    return InputError(f"{path} holds no frames. Give a video that has some.")


def _to_upright_rgb(frame: VideoFrame, stream: VideoStream) -> Pixels:
    """Convert a frame to upright RGB of the stream's size, uint8 [h, w, 3]."""
    # With the stream's size, since frames may change theirs in the middle of a file.
    context = stream.codec_context
    pixels = frame.to_ndarray(format="rgb24", width=context.width or None, height=context.height or None)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)), dtype=np.uint8)


def _frame_stamp(frame: VideoFrame) -> float:
    """Return a frame's time in the stream's unit, before all others if it has none."""
    return frame.pts if frame.pts is not None else float("-inf")


@contextmanager
def _explain_memory(name: str) -> Iterator[None]:
    """Turn a lack of memory inside the block, FFmpeg's or ours, into an InputError."""
    try:
        yield
    except MemoryError as error:
        raise InputError(
            f"{name} needs more memory than is free. Scale it down, or lower max_pixels to refuse such videos."
        ) from error


@contextmanager
def _open_stream(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first video stream for the block; raises InputError, also for a lack of memory inside it."""
    with _explain_memory(str(path)):
        yield from _open_container(path)


def _open_container(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    av = _import_av(str(path))
    try:
        # The whitelist keeps a file from fetching what it names from elsewhere, and "file:" keeps a colon in its own
        # name from being read as a protocol.
        container = av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except av.EOFError as error:
        raise InputError(f"{path} holds no frames, or is cut off before the first. Get the video again.") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is no video in a known format, or cut off ({_error_text(error)}). Convert it or get it again."
        ) from error
    with container:
        if container.format.name in _NO_VIDEOS:
            raise InputError(f"{path} is {_NO_VIDEOS[container.format.name]} and no video. Give a video file.")
        if not len(container.streams):
            raise _no_frames_error(path, "")
        # A song may hold a picture of its cover, which is told as a video stream.
        films = [each for each in container.streams.video if not each.disposition & av.stream.Disposition.attached_pic]
        if not films:
            # A file whose index is cut off has streams of unknown kinds only.
            kinds = {each.type for each in container.streams}
            other = "" if kinds & {"audio", "subtitle"} else ", or is cut off"
            raise InputError(
                f"{path} has no video in it{other} ({container.format.long_name}). Give a file with pictures."
            )
        if films[0].codec_context is None:
            raise InputError(
                f"{path} is coded in a way that the installed PyAV cannot decode. Convert it, for example to H.264."
            )
        yield container, films[0]


def _import_av(name: str) -> ModuleType:
    """Import PyAV; raises InputError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{name} cannot be read without PyAV: install it (pip install 'vilavt-toolkit[video]'), or give a GIF or "
            "a folder of frames."
        ) from error
    return av


def _error_text(error: Exception) -> str:
    """Return FFmpeg's message without number and path; raises MemoryError, which is no fault of the file."""
    if isinstance(error, MemoryError):
        raise error
    return str(getattr(error, "strerror", None) or error)
