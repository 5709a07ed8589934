"""Any recording in, a waveform out: files, URLs, bytes, arrays, at any rate, whole or as a stream. Without FFmpeg."""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile  # comes with librosa, whose wrappers fall back to FFmpeg or hand out stale memory on broken files
import soxr  # comes with librosa too
import torch

try:
    from .download_maxmvit import DownloadError, download
except ImportError:
    if "." in __name__:  # in a package the sibling was found, and what it lacks is its own to say
        raise
    from download_maxmvit import DownloadError, download

BLOCK_S, BLOCK_VALUES = 30, 2**22  # how much of a file is in memory at a time: so many seconds, or numbers if fewer
LONGEST_CLIP_S = 600.0  # a picture of more would show nothing
LOWEST_RATE, HIGHEST_RATE = (
    1_000,
    4_000_000,
)  # Hz; beyond are broken headers, which blow a clip up or shrink it to none
GREATEST_SAMPLE = 1e9  # whole numbers kept as floats may come near it; the power of more overflows in float32
MOST_CHUNKS = 1_000  # of a wav or aiff file before its samples; those of recorders and editors are some dozen
MOST_MISSING_S = 0.1  # an mp3 may hold this much less than the tag in its first frame says and be whole
FRAME_S = 0.05  # a window is silent if none of its frames of this length is louder than `silence_db`
# What a folder is searched for. Some of it libsndfile cannot decode: those files are named, not overlooked.
AUDIO_SUFFIXES = {
    ".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp3", ".mp4",
    ".oga", ".ogg", ".opus", ".wav", ".webm", ".wma",
}  # fmt: skip


class AudioError(ValueError):
    """Audio that cannot be used; the message names the item, what is wrong with it and what would do."""


def read_audio(
    source: Any, sampling_rate: int, *, max_s: float | None = LONGEST_CLIP_S, allow_private_urls: bool = False
) -> np.ndarray:
    """
    Reads a whole recording: wav, flac, ogg, opus, mp3 and whatever else libsndfile decodes, without FFmpeg.

    Args:
        source: A path, a URL, the bytes of a file, a binary file object, a dict as `datasets` yields it (`"bytes"` and
            `"path"`, or `"array"` or `"raw"` with its `"sampling_rate"`), a `datasets` audio decoder, or an array of
            shape `(T,)`, `(channels, T)` or `(T, channels)` (the shorter axis is the channels) at `sampling_rate`.
        sampling_rate (`int`): Of the answer, in Hz. Other rates, of 1 kHz to 4 MHz, are resampled (soxr, high quality)
            to the samples and the length that `librosa.resample` gives.
        max_s (`float`, *optional*, defaults to 600): Seconds that it may last; None for any length.
        allow_private_urls (`bool`, defaults to `False`): Whether a URL may lie in this machine's own network.

    Returns:
        `np.ndarray` of shape `(T,)`: float32, the mean over the channels.

    Raises:
        AudioError: The source is missing, not audio, empty, cut off, too long, or holds NaN or infinity.
    """
    pieces = stream_audio(source, sampling_rate, max_s=max_s, allow_private_urls=allow_private_urls)
    return np.concatenate(list(pieces))


def stream_audio(
    source: Any, sampling_rate: int, *, max_s: float | None = None, allow_private_urls: bool = False
) -> Iterator[np.ndarray]:
    """Yields what `read_audio` returns in consecutive pieces of `BLOCK_S` seconds, so that memory stays flat."""
    pieces, rate = decode_audio(source, sampling_rate, max_s=max_s, allow_private_urls=allow_private_urls)
    yield from _resampled(pieces, rate, sampling_rate)


def decode_audio(
    source: Any, sampling_rate: int | None = None, *, max_s: float | None = None, allow_private_urls: bool = False
) -> tuple[Iterator[np.ndarray], int]:
    """
    Opens what `read_audio` reads: its mono pieces at its own rate, and that rate.

    Args:
        sampling_rate (`int`, *optional*): Of an array that comes without its own.
    """
    name = name_of(source)
    pieces, rate = _decoded(source, name, sampling_rate, allow_private_urls)
    return _checked(pieces, name, rate, max_s), rate


def name_of(source: Any) -> str:
    """What an error message and a table call this source."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, dict):
        return str(source.get("path") or "a dict with the keys " + ", ".join(map(str, source)))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"a file of {len(source)} bytes"
    if hasattr(source, "shape"):
        return f"an array of shape {tuple(source.shape)}"
    return str(getattr(source, "name", None) or f"a {type(source).__name__} object")


def loudness(waveform: np.ndarray, sampling_rate: int) -> float:
    """RMS level of the loudest 50 ms of a waveform `(T,)`, in dB relative to full scale; -200 if there is nothing."""
    length = max(1, min(len(waveform), round(FRAME_S * sampling_rate)))
    frames = waveform[: len(waveform) // length * length].reshape(-1, length)
    return float(10 * np.log10(np.square(frames).mean(axis=1).max(initial=0.0) + 1e-20))


def _decoded(
    source: Any, name: str, sampling_rate: int | None, allow_private_urls: bool
) -> tuple[Iterator[np.ndarray], int]:
    """Mono pieces of whatever `source` is, at its own rate, and that rate."""
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
    """The pieces, once it is sure that they hold samples, numbers only, and not too many."""
    length = 0
    for piece in pieces:
        if not np.isfinite(piece).all():
            raise AudioError(f"{name} holds NaN or infinite samples; export it again or repair it first.")
        if (peak := np.abs(piece).max(initial=0.0)) > GREATEST_SAMPLE:
            raise AudioError(f"{name} holds a sample of {peak:.1e}, where full scale is 1; export it again.")
        length += len(piece)
        if max_s is not None and length > max_s * rate:
            raise AudioError(f"{name} lasts longer than {max_s:g} s, the most that is taken (max_s); cut it up.")
        if len(piece):
            yield piece
    if not length:
        raise AudioError(f"{name} is empty: it holds no samples.")


def _mono(array: Any, name: str) -> np.ndarray:
    """float32 `(T,)` in [-1, 1] of an array of samples; integers are scaled by what their type holds."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # numpy has no bfloat16
    try:
        array = np.asarray(array)
    except ValueError as error:  # a list whose rows differ in length
        raise AudioError(f"{name} is no waveform: {error}.") from error
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise AudioError(
            f"{name} is no waveform: expected numbers of shape (T,), (channels, T) or (T, channels), "
            f"got {array.dtype} of shape {array.shape}."
        )
    if not array.size:
        return np.zeros(0, np.float32)
    if array.dtype.kind in "iu":
        half = 2.0 ** (8 * array.dtype.itemsize - 1)
        array = (array.astype(np.float64) - (half if array.dtype.kind == "u" else 0)) / half
    if array.ndim == 2:
        array = array.mean(axis=int(array.shape[0] >= array.shape[1]))
    return np.ascontiguousarray(array, dtype=np.float32)


def _checked_rate(rate: Any, name: str) -> int:
    is_number = isinstance(rate, (int, float, np.integer, np.floating))
    if not is_number or not LOWEST_RATE <= rate <= HIGHEST_RATE or rate != int(rate):  # NaN is in no range
        raise AudioError(
            f"{name} has the sampling rate {rate!r}; only whole numbers of samples a second from {LOWEST_RATE:,} to "
            f"{HIGHEST_RATE:,} are read. Correct it, or resample it first."
        )
    return int(rate)


def _decoded_file(source: Any, name: str, allow_private_urls: bool) -> Iterator[Any]:
    """First the rate of a file, then its mono pieces."""
    try:
        with _opened(source, name, allow_private_urls) as file:
            if not file.seek(0, io.SEEK_END):
                raise AudioError(f"{name} is empty: it holds no bytes.")
            if _is_cut_off(file, name):
                raise AudioError(f"{name} is cut off: it ends before its own header says. Copy or download it again.")
            file.seek(0)
            head = file.read(0x10000)
            file.seek(0)
            with soundfile.SoundFile(_Seekable(file)) as audio:
                rate = _checked_rate(audio.samplerate, name)
                yield rate
                missing = audio.frames
                length = min(BLOCK_S * rate, BLOCK_VALUES // audio.channels)
                while len(piece := audio.read(length, dtype="float32", always_2d=True)):
                    missing -= len(piece)
                    with np.errstate(all="ignore"):  # what is not finite is refused by who takes the piece
                        piece = piece.mean(axis=1)
                    yield piece
                if missing > MOST_MISSING_S * rate and (b"Xing" in head or b"Info" in head):
                    raise AudioError(f"{name} is cut off: its last {missing / rate:.2f} s are missing.")
    except AudioError:
        raise
    except DownloadError as error:
        raise AudioError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it, a closed file
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise AudioError(f"{name} cannot be read: {reason}.") from error
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise AudioError(
            f"{name} cannot be decoded ({reason}). Whole wav, flac, ogg, opus, mp3 and aiff files are read; convert "
            "anything else first."
        ) from error


class _Seekable:
    """
    A file that stays where it is when a broken header sends libsndfile to a place before its beginning, where others
    raise and soundfile prints a traceback. It has no name: of .raw, soundfile takes one for samples without a header.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.tell, self.read = file, file.tell, file.read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError):
            return self.file.tell()


@contextmanager
def _opened(source: Any, name: str, allow_private_urls: bool) -> Iterator[BinaryIO]:
    """A seekable binary file of a path, URL, bytes or file object; a file object given stays open."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        with tempfile.TemporaryFile() as file:
            download(source, file, allow_private_urls)
            yield file
    elif isinstance(source, (str, os.PathLike)):
        if os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source):
            raise AudioError(f"{name} is no file but a device or a pipe, whose end nobody knows; give a file.")
        with open(source, "rb") as file:
            yield file
    elif hasattr(source, "read"):
        if isinstance(source.read(0), str):
            raise AudioError(f'{name} is open as text; open it with mode "rb".')
        yield source if hasattr(source, "seek") and source.seekable() else io.BytesIO(source.read())
    else:
        raise AudioError(
            f"{name} is no audio: give a path, a URL, bytes, a binary file object, an array, "
            'or a dict with "bytes", "path" or "array".'
        )


def _is_cut_off(file: BinaryIO, name: str) -> bool:
    """
    Whether a wav, aiff or ogg file lacks its end. libsndfile decodes what there is of those without a word; of flac
    it complains by itself, and an mp3 whose first frame counts the others (tag Xing or Info) shows it at its end.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    kind = file.read(4)
    if kind in (b"RIFF", b"FORM"):
        order: Literal["little", "big"] = "little" if kind == b"RIFF" else "big"
        position = 12
        for _ in range(MOST_CHUNKS):
            if position + 8 > size:
                return False
            file.seek(position)
            chunk, length = file.read(4), int.from_bytes(file.read(4), order)
            if chunk in (b"data", b"SSND"):  # written into a pipe, its length is unknown and given as the largest
                return length < 0x7FFFF000 and position + 8 + length > size
            position += 8 + length + length % 2
        raise AudioError(f"{name} cannot be decoded (over {MOST_CHUNKS:,} chunks and no samples); export it again.")
    if kind == b"OggS":
        file.seek(max(0, size - 0x10000))  # no page is longer
        page = file.read()
        page = page[page.rfind(b"OggS") :]
        header = 27 + int.from_bytes(page[26:27], "big")
        is_last = bool(int.from_bytes(page[5:6], "big") & 4)
        return not is_last or len(page) < header + sum(page[27:header])
    return False


def _resampled(pieces: Iterable[np.ndarray], rate: int, target: int) -> Iterator[np.ndarray]:
    """Resamples consecutive pieces as if they were one: no seam, whatever their lengths."""
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
