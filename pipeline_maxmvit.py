"""Any recording in, emotions out: reading audio, and the `audio-classification` pipeline of MaxMViT."""

import io
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, InvalidURL
from itertools import chain
from typing import Any, BinaryIO

import librosa
import numpy as np
import soundfile  # comes with librosa, whose wrappers fall back to FFmpeg or hand out stale memory on broken files
import torch
from transformers import AudioClassificationPipeline
from transformers.pipelines.base import ChunkPipeline

CLIP_S = 40  # up to here a recording is one clip (IEMOCAP's longest has 34 s), beyond it is answered window by window
WINDOW_S = 3.0
FRAME_S = 0.05  # a window is silent if none of its frames of this length is louder than `silence_db`
SILENCE = "silence"
BLOCK_S = 30  # how much of a file is in memory at a time; whole seconds, so that blocks meet exactly at any two rates
MOST_MISSING_S = 0.1  # an mp3 may hold this much less than the tag in its first frame says and be whole


class AudioError(ValueError):
    """Audio that cannot be used; the message names the item, what is wrong with it and what would do."""


class MaxMViTAudioClassificationPipeline(AudioClassificationPipeline, ChunkPipeline):
    """
    Names the emotion of clips, and the emotions along recordings of any length.

    ```python
    >>> classify = pipeline("audio-classification", model="my/checkpoint", trust_remote_code=True)
    >>> classify("interview.mp3")
    [{"label": "happy", "score": 0.71}, ...]
    >>> classify("interview.mp3", window_s=3.0, hop_s=1.0)
    [{"start": 0.0, "end": 3.0, "label": "happy", "scores": {"happy": 0.74, ...}}, ...]
    ```

    Every parameter can be given when the pipeline is built and again, for one call, when it is called.

    Args:
        top_k (`int`, *optional*): Best labels to return; all by default.
        function_to_apply (`str`, *optional*): `"softmax"` (default), `"sigmoid"` or `"none"`.
        window_s (`float`, *optional*): Length of a window in seconds. Given, it asks for a timeline. None reads any
            recording as one clip, the whole of it in memory. By default recordings of up to 40 s are one clip, and
            longer ones are answered by the mean of their windows of 3 s.
        hop_s (`float`, *optional*, defaults to `window_s`): Seconds from one window's start to the next, at most
            `window_s`. One more window ends where the recording ends, so that nothing is left out.
        timeline (`bool`, *optional*): True for the timeline, False for one answer (the mean of the windows' scores).
        smooth (`int`, *optional*, defaults to 1): Each window of a timeline gets the mean scores of this odd number of
            windows around it.
        silence_db (`float`, *optional*, defaults to -60): Windows without 50 ms louder than this (RMS, dB below full
            scale) are labelled "silence", with no scores, and are not classified. None classifies every window.
            A clip taken as one is always classified.
        sampling_rate (`int`, *optional*): Of arrays that come without their own; by default the model's.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` answers `{"error": message}` to input that cannot
            be used, and goes on.
        batch_size (`int`, *optional*, defaults to 8): Clips or windows in one forward; windows of several recordings
            share one.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"top_k": None, "batch_size": 8, **kwargs})

    def check_model_type(self, supported_models: Any) -> None:
        """Does nothing: transformers' list of audio classifiers cannot hold a checkpoint that brings its own code."""

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: One source, or a list, tuple, dataset column, dataset or generator of sources. A source is a path,
                a URL, the bytes of a file, a binary file object, a `(T,)` or `(channels, T)` array or tensor, a dict
                as `datasets` yields it, or a `datasets` audio decoder.
            kwargs: The parameters of the class.

        Returns:
            For a source its `[{"label", "score"}, ...]`, best first, or its timeline, `[{"start", "end", "label",
            "scores"}, ...]` in seconds. For several a list of those; for a generator or dataset an iterator that reads
            as it is asked.

        Raises:
            AudioError: Names the source that cannot be used.
        """
        if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes, bytearray, memoryview)):
            return list(super().__call__((source for source in inputs), **kwargs))
        if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):
            inputs = (source for source in inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        for name, value in given.items():
            if name not in _PARAMETERS:
                raise TypeError(f"{name!r} is not a parameter of this pipeline; it has {', '.join(_PARAMETERS)}.")
            _, fits, wanted = _PARAMETERS[name]
            if not (fits(value) if value is not None else name not in _NEVER_NONE):
                raise ValueError(f"{name}={value!r} does not work; {name} is {wanted}.")
        steps = ({}, {}, {})
        for name, value in given.items():
            steps[_PARAMETERS[name][0]][name] = value
        return steps

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        """Yields the answer to each input in turn. Batches run across recordings; `num_workers` is not used."""
        if "window_s" in preprocess_params:
            timeline = preprocess_params["window_s"] is not None
            postprocess_params = {"timeline": timeline, **postprocess_params}
        elif postprocess_params.get("timeline"):
            preprocess_params = {**preprocess_params, "window_s": WINDOW_S}
        waiting: list[dict] = []  # recordings not answered yet, the oldest first
        batch: list[dict] = []  # windows of theirs that are not classified yet
        for index, source in enumerate(inputs):
            recording = {"windows": [], "error": None}
            waiting.append(recording)
            try:
                for window in self.preprocess(source, **preprocess_params):
                    recording["windows"].append(window)
                    if window["waveform"] is not None:
                        batch.append(window)
                    if len(batch) == batch_size:
                        self._classify(batch)
                        batch = []
            except AudioError as error:
                has_name = isinstance(source, (str, os.PathLike))
                recording["error"] = str(error) if has_name else f"Input {index}: {error}"
                if forward_params.get("on_error", "raise") == "raise":
                    raise AudioError(recording["error"]) from error
            while waiting and all(window.get("waveform") is None for window in waiting[0]["windows"]):
                yield self.postprocess(waiting.pop(0), **postprocess_params)
        if batch:
            self._classify(batch)
        for recording in waiting:
            yield self.postprocess(recording, **postprocess_params)

    def preprocess(
        self,
        source: Any,
        window_s: float | str | None = "auto",
        hop_s: float | None = None,
        silence_db: float | None = -60.0,
        sampling_rate: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the windows of a recording, `{"start", "end", "waveform"}`; a silent one has no waveform."""
        rate = self.feature_extractor.sampling_rate
        if sampling_rate is not None and isinstance(source, (np.ndarray, torch.Tensor)):
            source = {"array": source, "sampling_rate": sampling_rate}
        pieces = stream_audio(source, rate)
        if window_s == "auto":
            begin = list(_until(pieces, CLIP_S * rate))
            is_clip = sum(map(len, begin)) <= CLIP_S * rate
            pieces, window_s = chain(begin, pieces), None if is_clip else WINDOW_S
        if window_s is None:
            waveform = np.concatenate(list(pieces))
            yield {"start": 0.0, "end": len(waveform) / rate, "waveform": waveform}
            return
        hop_s = window_s if hop_s is None else hop_s
        if hop_s > window_s:
            raise ValueError(f"hop_s={hop_s} leaves out audio between the windows of window_s={window_s}; lessen it.")
        for start, waveform in _windows(pieces, window_s * rate, hop_s * rate):
            is_silent = silence_db is not None and loudness(waveform, rate) < silence_db
            end = (start + len(waveform)) / rate
            yield {"start": start / rate, "end": end, "waveform": None if is_silent else waveform}

    def _classify(self, windows: list[dict[str, Any]]) -> None:
        """Puts the logits of one batch of windows in the place of their waveforms."""
        logits = self.forward([window.pop("waveform") for window in windows]).logits
        for window, row in zip(windows, logits.float(), strict=True):
            window["logits"] = row

    def _forward(self, waveforms: list[np.ndarray]) -> Any:
        rate = self.feature_extractor.sampling_rate
        images = self.feature_extractor(waveforms, sampling_rate=rate, return_tensors="pt", device=self.device)
        return self.model(**images.to(self.device))

    def postprocess(
        self,
        recording: dict[str, Any],
        top_k: int | None = None,
        function_to_apply: str | None = None,
        timeline: bool = False,
        smooth: int = 1,
    ) -> Any:
        """The answer to one recording, from its windows with their logits."""
        if recording["error"]:
            return {"error": recording["error"]}
        windows = recording["windows"]
        labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        scores = [self._scores(window, function_to_apply) for window in windows]
        if not timeline:
            classified = [row for row in scores if row is not None]
            if not classified:
                return [{"label": SILENCE, "score": 1.0}]
            mean = np.mean(classified, axis=0)
            best = np.argsort(-mean, kind="stable")[:top_k]
            return [{"label": labels[index], "score": float(mean[index])} for index in best]
        rows = []
        for index, window in enumerate(windows):
            row = {"start": round(window["start"], 3), "end": round(window["end"], 3), "label": SILENCE, "scores": {}}
            if scores[index] is not None:
                around = scores[max(0, index - smooth // 2) : index + smooth // 2 + 1]
                mean = np.mean([other for other in around if other is not None], axis=0)
                row["label"] = labels[int(mean.argmax())]
                row["scores"] = dict(zip(labels, mean.tolist(), strict=True))
            rows.append(row)
        return rows

    def _scores(self, window: dict[str, Any], function_to_apply: str | None) -> np.ndarray | None:
        """`(num_labels,)` scores of a window, None of a silent one."""
        if "logits" not in window:
            return None
        if function_to_apply is None:
            by_problem = {"regression": "none", "multi_label_classification": "sigmoid"}
            function_to_apply = by_problem.get(self.model.config.problem_type, "softmax")
        apply = {"softmax": lambda logits: logits.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda logits: logits}
        return apply[function_to_apply](window["logits"]).numpy()


def _is_number(value: Any, low: float = 0.0) -> bool:
    return isinstance(value, (int, float)) and low < value < float("inf")


# name: (the step that takes it: 0 preprocess, 1 forward, 2 postprocess; what fits besides None; the same in words)
_PARAMETERS = {
    "window_s": (0, _is_number, "a length in seconds, or None for one clip"),
    "hop_s": (0, _is_number, "a length in seconds, or None for the window's"),
    "silence_db": (0, lambda value: _is_number(value, -float("inf")), "a level in dB below full scale, or None"),
    "sampling_rate": (0, _is_number, "a rate in Hz, or None for the model's"),
    "on_error": (1, lambda value: value in ("raise", "skip"), '"raise" or "skip"'),
    "top_k": (2, lambda value: isinstance(value, int) and value > 0, "a whole number from 1 on, or None for all"),
    "function_to_apply": (2, lambda value: value in ("softmax", "sigmoid", "none"), '"softmax", "sigmoid" or "none"'),
    "timeline": (2, lambda value: isinstance(value, bool), "True or False"),
    "smooth": (2, lambda value: isinstance(value, int) and value % 2 == 1 and value > 0, "an odd number of windows"),
}
_NEVER_NONE = ("on_error", "timeline", "smooth")


def loudness(waveform: np.ndarray, sampling_rate: int) -> float:
    """RMS level of the loudest 50 ms of a waveform `(T,)`, in dB relative to full scale; -200 if there is nothing."""
    length = max(1, min(len(waveform), round(FRAME_S * sampling_rate)))
    frames = waveform[: len(waveform) // length * length].reshape(-1, length)
    return float(10 * np.log10(np.square(frames).mean(axis=1).max(initial=0.0) + 1e-20))


def _until(pieces: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Pieces up to the one in which `length` samples are passed."""
    while length >= 0 and (piece := next(pieces, None)) is not None:
        length -= len(piece)
        yield piece


def _windows(pieces: Iterable[np.ndarray], length: float, hop: float) -> Iterator[tuple[int, np.ndarray]]:
    """
    First sample and samples of the windows over a recording that comes in pieces, one window every `hop` samples and,
    where that leaves an end over, one that ends with it. A recording shorter than a window is one window.
    """
    size = max(1, round(length))
    kept, first, index = np.zeros(0, np.float32), 0, 0  # the samples in reach, the first one's place, the next window
    for piece in pieces:
        kept = np.concatenate([kept, piece])
        while (start := round(index * hop)) + size <= first + len(kept):
            yield start, kept[start - first : start - first + size]
            index += 1
        passed = max(0, min(start, first + len(kept) - size) - first)
        kept, first = kept[passed:], first + passed
    end = first + len(kept)
    if index == 0 or round((index - 1) * hop) + size < end:
        start = max(0, end - size)
        yield start, kept[start - first :]


def read_audio(source: Any, sampling_rate: int) -> np.ndarray:
    """
    Reads a whole recording: wav, flac, ogg, opus, mp3 and whatever else libsndfile decodes, without FFmpeg.

    Args:
        source: A path, a URL, the bytes of a file, a binary file object, a dict as `datasets` yields it (`"bytes"` and
            `"path"`, or `"array"` or `"raw"` with its `"sampling_rate"`), a `datasets` audio decoder, or an array of
            shape `(T,)`, `(channels, T)` or `(T, channels)` (the shorter axis is the channels) at `sampling_rate`.
        sampling_rate (`int`): Of the answer, in Hz. Other rates are resampled (soxr, high quality).

    Returns:
        `np.ndarray` of shape `(T,)`: float32, the mean over the channels.

    Raises:
        AudioError: The source is missing, not audio, empty, cut off, or holds NaN or infinity.
    """
    return np.concatenate(list(stream_audio(source, sampling_rate)))


def stream_audio(source: Any, sampling_rate: int) -> Iterator[np.ndarray]:
    """Yields what `read_audio` returns in consecutive pieces of `BLOCK_S` seconds, so that memory stays flat."""
    name = describe(source)
    pieces, rate = _decoded(source, name, sampling_rate)
    yield from _resampled(_checked(pieces, name), rate, sampling_rate)


def describe(source: Any) -> str:
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


def _decoded(source: Any, name: str, sampling_rate: int) -> tuple[Iterator[np.ndarray], int]:
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
        return iter([_mono(source, name)]), sampling_rate
    pieces = _decoded_file(source, name)
    return pieces, next(pieces)


def _checked(pieces: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The pieces, once it is sure that they hold samples, and numbers only."""
    length = 0
    for piece in pieces:
        if not np.isfinite(piece).all():
            raise AudioError(f"{name} holds NaN or infinite samples; export it again or repair it first.")
        length += len(piece)
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
    if not is_number or not 1 <= rate < 2**31 or rate != int(rate):  # NaN is in no range
        raise AudioError(f"{name} has the sampling rate {rate!r}; give a whole number of samples a second.")
    return int(rate)


def _decoded_file(source: Any, name: str) -> Iterator[Any]:
    """First the rate of a file, then its mono pieces of `BLOCK_S` seconds."""
    try:
        with _opened(source, name) as file:
            if not file.seek(0, io.SEEK_END):
                raise AudioError(f"{name} is empty: it holds no bytes.")
            if _is_cut_off(file):
                raise AudioError(f"{name} is cut off: it ends before its own header says. Copy or download it again.")
            file.seek(0)
            head = file.read(0x10000)
            file.seek(0)
            with soundfile.SoundFile(file) as audio:
                yield audio.samplerate
                missing = audio.frames
                while len(piece := audio.read(BLOCK_S * audio.samplerate, dtype="float32", always_2d=True)):
                    missing -= len(piece)
                    yield piece.mean(axis=1)
                if missing > MOST_MISSING_S * audio.samplerate and (b"Xing" in head or b"Info" in head):
                    raise AudioError(f"{name} is cut off: its last {missing / audio.samplerate:.2f} s are missing.")
    except AudioError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a path with NUL in it, a closed file
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise AudioError(f"{name} cannot be read: {reason}.") from error
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: soundfile's answer to a name ending in .raw
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise AudioError(
            f"{name} cannot be decoded ({reason}). Whole wav, flac, ogg, opus, mp3 and aiff files are read; convert "
            "anything else first."
        ) from error


@contextmanager
def _opened(source: Any, name: str) -> Iterator[BinaryIO]:
    """A seekable binary file of a path, URL, bytes or file object; a file object given stays open."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        with tempfile.TemporaryFile() as file:
            _download(source, file)
            yield file
    elif isinstance(source, (str, os.PathLike)):
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


def _download(url: str, file: BinaryIO) -> None:
    """Writes what a URL holds to a file, all of it or an error."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            shutil.copyfileobj(answer, file)
            missing = getattr(answer, "length", None)  # what is left of the Content-Length
    except (InvalidURL, ValueError) as error:  # ValueError: brackets, a host name or letters that no URL can have
        raise AudioError(
            f"{url} is no valid URL ({error}); check it, and write spaces and letters beyond ASCII as %20 and so on."
        ) from error
    if missing:
        raise AudioError(f"{url} is cut off: {missing} bytes that the server announced did not come. Try again.")


def _is_cut_off(file: BinaryIO) -> bool:
    """
    Whether a wav, aiff or ogg file lacks its end. libsndfile decodes what there is of those without a word; of flac
    it complains by itself, and an mp3 whose first frame counts the others (tag Xing or Info) shows it at its end.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    kind = file.read(4)
    if kind in (b"RIFF", b"FORM"):
        order, position = ("little" if kind == b"RIFF" else "big"), 12
        while position + 8 <= size:
            file.seek(position)
            chunk, length = file.read(4), int.from_bytes(file.read(4), order)
            if chunk in (b"data", b"SSND"):  # written into a pipe, its length is unknown and given as the largest
                return length < 0x7FFFF000 and position + 8 + length > size
            position += 8 + length + length % 2
    elif kind == b"OggS":
        file.seek(max(0, size - 0x10000))  # no page is longer
        page = file.read()
        page = page[page.rfind(b"OggS") :]
        header = 27 + int.from_bytes(page[26:27], "big")
        is_last = bool(int.from_bytes(page[5:6], "big") & 4)
        return not is_last or len(page) < header + sum(page[27:header])
    return False


def _resampled(pieces: Iterator[np.ndarray], rate: int, target: int) -> Iterator[np.ndarray]:
    """
    Resamples consecutive pieces, each but the last a whole number of seconds long. Every piece is resampled with a
    second of its neighbours on either side, so that no seam is heard.
    """
    if rate == target:
        yield from pieces
        return
    nothing = np.zeros(0, np.float32)
    before, piece = nothing, next(pieces, nothing)
    while len(piece):
        after = next(pieces, nothing)
        around = np.concatenate([before, piece, after[:rate]])
        around = librosa.resample(around, orig_sr=rate, target_sr=target, res_type="soxr_hq")
        start = len(before) * target // rate
        yield around[start : start + -(-len(piece) * target // rate)]
        before, piece = piece[-rate:], after
