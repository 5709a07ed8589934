"""Reads any recording (file, URL, bytes or array) as a mono waveform, whole or in blocks, without FFmpeg."""

import io
import ipaddress
import os
import re
import socket
import struct
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import soundfile  # comes with librosa, whose wrappers fall back to FFmpeg or hand out stale memory on broken files
import soxr  # comes with librosa too
import torch

BLOCK_S, BLOCK_VALUES = 30, 2**22  # of a file in memory at a time: seconds, or numbers if those are fewer
LONGEST_CLIP_S = 600.0  # the image of a longer clip would show nothing
LOWEST_RATE, HIGHEST_RATE = 1_000, 4_000_000  # Hz; rates beyond these come from broken headers
GREATEST_SAMPLE = 1e9  # integers stored as floats may come near it; the power of larger samples overflows float32
ONE_ARRAY = 'give one as {"array": numpy.array(samples), "sampling_rate": 48000}.'
MAX_NAME = 1_000  # characters of a source that an error message repeats
MAX_PATH = 4_096  # characters; a longer string is base64 or the like, not a path
MAX_CHUNKS = 1_000  # before the samples of a wav or aiff file; recorders and editors write a few dozen
MAX_MISSING_S = 0.1  # seconds by which a complete file may be shorter than its header says
FRAME_S = 0.05  # a window is silent if none of its frames of this length is louder than `silence_db`
CANCELLED_POWER = 1e-3  # of the channels' power; if their mean has less, one channel is the inverse of the other
MIN_POWER = 1e-6  # of full scale (-60 dB); quieter channels count as silent
MAX_DOWNLOAD_BYTES = 500 * 2**20  # an hour of 16-bit stereo at 48 kHz has 660 MiB as wav, 300 as flac
MAX_DOWNLOAD_S = 300.0  # for a whole download
MAX_SILENCE_S = 30.0  # between two bytes of a download
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # the IPv6 addresses in use on the internet
# Suffixes of recordings: first those that libsndfile decodes (except .raw, .mat and .xi, which mostly hold something
# else), then those that PyAV decodes.
AUDIO_SUFFIXES = {
    ".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".htk", ".iff", ".ircam", ".mp1",
    ".mp2", ".mp3", ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sds", ".sf", ".snd", ".sph", ".svx",
    ".voc", ".w64", ".wav", ".wave", ".wve",
    ".3g2", ".3gp", ".aac", ".amr", ".asf", ".awb", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".weba",
    ".webm", ".wma",
}  # fmt: skip


class AudioError(ValueError):
    """Raised for audio that cannot be used; the message names the item, the fault and the remedy."""


def read_audio(
    source: Any, sampling_rate: int, *, max_s: float | None = LONGEST_CLIP_S, allow_private_urls: bool = False
) -> np.ndarray:
    """
    Reads a whole recording as a mono waveform. libsndfile decodes wav, flac, ogg, opus, mp3 and others without FFmpeg;
    PyAV (`pip install av`) decodes the first audio track of m4a, mp4, mov, 3gp, webm, mkv, wma, amr and aac files.

    Args:
        source: A path, a URL, the bytes of a file, a binary file object, a dict as `datasets` yields it (`"bytes"` and
            `"path"`, or `"array"` or `"raw"` with its `"sampling_rate"`), a `datasets` audio decoder, or an array of
            shape `(T,)`, `(channels, T)` or `(T, channels)` (the shorter axis is the channels) at `sampling_rate`:
            floats in [-1, 1], or integers of 8, 16 or 32 bits that use the range of their type.
        sampling_rate (`int`): Rate of the returned waveform, in Hz. Recordings at other rates from 1 kHz to 4 MHz are
            resampled (soxr, high quality) to the samples and the length that `librosa.resample` gives.
        max_s (`float`, *optional*, defaults to 600): Longest duration accepted, in seconds; None for any length.
        allow_private_urls (`bool`, defaults to `False`): Whether a URL may point to this machine's own network.

    Returns:
        `np.ndarray` of shape `(T,)`: float32, the mean over the channels.

    Raises:
        AudioError: The source is missing, not audio, empty, cut off, too long, followed by data that would not be
            read, holds NaN or infinity, or has channels that cancel each other.
    """
    pieces = stream_audio(source, sampling_rate, max_s=max_s, allow_private_urls=allow_private_urls)
    return np.concatenate(list(pieces))


def stream_audio(
    source: Any, sampling_rate: int, *, max_s: float | None = None, allow_private_urls: bool = False
) -> Iterator[np.ndarray]:
    """Yields the waveform of `read_audio` in consecutive pieces of `BLOCK_S` seconds, so that memory stays flat."""
    pieces, rate = decode_audio(source, sampling_rate, max_s=max_s, allow_private_urls=allow_private_urls)
    yield from _resampled(pieces, rate, sampling_rate)


def stream_chunks(chunks: Iterable[Any], chunk_rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    """
    Yields the mono waveform of a recording that arrives in chunks, such as those of a microphone, as they come.

    Args:
        chunks: Arrays or tensors of any lengths, `(T,)` or `(T, channels)`: floats in [-1, 1], or int16. No channel is
            checked against another one, since a chunk may be too short for that.
        chunk_rate (`int`): Their sampling rate in Hz.
        sampling_rate (`int`): Rate of the waveform, in Hz.

    Raises:
        AudioError: A chunk is not such an array, or is not finite; there are no samples; or the rate is not one.
    """
    name = "The stream"
    rate = _checked_rate(chunk_rate, name)
    yield from _resampled(_checked(map(_mono_chunk, chunks), name, rate, None), rate, sampling_rate)


def _mono_chunk(chunk: Any) -> np.ndarray:
    array = np.asarray(chunk.detach().cpu() if isinstance(chunk, torch.Tensor) else chunk)
    is_int16 = array.dtype == np.int16
    if array.ndim not in (1, 2) or not (is_int16 or array.dtype.kind == "f"):
        raise AudioError(
            f"The stream has a chunk of {array.dtype} of the shape {array.shape}; chunks are floats in [-1, 1], or "
            "int16, of the shape (T,) or (T, channels)."
        )
    if array.ndim == 2:
        array = array.mean(axis=1) if array.shape[1] else array[:, :0].reshape(-1)
    return (array / 32768 if is_int16 else array).astype(np.float32)


def decode_audio(
    source: Any, sampling_rate: int | None = None, *, max_s: float | None = None, allow_private_urls: bool = False
) -> tuple[Iterator[np.ndarray], int]:
    """
    Opens a source of `read_audio` and returns its mono pieces at its own sampling rate, and that rate.

    Args:
        sampling_rate (`int`, *optional*): Rate of an array that comes without one.
    """
    name = name_of(source)
    pieces, rate = _decoded(source, name, sampling_rate, allow_private_urls)
    return _checked(pieces, name, rate, max_s), rate


def name_of(source: Any) -> str:
    """Returns the name of a source for error messages and tables."""
    if isinstance(source, (str, os.PathLike)):
        name = str(os.fspath(source))
        return name if len(name) <= MAX_NAME else f"{name[:60]}... ({len(name):,} characters)"
    if isinstance(source, dict):
        return (
            name_of(source["path"])
            if isinstance(source.get("path"), str) and source["path"]
            else ("a dict with the keys " + ", ".join(map(str, source)))
        )
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"a file of {len(source)} bytes"
    if hasattr(source, "shape"):
        return f"an array of shape {tuple(source.shape)}"
    return str(getattr(source, "name", None) or f"a {type(source).__name__} object")


def loudness(waveform: np.ndarray, sampling_rate: int) -> float:
    """Returns the RMS level of the loudest 50 ms of a waveform `(T,)` in dB relative to full scale; -200 if silent."""
    length = max(1, min(len(waveform), round(FRAME_S * sampling_rate)))
    frames = waveform[: len(waveform) // length * length].reshape(-1, length)
    return float(10 * np.log10(np.square(frames).mean(axis=1).max(initial=0.0) + 1e-20))


def _decoded(
    source: Any, name: str, sampling_rate: int | None, allow_private_urls: bool
) -> tuple[Iterator[np.ndarray], int]:
    """Returns the mono pieces of a source at its own sampling rate, and that rate."""
    if isinstance(source, dict):
        array = source.get("array", source.get("raw"))
        if array is not None:
            if "sampling_rate" not in source:
                raise AudioError(f'{name} has no "sampling_rate"; give it in Hz beside the array.')
            return iter([_mono(array, name)]), _checked_rate(source["sampling_rate"], name)
        contents = source.get("bytes") or source.get("path")
        if not contents:
            raise AudioError(f'{name} has neither "bytes" nor "path", nor "array" with its "sampling_rate".')
        source = contents
    if hasattr(source, "get_all_samples"):  # torchcodec's decoder, as `datasets` wraps it
        samples = source.get_all_samples()
        return iter([_mono(samples.data, name)]), _checked_rate(samples.sample_rate, name)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return iter([_mono(source, name)]), _checked_rate(sampling_rate, name)
    pieces = _decoded_file(source, name, allow_private_urls)
    return pieces, next(pieces)


def _checked(pieces: Iterable[np.ndarray], name: str, rate: int, max_s: float | None) -> Iterator[np.ndarray]:
    """Yields the pieces; raises unless they hold samples, all of them finite, and not too many."""
    length = 0
    for piece in pieces:
        if not np.isfinite(piece).all():
            raise AudioError(f"{name} holds NaN or infinite samples; export it again or repair it first.")
        if (peak := np.abs(piece).max(initial=0.0)) > GREATEST_SAMPLE:
            raise AudioError(f"{name} holds a sample of {peak:.1e}, where full scale is 1; export it again.")
        length += len(piece)
        if max_s is not None and length > max_s * rate:
            raise AudioError(f"{name} lasts longer than {max_s:g} s, which is the limit (max_s); split it.")
        if len(piece):
            yield piece
    if not length:
        raise AudioError(f"{name} is empty: it holds no samples.")


def _mono(array: Any, name: str) -> np.ndarray:
    """Returns samples as float32 `(T,)` in [-1, 1]; integers are scaled by the range of their type."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # numpy has no bfloat16
    try:
        array = np.asarray(array)
    except ValueError as error:  # a list whose rows differ in length
        raise AudioError(f"{name} is not a waveform: {error}.") from error
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise AudioError(
            f"{name} is not a waveform: expected numbers of shape (T,), (channels, T) or (T, channels), "
            f"got {array.dtype} of shape {array.shape}."
        )
    if not array.size:
        return np.zeros(0, np.float32)
    if array.dtype.kind in "iu":
        array = _scaled_integers(array, name)
    if array.ndim == 2:
        return _mean_of_channels(array.T if array.shape[0] < array.shape[1] else array, name)
    return np.ascontiguousarray(array, dtype=np.float32)


def _scaled_integers(array: np.ndarray, name: str) -> np.ndarray:
    """Returns integers as float64 in [-1, 1]; the range of their type is full scale."""
    remedy = (
        "Give floats in [-1, 1] (16-bit samples divided by 32768, 24-bit ones by 8388608), or 16-bit samples as int16."
    )
    if array.dtype.kind + str(array.dtype.itemsize) not in ("i1", "u1", "i2", "i4"):
        raise AudioError(f"{name} holds {array.dtype} samples, whose full scale is unknown. {remedy}")
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    array = array.astype(np.float64) - (half if array.dtype.kind == "u" else 0)
    if half == 2.0**31 and 0 < (peak := np.abs(array).max()) <= 2.0**23:
        raise AudioError(
            f"{name} holds int32 samples of at most {peak:,.0f}, where full scale is 2,147,483,648: they appear to be "
            f"samples of fewer bits, and would count as silence. {remedy}"
        )
    return array / half


def _mean_of_channels(samples: np.ndarray, name: str) -> np.ndarray:
    """Returns the mean `(T,)` of samples `(T, channels)` as float32; raises if the channels cancel each other."""
    with np.errstate(all="ignore"):  # the caller refuses samples that are not finite
        mean = samples.mean(axis=1, dtype=samples.dtype)
        power = np.einsum("ij,ij->", samples, samples) / samples.size
        if power > MIN_POWER and np.dot(mean, mean) / len(mean) < CANCELLED_POWER * power:
            raise AudioError(
                f"{name} has channels that cancel each other when they are averaged: one is the other with inverted "
                "sign. Give a single channel, or invert one."
            )
        return np.ascontiguousarray(mean, dtype=np.float32)


def _checked_rate(rate: Any, name: str) -> int:
    is_number = isinstance(rate, (int, float, np.integer, np.floating))
    if not is_number or not LOWEST_RATE <= rate <= HIGHEST_RATE or rate != int(rate):  # true for NaN, too
        raise AudioError(
            f"{name} has the sampling rate {rate!r}; it must be a whole number from {LOWEST_RATE:,} to "
            f"{HIGHEST_RATE:,} Hz. Correct it, or resample first."
        )
    return int(rate)


def _decoded_file(source: Any, name: str, allow_private_urls: bool) -> Iterator[Any]:
    """Yields the sampling rate of a file, then its mono pieces."""
    try:
        with _opened(source, name, allow_private_urls) as file:
            if not file.seek(0, io.SEEK_END):
                raise AudioError(f"{name} is empty: it holds no bytes.")
            if (media := _media_format(file)) is not None:
                yield from _decoded_media(file, name, media)
            else:
                yield from _decoded_by_libsndfile(file, name)
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it, a closed file
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise AudioError(f"{name} cannot be read: {reason}.") from error
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise AudioError(
            f"{name} cannot be decoded ({reason}). Complete wav, flac, ogg, opus, mp3 and aiff files are supported, "
            "and m4a, mp4, 3gp, webm, wma and amr with PyAV (pip install av); convert other files first."
        ) from error


def _decoded_by_libsndfile(file: BinaryIO, name: str) -> Iterator[Any]:
    """Yields the sampling rate, then the mono pieces; raises if part of the sound is not read."""
    extent = _extent(file, name)
    with soundfile.SoundFile(_Seekable(file, extent)) as audio:
        rate, position = _checked_rate(audio.samplerate, name), file.tell()
        if audio.format == "MP3":  # the length that libsndfile gives it is an estimate
            missing, left = _check_mp3(file, name)
        else:
            missing, left = _missing_seconds(audio, file, extent, name), audio.frames
        if missing > MAX_MISSING_S:
            raise _cut_off(name, missing)
        file.seek(position)
        yield rate
        length = min(BLOCK_S * rate, BLOCK_VALUES // audio.channels)
        while len(piece := audio.read(length, dtype="float32", always_2d=True)):
            left -= len(piece)
            yield piece[:, 0] if audio.channels == 1 else _mean_of_channels(piece, name)
        if left > MAX_MISSING_S * rate:
            if audio.format == "MP3":
                raise AudioError(
                    f"{name} is damaged: of its frames {left / rate:.2f} s cannot be decoded. Copy it again."
                )
            raise _cut_off(name, left / rate)


def _cut_off(name: str, seconds: float) -> AudioError:
    return AudioError(
        f"{name} is cut off: according to its header, its last {seconds:.2f} s are missing. Copy or download it again."
    )


def _not_all_read(name: str, what: str) -> AudioError:
    return AudioError(
        f"{name} holds more than would be read: {what}. Its header may be wrong, or it may be several files joined "
        "together; convert it first (sox, FFmpeg), or split it."
    )


class _Extent(NamedTuple):
    """
    Position of the samples in a file.

    Args:
        start: First byte of the samples; 0 if it is not known.
        end: Byte after the last one present.
        missing: Bytes that the header announces beyond the end of the file.
        patches: Offset -> bytes that the decoder reads there instead, where the header states a wrong length.
        limit: Size of the file as the decoder reads it.
    """

    start: int = 0
    end: int = 0
    missing: int = 0
    patches: dict[int, bytes] = {}
    limit: int | None = None


class _Seekable:
    """
    File that ignores a seek before its beginning, to which a broken header sends libsndfile (an exception there would
    make soundfile print a traceback). It has no `name`, since soundfile takes .raw files for samples without a header.
    """

    def __init__(self, file: BinaryIO, extent: _Extent):
        self.file, self.extent, self.tell = file, extent, file.tell
        file.seek(0)

    def read(self, n: int) -> bytes:
        position = self.file.tell()
        if self.extent.limit is not None:
            n = max(0, min(n, self.extent.limit - position))
        content = self.file.read(n)
        for place, new in self.extent.patches.items():
            if place < position + len(content) and position < place + len(new):
                first, last = max(place, position), min(place + len(new), position + len(content))
                content = content[: first - position] + new[first - place : last - place] + content[last - position :]
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            if whence == io.SEEK_END and self.extent.limit is not None:
                return self.file.seek(self.extent.limit + offset)
            return self.file.seek(offset, whence)
        except (OSError, ValueError):
            return self.file.tell()


@contextmanager
def _opened(source: Any, name: str, allow_private_urls: bool) -> Iterator[BinaryIO]:
    """Opens a path, URL, bytes or file object as a seekable binary file; a file object stays open."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, str) and (len(source) > MAX_PATH or source[:5].lower() == "data:"):
        raise AudioError(
            f"{name} is neither a path nor a URL; decode base64 text first, base64.b64decode(text), without the part "
            "of a data URL up to its comma."
        )
    elif isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        with tempfile.TemporaryFile() as file:
            _download(source, file, allow_private_urls)
            yield file
    elif isinstance(source, (str, os.PathLike)):
        if os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source):
            raise AudioError(f"{name} is a device or a pipe, whose length is unknown; give a file.")
        with open(source, "rb") as file:
            yield file
    elif hasattr(source, "read"):
        if isinstance(source.read(0), str):
            raise AudioError(f'{name} is open as text; open it with mode "rb".')
        yield source if hasattr(source, "seek") and source.seekable() else io.BytesIO(source.read())
    elif isinstance(source, (tuple, list)):
        raise AudioError(f"{name} is not a recording; {ONE_ARRAY}")
    else:
        raise AudioError(
            f"{name} is not audio: give a path, a URL, bytes, a binary file object, an array, "
            'or a dict with "bytes", "path" or "array".'
        )


# ---- Completeness of files ----
# libsndfile decodes truncated files without an error, so their structure is checked here.


class _Layout(NamedTuple):
    """Layout of a container of chunks, each of which is an identifier, a length and that many bytes."""

    first: int  # position of the first chunk
    id_bytes: int
    length_bytes: int
    order: Literal["little", "big"]
    align: int  # chunks begin at multiples of this many bytes
    samples: tuple[bytes, ...]  # beginnings of the identifier of the chunk of samples
    before_samples: int = 0  # bytes at the beginning of that chunk that are not samples
    counts_head: bool = False  # whether a length includes identifier and length


LAYOUTS = {
    b"RIFF": _Layout(12, 4, 4, "little", 2, (b"data",)),
    b"RF64": _Layout(12, 4, 4, "little", 2, (b"data",)),
    b"RIFX": _Layout(12, 4, 4, "big", 2, (b"data",)),
    b"FORM": _Layout(12, 4, 4, "big", 2, (b"SSND", b"BODY"), 8),
    b"caff": _Layout(8, 4, 8, "big", 1, (b"data",), 4),
    b"riff": _Layout(40, 16, 8, "little", 8, (b"data",), 0, True),  # W64
    b"Crea": _Layout(26, 1, 3, "little", 1, (b"\1", b"\2", b"\x09")),  # VOC
}
MAX_ATOMS = 10**6  # of an mp4 file; a phone that records in fragments writes two or three a second
MAX_HEAD = 2**16  # bytes of a header that are searched
MAX_SHORT_TAG = 64  # bytes that may be missing from the last chunk, which is text
MAX_OGG_PAGE = 27 + 255 + 255 * 255  # bytes
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")  # of mp3 players, before or after the sound
FRAME_COUNTS = {"AVR": (26, ">I"), "MPC2K": (30, "<I"), "WVE": (18, ">I")}


def _at(file: BinaryIO, position: int, n: int) -> bytes:
    file.seek(min(position, 2**62))  # a broken header may point beyond the largest possible file
    return file.read(n)


def _after_id3(file: BinaryIO) -> int:
    """Returns the position after the ID3v2 tag that mp3 players write before the sound."""
    head = _at(file, 0, 10)
    return 10 + _seven_bits(head[6:10]) if head[:3] == b"ID3" and len(head) == 10 else 0


def _seven_bits(number: bytes) -> int:
    return sum((byte & 127) << 7 * place for place, byte in enumerate(reversed(number)))


def _extent(file: BinaryIO, name: str) -> _Extent:
    """Locates the samples in a file for libsndfile; raises if more samples follow them."""
    size, base = file.seek(0, io.SEEK_END), _after_id3(file)
    head = _at(file, base, 32)
    layout = LAYOUTS.get(head[:4])
    if head[:4] == b"riff" and head[4:8] != b".\x91\xcf\x11" or head[:4] == b"Crea" and head[:8] != b"Creative":
        layout = None
    if layout is not None:
        return _extent_of_chunks(file, name, size, base, layout, head)
    if head[:4] in (b".snd", b"dns."):
        order: Literal["little", "big"] = "big" if head[:4] == b".snd" else "little"
        start, length = base + int.from_bytes(head[4:8], order), int.from_bytes(head[8:12], order)
        if length in (0, 0xFFFFFFFF):  # not known when the header was written
            return _Extent(start, size, 0, {base + 8: b"\xff" * 4})
        if not _is_padding(file, start + length, size):
            raise _not_all_read(name, f"{size - start - length:,} bytes follow its samples")
        end = min(size, start + length)
        return _Extent(start, end, max(0, start + length - size), {}, end)
    if head[:4] == b"OggS":
        _check_ogg(file, name, size, base)
    elif head[:4] == b"fLaC":
        return _extent_of_flac(file, name, size, base)
    return _Extent(0, size)


def _extent_of_chunks(file: BinaryIO, name: str, size: int, base: int, layout: _Layout, magic: bytes) -> _Extent:
    position, found = base + layout.first, _Extent()
    if magic[:4] == b"Crea":
        position = base + int.from_bytes(magic[20:22], "little")
    for _ in range(MAX_CHUNKS):
        head = _at(file, position, layout.id_bytes + layout.length_bytes)
        is_samples = head.startswith(layout.samples)
        if found.start:
            if is_samples or head[:4] in LAYOUTS:
                raise _not_all_read(name, "a second run of samples follows the first")
            if not _is_chunk(head, position, size, layout):
                if not _is_padding(file, position, size):
                    raise _not_all_read(name, f"{size - position:,} bytes after its samples are not a chunk")
                return found
        elif len(head) < layout.id_bytes + layout.length_bytes:
            return found
        if is_samples:
            found = _extent_of_samples(file, position, size, base, layout, head)
            if found.end == size:
                return found
            position = found.end
        else:
            position += len(head) + _length_of(head, layout)
        position = _aligned(file, position, base, layout)
    if not found.start:
        raise AudioError(f"{name} cannot be decoded (over {MAX_CHUNKS:,} chunks and no samples); export it again.")
    return found


def _extent_of_samples(file: BinaryIO, position: int, size: int, base: int, layout: _Layout, head: bytes) -> _Extent:
    """Returns the extent of the chunk of samples that begins at `position` with `head`."""
    at, n = position + layout.id_bytes, layout.length_bytes
    start, length, added = position + len(head), _length_of(head, layout), len(head) * layout.counts_head
    if head[layout.id_bytes :] == b"\xff" * 4 and _at(file, base, 16)[:4] == b"RF64":
        at, n = base + 28, 8  # in the chunk ds64
        length = int.from_bytes(_at(file, at, n), "little")
    overhead = layout.before_samples if head[:4] != b"BODY" else 0
    end = start + length
    is_open = length + added >= 2 ** (8 * n) - 2**12 or (n == 4 and 0x7FFFF000 <= length < 0x80000000 and end > size)
    if not is_open and length <= overhead and size > end:  # empty, or not known when the header was written
        after = _at(file, _aligned(file, end, base, layout), len(head))
        is_open = not _is_chunk(after, end, size, layout)
    patches = {at: (size - start + added).to_bytes(n, layout.order)[-n:]} if is_open or end > size else {}
    if is_open:
        return _Extent(start, size, 0, patches)
    limit = min(end, size) if layout.counts_head or head[:4] == b"BODY" else None  # libsndfile reads on to the end
    return _Extent(start, min(end, size), max(0, end - size), patches, limit)


def _length_of(head: bytes, layout: _Layout) -> int:
    length = int.from_bytes(head[layout.id_bytes :], layout.order)
    return max(0, length - len(head)) if layout.counts_head else length


def _aligned(file: BinaryIO, position: int, base: int, layout: _Layout) -> int:
    """Returns the position of the next chunk; a padding byte is 0, and some writers omit it."""
    padding = -(position - base) % layout.align
    return position if padding and any(_at(file, position, 1)) else position + padding


def _is_chunk(head: bytes, position: int, size: int, layout: _Layout) -> bool:
    """Returns whether a chunk begins with these bytes, judged by its identifier and its end."""
    if len(head) < layout.id_bytes + layout.length_bytes:
        return False
    letters = head[: min(4, layout.id_bytes)]
    is_identity = letters[0] < 10 if layout.id_bytes == 1 else all(32 <= letter < 127 for letter in letters)
    return is_identity and position + len(head) + _length_of(head, layout) <= size + MAX_SHORT_TAG


def _is_padding(file: BinaryIO, position: int, size: int) -> bool:
    """Returns whether only zeros, a few bytes or a tag of mp3 players follow."""
    if size - position < 8 or _at(file, position, 16).startswith(TAGS):
        return True
    file.seek(position)
    while piece := file.read(2**20):
        if piece.strip(b"\0"):
            return False
    return True


def _missing_seconds(audio: soundfile.SoundFile, file: BinaryIO, extent: _Extent, name: str) -> float:
    """Returns the seconds that an open file lacks according to its header; raises if it holds more than is read."""
    if extent.start:
        seconds = extent.missing / max(1, extent.end - extent.start) * audio.frames / audio.samplerate
        # libsndfile drops a whole packet of 4,096 samples if it is short.
        is_in_packets = audio.subtype.startswith("ALAC")
        return max(seconds, 4096 / audio.samplerate) if extent.missing and is_in_packets else seconds
    return _missing_by_count(audio, file, name)


def _missing_by_count(audio: soundfile.SoundFile, file: BinaryIO, name: str) -> float:
    """Computes `_missing_seconds` for containers whose header counts samples; libsndfile reads most to the end."""
    head, size, announced = _at(file, 0, MAX_HEAD), file.seek(0, io.SEEK_END), 0
    if audio.format in FRAME_COUNTS:
        place, form = FRAME_COUNTS[audio.format]
        announced = struct.unpack_from(form, head, place)[0]
    elif audio.format in ("MAT4", "MAT5") and (place := head.find(b"wavedata") - 12) > 0:
        is_big = head.startswith(b"\0\0\x03\xe8") if audio.format == "MAT4" else head[126:128] == b"MI"
        announced = int.from_bytes(head[place : place + 4], "big" if is_big else "little")
        width = {"PCM_U8": 1, "PCM_16": 2, "DOUBLE": 8}.get(audio.subtype, 4)
        if audio.format == "MAT4" and size > place + 21 + announced * audio.channels * width + 8:
            raise _not_all_read(name, "bytes follow its samples")
    elif match := re.search(rb"\nsample_count -i (\d{1,15})\s", head[:1024] if audio.format == "NIST" else b""):
        announced = int(match[1])
        announced //= audio.channels if announced == audio.frames * audio.channels else 1
    elif audio.format == "SDS":
        packets = -(-audio.frames // (120 // ((head[6] + 6) // 7)))
        if size > 21 + 127 * packets + 8:
            raise _not_all_read(name, "bytes follow its samples")
    if 0 < announced < audio.frames - 8:
        raise _not_all_read(name, f"its header counts {announced:,} samples, and {audio.frames:,} are there")
    return max(0, announced - audio.frames) / audio.samplerate


def _check_ogg(file: BinaryIO, name: str, size: int, position: int) -> None:
    """Raises unless all pages of an ogg file are present and belong to one stream, or to parallel ones."""
    is_last, has_begun = False, False
    while position < size:
        page = _at(file, position, MAX_OGG_PAGE)
        if page[:4] != b"OggS" or len(page) < 27:
            if is_last and _is_padding(file, position, size):
                return
            if is_last:
                raise _not_all_read(name, f"{size - position:,} bytes follow its last page")
            raise AudioError(f"{name} is damaged at byte {position:,}, where a page of its sound should begin.")
        is_first, is_last = bool(page[5] & 2), bool(page[5] & 4)
        if is_first and has_begun:
            raise _not_all_read(name, f"a second stream begins at byte {position:,}")
        has_begun = has_begun or not is_first
        length = 27 + page[26] + sum(page[27 : 27 + page[26]])
        if len(page) >= length and _ogg_checksum(page[:length]) != page[22:26]:  # libsndfile leaves such a page out
            raise AudioError(f"{name} is damaged in the page of its sound at byte {position:,}; copy it again.")
        position += length
    if position > size or not is_last:
        raise AudioError(f"{name} is cut off: it ends before its last page. Copy or download it again.")


def _ogg_checksum(page: bytes) -> bytes:
    """Returns the checksum of an Ogg page: a CRC-32 from the highest bit on, where zlib's is from the lowest."""
    without = page[:22] + bytes(4) + page[26:]
    value = zlib.crc32(without.translate(REVERSED_BITS), 2**32 - 1) ^ 2**32 - 1
    return int(f"{value:032b}"[::-1], 2).to_bytes(4, "little")


def _extent_of_flac(file: BinaryIO, name: str, size: int, base: int) -> _Extent:
    """Checks a flac file's number of samples against its last frame, and supplies it if the header has 0."""
    if (second := _find(file, re.compile(rb"fLaC[\0\x80]\0\0\x22"), base + 4)) is not None:
        raise _not_all_read(name, f"a second stream begins at byte {second:,}")
    info = _at(file, base + 8, 34)
    fields = int.from_bytes(info[10:18], "big")
    announced, rate = fields & (2**36 - 1), fields >> 44
    window = min(size - base, max(2**16, 2 * int.from_bytes(info[7:10], "big")))
    end = _at(file, size - window, window)
    if end[-128:-125] == b"TAG":
        end = end[:-128]
    counted = _flac_samples(end.rstrip(b"\0"), info) or _flac_samples(end, info)
    if counted is None or not rate:
        raise AudioError(
            f"{name} is cut off or damaged at its end, or followed by bytes that are not flac; copy it again."
        )
    if announced and counted > announced:
        raise _not_all_read(name, f"its header counts {announced:,} samples, and {counted:,} are there")
    if (announced - counted) / rate > MAX_MISSING_S:
        raise _cut_off(name, (announced - counted) / rate)
    fields = fields >> 36 << 36 | counted
    return _Extent(0, size, 0, {base + 18: fields.to_bytes(8, "big")} if announced != counted else {})


def _flac_samples(end: bytes, info: bytes) -> int | None:
    """Returns the number of samples up to the end of the last frame of a flac file that ends with `end`."""
    for frame in reversed(list(re.finditer(rb"(?s)(?=(\xff[\xf8\xf9].{8,14}))", end))):
        head = frame[1]
        n_bytes = max(1, 8 - (head[4] ^ 255).bit_length()) if head[4] >= 192 else 1
        number = head[4] & (127 if n_bytes == 1 else 127 >> n_bytes)
        for byte in head[5 : 4 + n_bytes]:
            number = number << 6 | byte & 63
        code, place = head[2] >> 4, 4 + n_bytes
        extra = {6: 1, 7: 2}.get(code, 0)
        known = {1: 192, **{n: 576 << n - 2 for n in range(2, 6)}, **{n: 256 << n - 8 for n in range(8, 16)}}
        block = int.from_bytes(head[place : place + extra], "big") + 1 if extra else known.get(code, 0)
        place += extra + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
        if place >= len(head) or not block or _crc(head[:place], 0x07, 8) != head[place]:
            continue
        if not _crc(end[frame.start() :], 0x8005, 16):
            return (number if head[1] & 1 else number * int.from_bytes(info[2:4], "big")) + block
    return None


def _crc(content: bytes, polynomial: int, bits: int) -> int:
    """Returns the checksum of a flac frame header (8 bits) or frame (16 bits); 0 if it includes its own checksum."""
    table, mask, value = _crc_table(polynomial, bits), 2**bits - 1, 0
    for byte in content:
        value = (value << 8 & mask) ^ table[value >> bits - 8 ^ byte]
    return value


@cache
def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = [byte << bits - 8 for byte in range(256)]
    for _ in range(8):
        table = [(value << 1 ^ (polynomial if value >> bits - 1 else 0)) & 2**bits - 1 for value in table]
    return table


def _find(file: BinaryIO, pattern: re.Pattern[bytes], position: int, longest: int = 64) -> int | None:
    """Returns the first place, from `position` on, of a pattern of at most `longest` bytes."""
    kept = b""
    file.seek(position)
    while piece := file.read(2**20):
        if match := pattern.search(kept + piece):
            return position - len(kept) + match.start()
        position += len(piece)
        kept = (kept + piece)[-longest:]
    return None


_MPEG_KBPS = {  # (MPEG-1, layer)
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


MAX_ADDED_FRAMES = 4  # of an mp3 file, at both ends together, that encoders add


class _MpegFrame(NamedTuple):
    length: int  # in bytes
    samples: int
    rate: int
    tag: int  # position in it of an encoder's tag (Xing, Info)


def _mpeg_frame(head: bytes) -> _MpegFrame | None:
    """Parses the four bytes with which a frame of mp3 or mp2 begins; returns None if they are not such a header."""
    if len(head) < 4 or head[0] != 255 or head[1] < 224:
        return None
    version, layer, code, rate_code = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer not in (2, 3) or code in (0, 15) or rate_code == 3:
        return None
    rate = (44_100, 48_000, 32_000)[rate_code] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 576 if layer == 3 and version != 3 else 1152
    is_mono = head[3] >> 6 == 3
    tag = 4 + ((17 if is_mono else 32) if version == 3 else (9 if is_mono else 17))
    length = samples // 8 * _MPEG_KBPS[version == 3, layer][code - 1] * 1000 // rate + (head[2] >> 1 & 1)
    return _MpegFrame(length, samples, rate, tag)


def _check_mp3(file: BinaryIO, name: str) -> tuple[float, int]:
    """
    Returns the seconds that an mp3 file lacks according to the tag in its first frame, and the samples that its frames
    must give at least: decoders leave out what encoders add at both ends.

    Raises:
        AudioError: The file holds more frames than the tag counts, frames of another stream, or more than
            `MAX_MISSING_S` of other bytes between its frames.
    """
    size, position = file.seek(0, io.SEEK_END), _after_id3(file)
    announced = count = skipped = 0
    first: _MpegFrame | None = None
    while position + 4 <= size:
        head = _at(file, position, 52)
        frame = _mpeg_frame(head)
        if frame is None:
            if head[:3] == b"ID3":
                position += 10 + _seven_bits(head[6:10])
                continue
            if _is_padding(file, position, size):
                break
            found = _next_mpeg_frame(file, position + 1)
            if first is not None:
                skipped += (size if found is None else found) - position
                if skipped * first.samples > MAX_MISSING_S * first.rate * first.length:
                    raise AudioError(
                        f"{name} holds {skipped:,} bytes up to byte {found or size:,} between or after its frames "
                        "that are not sound; convert it first, or copy it again."
                    )
            if found is None:
                break
            position = found
            continue
        tag = head[frame.tag : frame.tag + 12]
        is_tag = tag[:7] in (b"Xing\0\0\0", b"Info\0\0\0")
        if first is None:
            first, announced = frame, int.from_bytes(tag[8:12], "big") if is_tag and tag[7] & 1 else 0
        elif is_tag or frame.rate != first.rate:
            raise _not_all_read(name, f"a second stream begins at byte {position:,}")
        position += frame.length
        count += not is_tag and position <= size
    if first is None:
        return 0.0, 0
    seconds = first.samples / first.rate
    if announced and (count - announced) * seconds > MAX_MISSING_S:
        raise _not_all_read(name, f"its header counts {announced:,} frames, and {count:,} are there")
    return max(0, announced - count) * seconds, max(0, count - MAX_ADDED_FRAMES) * first.samples


def _next_mpeg_frame(file: BinaryIO, position: int) -> int | None:
    """Returns the next position at which two consecutive frames begin."""
    while len(piece := _at(file, position, MAX_HEAD)) >= 4:
        for match in re.finditer(rb"(?s)(?=(\xff[\xe0-\xff]..))", piece):
            frame, found = _mpeg_frame(match[1]), position + match.start()
            if frame is not None and _mpeg_frame(_at(file, found + frame.length, 4)) is not None:
                return found
        position += len(piece) - 3
    return None


# ---- Formats that PyAV decodes ----

ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object that holds the file's size
EBML = b"\x1a\x45\xdf\xa3"
ELEMENTS_OF_ELEMENTS = {bytes.fromhex(name) for name in ("18538067", "1f43b675")}  # the segment, its clusters
ELEMENTS = ELEMENTS_OF_ELEMENTS | {  # of the file, of its segment and of a cluster
    bytes.fromhex(name) for name in (
        "1a45dfa3", "114d9b74", "1549a966", "1654ae6b", "1c53bb6b", "1043a770", "1254c367", "1941a469",
        "e7", "5854", "a7", "ab", "a3", "a0", "af", "ec", "bf",
    )
}  # fmt: skip
SECOND_MEDIA = {
    "matroska": re.compile(rb"(?s)\x1a\x45\xdf\xa3.{1,40}?(?:webm|matroska)"),
    "asf": re.compile(re.escape(ASF)),
    "amr": re.compile(rb"#!AMR(?:-WB)?\n"),
}


def _media_format(file: BinaryIO) -> str | None:
    """Returns FFmpeg's name for the container of a media file; None for a file that libsndfile decodes. FFmpeg's own
    guess could take text for a playlist, and read the files and addresses in it."""
    head = _at(file, 0, 16)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "mov"
    if head[:4] == EBML:
        return "matroska"
    if head == ASF:
        return "asf"
    if head[:5] == b"#!AMR":
        return "amr"
    return "aac" if head[:1] == b"\xff" and head[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9") else None


def _decoded_media(file: BinaryIO, name: str, media: str) -> Iterator[Any]:
    """Yields the sampling rate, then the mono pieces of the first audio track."""
    try:
        import av  # in `try`, since transformers requires all other packages that a checkpoint's code imports
    except ImportError as error:
        raise AudioError(
            f"{name} is a {media} file, which only PyAV decodes: pip install av, or convert it to wav first."
        ) from error
    _check_media(file, name, media)
    file.seek(0)
    try:
        with av.open(file, "r", format=media, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError(f"{name} holds no audio track.")
            stream = container.streams.audio[0]
            yield from _pieces_of_track(container.decode(stream), stream, name)
    except AudioError:
        raise
    except av.FFmpegError as error:
        raise AudioError(
            f"{name} cannot be decoded ({error.strerror}); export it again, or convert it first."
        ) from error


def _pieces_of_track(frames: Iterator[Any], stream: Any, name: str) -> Iterator[Any]:
    rate = length = 0
    waiting: list[np.ndarray] = []
    for frame in frames:
        if not rate:
            rate = _checked_rate(frame.sample_rate, name)
            yield rate
        samples = frame.to_ndarray()
        n_channels = samples.shape[0] if frame.format.is_planar else len(frame.layout.channels)
        samples = samples.T if frame.format.is_planar else samples.reshape(-1, n_channels)
        if frame.sample_rate != rate or (waiting and waiting[0].shape[1] != n_channels):
            raise AudioError(f"{name} changes its sampling rate or channels midway; convert it to wav first.")
        waiting.append(samples if samples.dtype.kind == "f" else _full_scale(samples))
        length += len(samples)
        if sum(map(len, waiting)) >= min(BLOCK_S * rate, BLOCK_VALUES // n_channels):
            yield _mean_of_channels(np.concatenate(waiting).astype(np.float32), name)
            waiting = []
    if not rate:
        raise AudioError(f"{name} is empty: it holds no samples.")
    if waiting:
        yield _mean_of_channels(np.concatenate(waiting).astype(np.float32), name)
    is_exact = stream.duration and stream.container.format.name.startswith("mov")  # elsewhere FFmpeg may estimate it
    announced = float(stream.duration * stream.time_base) if is_exact else 0.0
    around = 2 * (stream.codec_context.frame_size or 1024) / rate  # seconds that encoders add at both ends
    if announced - length / rate > MAX_MISSING_S + around:
        raise _cut_off(name, announced - length / rate)


def _full_scale(samples: np.ndarray) -> np.ndarray:
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return (samples.astype(np.float64) - (half if samples.dtype.kind == "u" else 0)) / half


def _check_media(file: BinaryIO, name: str, media: str) -> None:
    """Raises if a media file is shorter than it states, or if another file follows it."""
    size = file.seek(0, io.SEEK_END)
    head = _at(file, 0, MAX_HEAD)
    announced = 0
    if media == "mov":
        announced = _end_of_atoms(file, name, size)
    elif media == "asf" and (place := head.find(ASF_FILE)) >= 0:
        announced = int.from_bytes(head[place + 40 : place + 48], "little")
    elif media == "matroska" and (place := head.find(b"\x18\x53\x80\x67")) >= 0 and len(head) > place + 12:
        width = 9 - head[place + 4].bit_length()
        length = int.from_bytes(head[place + 4 : place + 4 + width], "big") & (1 << 7 * width) - 1
        is_known = length != (1 << 7 * width) - 1  # browsers leave it open
        announced = place + 4 + width + length if is_known else 0
    if announced > size:
        raise AudioError(
            f"{name} is cut off: according to its header, {announced - size:,} bytes are missing. Copy or download it "
            "again."
        )
    if media in SECOND_MEDIA and (second := _find(file, SECOND_MEDIA[media], 1)) is not None:
        raise _not_all_read(name, f"a second file begins at byte {second:,}")
    if announced and not _is_padding(file, announced, size):
        raise _not_all_read(name, f"{size - announced:,} bytes follow its end")
    if media == "matroska":
        _check_elements(file, name, announced or size)


def _check_elements(file: BinaryIO, name: str, end: int) -> None:
    """Raises where what follows an element of a webm or mkv file is none: FFmpeg goes on with the next cluster."""
    position = 0
    while position < end:
        head = _at(file, position, 12)
        n_id = 9 - head[0].bit_length()
        n_length = 9 - head[n_id].bit_length() if n_id < min(5, len(head)) else 9
        if n_id + n_length > len(head) and len(head) < 12:
            return  # the last element is cut off, and a recorder that was ended may do that
        if head[:n_id] not in ELEMENTS or n_length > 8:
            if _is_padding(file, position, end):
                return
            raise AudioError(f"{name} is damaged at byte {position:,}, where an element should begin. Copy it again.")
        length = int.from_bytes(head[n_id : n_id + n_length], "big") & (1 << 7 * n_length) - 1
        position += n_id + n_length + (0 if head[:n_id] in ELEMENTS_OF_ELEMENTS else length)


def _end_of_atoms(file: BinaryIO, name: str, size: int) -> int:
    """Returns the end of the last atom of an mp4 file."""
    position, kinds = 0, set()
    for _ in range(MAX_ATOMS):
        if position + 8 > size:
            break
        head = _at(file, position, 16)
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        length = {0: size - position, 1: int.from_bytes(head[8:16], "big")}.get(length, length)
        if kind in (b"ftyp", b"moov") and kind in kinds:
            raise _not_all_read(name, f"a second file begins at byte {position:,}")
        if length < 8 or not all(32 <= letter < 127 or letter == 0xA9 for letter in kind):
            if _is_padding(file, position, size):
                return position
            raise _not_all_read(name, f"{size - position:,} bytes from byte {position:,} on are not an atom")
        kinds.add(kind)
        position += length
    return position


def _resampled(pieces: Iterable[np.ndarray], rate: int, target: int) -> Iterator[np.ndarray]:
    """Resamples consecutive pieces of any lengths as one signal, without seams."""
    if rate == target:
        yield from pieces
        return
    resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    n_read = n_made = 0
    for piece in pieces:
        made = resampler.resample_chunk(piece)
        n_read, n_made = n_read + len(piece), n_made + len(made)
        if len(made):
            yield made
    rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    missing = -(-n_read * target // rate) - n_made - len(rest)  # soxr rounds the length, librosa rounds it up
    yield np.pad(rest, (0, missing))


# ---- Downloads ----
# They are limited in size and time, and do not reach this machine's own network unless that is allowed.


def _download(url: str, file: BinaryIO, allow_private: bool = False) -> None:
    """
    Downloads an http or https URL into a file, or raises. Redirects to URLs of other kinds are not followed.

    Args:
        url (`str`): The URL, with spaces and non-ASCII characters percent-encoded.
        file: Binary file, open for writing.
        allow_private (`bool`, defaults to `False`): Whether the URL, or one that it redirects to, may point to this
            machine's own network: loopback, private, link-local and other addresses that are not public. Host names
            are resolved once, and connections go to public addresses only. A URL that is requested through a proxy
            (`http_proxy`) is checked too.

    Raises:
        AudioError: The URL is not valid, returns an error, is cut off, exceeds 500 MiB, takes over 300 s or 30 s
            without a byte, or points to this machine's own network.
    """
    deadline = time.monotonic() + MAX_DOWNLOAD_S
    handler = _HttpHandler(deadline, allow_private)
    opener = urllib.request.OpenerDirector()  # the default one would follow a redirect to ftp
    for part in (urllib.request.ProxyHandler(), handler, urllib.request.HTTPRedirectHandler(),
                 urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler(),
                 urllib.request.UnknownHandler()):  # fmt: skip
        opener.add_handler(part)
    timer = threading.Timer(MAX_DOWNLOAD_S, handler.end)  # also ends a download whose bytes arrive slowly
    timer.start()
    try:
        with opener.open(url, timeout=MAX_SILENCE_S) as answer:
            _copy(answer, file, url, deadline)
    except AudioError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        cause = error if isinstance(error, urllib.request.HTTPError) else getattr(error, "reason", error)
        if isinstance(cause, TimeoutError) or time.monotonic() > deadline:
            raise AudioError(
                f"{url} took too long: the limits are {MAX_DOWNLOAD_S:g} s in all and {MAX_SILENCE_S:g} s without a "
                "byte. Download it by other means and give the file."
            ) from error
        if isinstance(error, (InvalidURL, ValueError)):  # brackets, a host name or characters that no URL can have
            raise AudioError(
                f"{url} is not a valid URL ({error}); check it, and percent-encode spaces and non-ASCII characters "
                "(%20 and so on)."
            ) from error
        reason = str(getattr(cause, "strerror", None) or cause).rstrip(".")
        raise AudioError(f"{url} cannot be read: {reason}.") from error
    finally:
        timer.cancel()
        for connection in handler.sockets:
            connection.close()


def _copy(answer: HTTPResponse, file: BinaryIO, url: str, deadline: float) -> None:
    announced, size = answer.length, 0
    while announced is None or size < announced:
        if max(size, announced or 0) > MAX_DOWNLOAD_BYTES:
            raise AudioError(
                f"{url} is larger than {MAX_DOWNLOAD_BYTES / 2**20:,.0f} MiB. Download it by other means and give the "
                "file."
            )
        if not (piece := answer.read1(0x10000)):
            break
        size += len(piece)
        file.write(piece[: max(0, MAX_DOWNLOAD_BYTES - size + len(piece))])
    if time.monotonic() > deadline:  # the timer closed the connection, which may look like the end of the response
        raise TimeoutError
    if announced is not None and size < announced:
        raise AudioError(
            f"{url} is cut off: {announced - size} of the bytes that the server announced are missing. Try again."
        )


class _HttpHandler(urllib.request.AbstractHTTPHandler):
    """Opens http and https URLs, and those that they redirect to, on connections to allowed addresses only."""

    def __init__(self, deadline: float, allow_private: bool):
        super().__init__()
        self.deadline, self.allow_private = deadline, allow_private
        self.sockets: list[socket.socket] = []

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self._open(HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self._open(HTTPSConnection, request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _open(self, kind: type[HTTPConnection], request: urllib.request.Request) -> HTTPResponse:
        asked = urlsplit(request.full_url)
        through_proxy = asked.netloc != request.host
        if through_proxy and not self.allow_private:
            _public_addresses(asked.hostname or "", asked.port or 0)

        def connection(host: str, **kwargs: Any) -> HTTPConnection:
            made: Any = kind(host, **kwargs)  # Any, since the method replaced below is private
            made._create_connection = partial(self._connect, self.allow_private or through_proxy)
            return made

        return self.do_open(connection, request)

    def _connect(self, allow_private: bool, address: tuple[str, int], *_: Any) -> socket.socket:
        """Returns a socket to the first of the allowed addresses that answers."""
        host, port = address
        addresses = [host] if allow_private else _public_addresses(host, port)
        for place, numeric in enumerate(addresses):
            left = self.deadline - time.monotonic()
            try:
                made = socket.create_connection((numeric, port), max(0.001, min(MAX_SILENCE_S, left)))
            except OSError:
                if place == len(addresses) - 1:
                    raise
                continue
            self.sockets.append(made.dup())  # a second handle on the connection, since TLS takes over the first one
            return made
        raise AssertionError("a host name resolves to at least one address")

    def end(self) -> None:
        """Shuts down all connections."""
        for connection in self.sockets:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


def _public_addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    public = [address for address in addresses if _is_public(address)]
    if not public:
        raise PermissionError(
            f"{host} is {addresses[0]}, an address in this machine's own network; allow_private_urls permits that"
        )
    return public


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in GLOBAL_UNICAST or ip.sixtofour):
        return False  # including forms of IPv4 in IPv6
    return ip.is_global and not ip.is_multicast
