"""Audio-classification pipeline of MaxMViT-MLP: classifies recordings as a whole or along time."""

import hashlib
import json
import math
import os
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, islice, repeat
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from transformers import AudioClassificationPipeline
from transformers.pipelines.base import ChunkPipeline

try:
    from .audio_maxmvit import (
        HIGHEST_RATE,
        LONGEST_CLIP_S,
        LOWEST_RATE,
        ONE_ARRAY,
        AudioError,
        decode_audio,
        loudness,
        name_of,
        stream_audio,
        stream_chunks,
    )
    from .spectrograms_maxmvit import STEP_S, SpectrogramStream, twice
except ImportError:
    if "." in __name__:  # in a package: the error comes from within the sibling module
        raise
    from audio_maxmvit import (
        HIGHEST_RATE,
        LONGEST_CLIP_S,
        LOWEST_RATE,
        ONE_ARRAY,
        AudioError,
        decode_audio,
        loudness,
        name_of,
        stream_audio,
        stream_chunks,
    )
    from spectrograms_maxmvit import STEP_S, SpectrogramStream, twice


SHORTEST_CUT_S = 1.0  # shorter windows consist mostly of their ends, where cut and separate spectrograms differ
SHORTEST_WINDOW_S = 0.01  # of a window and of a hop
LIVE_STEP_S = 0.25  # seconds of a stream whose spectrograms are computed at a time
SHORTEST_SEGMENT_S = 0.4  # shorter segments are labelled as too short
ROUNDING_S = 0.05  # by which a segment may end after its recording: annotations are rounded, and codecs pad
SILENCE, UNCERTAIN, UNFAMILIAR, TOO_SHORT = "silence", "uncertain", "unfamiliar", "too short"


# ---- Speaker profiles ----

PROFILE_KIND = "maxmvit speaker profile"
RELEVANCE = 4.0
CLIPS_FOR_SPREAD = 8  # the spread of fewer clips is not reliable
SPREAD_MARGIN = 1.1  # times the largest spread of a training speaker: beyond it, there may be several speakers


@dataclass(frozen=True, eq=False)
class SpeakerProfile:
    """
    Describes a voice, or recording conditions, by the mean features of clips without labels.

    Args:
        mean, deviation (`np.ndarray` of shape `(num_features,)`): Mean and standard deviation of the pooled features
            of the clips, float32.
        clips (`int`): Number of clips, or of windows of longer recordings, without silent ones.
        seconds (`float`): Their total length.
        relevance (`float`): Number of clips that the mean of the training clips counts for.
        model (`str`): Digest of the weights that computed the features, from [`features_digest`].
    """

    mean: np.ndarray
    deviation: np.ndarray
    clips: int
    seconds: float
    relevance: float
    model: str

    def shift(self, population: np.ndarray) -> np.ndarray:
        """
        Returns the `feature_shift` of the model, `(num_features,)`: the clips' mean minus that of the training clips,
        `population`, times n / (n + relevance) for n clips, as in the MAP adaptation of a mean (Reynolds et al. 2000,
        doi 10.1006/dspr.1999.0361).
        """
        return map_shift(self.mean, self.clips, population, self.relevance)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the profile as JSON, and replaces an existing file only when the new one is complete."""
        content = {"kind": PROFILE_KIND, **vars(self)}
        content |= {name: getattr(self, name).tolist() for name in ("mean", "deviation")}
        unfinished = f"{os.fspath(path)}.{secrets.token_hex(4)}"
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SpeakerProfile":
        """
        Reads a profile.

        Raises:
            ValueError: The file is not a speaker profile, or is incomplete.
            OSError: The file cannot be read.
        """
        remedy = "Create it again from the recordings, by pipeline.enroll or predict_ser.py --enroll."
        with open(path, encoding="utf-8") as file:
            try:
                content = json.load(file)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)} is not a complete speaker profile ({error}). {remedy}") from error
        if not isinstance(content, dict) or content.pop("kind", None) != PROFILE_KIND:
            raise ValueError(f"{os.fspath(path)} is not a speaker profile. {remedy}")
        try:
            for name in ("mean", "deviation"):
                content[name] = np.array(content[name], dtype=np.float32)
            profile = cls(**content)
            profile._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is a broken speaker profile ({error}). {remedy}") from error
        return profile

    def _check(self) -> None:
        for values in (self.mean, self.deviation):
            if values.ndim != 1 or values.shape != self.mean.shape or not np.isfinite(values).all():
                raise ValueError("mean and deviation are not two lists of equally many finite numbers")
        if not (_is_number(self.clips, 1, kind=Integral) and _is_number(self.seconds, 0)):
            raise ValueError(f"clips={self.clips!r} and seconds={self.seconds!r} are not a count and a length")
        check_relevance(self.relevance)
        if not isinstance(self.model, str):
            raise ValueError(f"model={self.model!r} is not a digest")

    @classmethod
    def joined(cls, profiles: Sequence["SpeakerProfile"]) -> "SpeakerProfile":
        """Returns the profile of the clips of all `profiles`, which must be of one model."""
        counts = np.array([profile.clips for profile in profiles], dtype=np.float64)
        shares = counts / counts.sum()
        means, deviations = (
            np.stack([getattr(profile, name) for profile in profiles]).astype(np.float64)
            for name in ("mean", "deviation")
        )
        mean = shares @ means
        variance = shares @ (deviations**2 + (means - mean) ** 2)
        return replace(
            profiles[0],
            mean=mean.astype(np.float32),
            deviation=np.sqrt(variance).astype(np.float32),
            clips=int(counts.sum()),
            seconds=sum(profile.seconds for profile in profiles),
        )


def map_shift(mean: np.ndarray, clips: int, population: np.ndarray, relevance: float) -> np.ndarray:
    """Returns the mean features of `clips` clips minus those of the training clips, times clips / (clips + relevance),
    `(num_features,)`."""
    return (mean - population) * (clips / (clips + relevance)) if clips else np.zeros_like(population)


def check_relevance(relevance: Any) -> None:
    """Raises `ValueError` unless `relevance` is a number of at least 0."""
    if not _is_number(relevance, 0):
        raise ValueError(
            f"relevance={relevance!r} does not work: it is the number of clips that the mean of the training clips "
            "counts for, 0 or more."
        )


def features_digest(model: Any) -> str:
    """Returns a hash of the weights of all branches, which compute the pooled features."""
    digest = hashlib.sha256()
    for name, tensor in model.base_model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256-{digest.hexdigest()}"


def population_mean(model: Any) -> np.ndarray:
    """
    Returns the mean of the pooled features of the training clips, `(num_features,)`, float32.

    Raises:
        ValueError: The model does not store it.
    """
    config = model.config
    if config.uses_tokens:
        raise ValueError(
            f"No speaker can be enrolled with fusion={config.fusion!r} and head={config.head!r}, which read feature "
            "maps that a profile does not change: use a model with another fusion and head."
        )
    if model.base_model.feature_statistics is None:
        raise ValueError(
            f"{model.name_or_path!r} keeps no statistics of the features of its training clips, which enrolment "
            "needs: train it again with this version."
        )
    return model.base_model.feature_statistics.mean.float().cpu().numpy()


# ---- The pipeline ----


class MaxMViTAudioClassificationPipeline(AudioClassificationPipeline, ChunkPipeline):
    """
    Classifies the emotion of clips, and the emotions along recordings of any length.

    ```python
    >>> classify = pipeline("audio-classification", model="my/checkpoint", trust_remote_code=True)
    >>> classify("interview.mp3")
    [{"label": "happy", "score": 0.71}, ...]
    >>> classify("interview.mp3", window_s=3.0, hop_s=1.0)
    [{"start": 0.0, "end": 3.0, "label": "happy", "scores": {"happy": 0.74, ...}}, ...]
    >>> classify("interview.mp3", segments=[(0.4, 2.9, "anna"), (3.1, 7.0, "ben")])
    [{"start": 0.4, "end": 2.9, "speaker": "anna", "label": "happy", "scores": {"happy": 0.74, ...}}, ...]
    ```

    A model with dimensions (`config.dimensions`) returns `[{"label": "arousal", "score": 0.62}, ...]`, in the order of
    the configuration and after the classes if it has any. 0 and 1 are the ends of the rating scale, which estimates
    may exceed slightly. `top_k`, `function_to_apply`, `min_score` and `only` apply to classes. Without classes, the
    `label` of a row is None.

    Overlapping windows of 1 s or more are cut out of spectrograms that are computed once along the recording, if the
    extractor's backend is `"torch"`; otherwise, the spectrograms of each window are computed from its own waveform.
    The two differ near the ends of a window: a spectrogram that is cut out includes the sound beyond them, where that
    of a separate waveform has silence. Images of 3 s windows of voices differ by 0.02 of their range on average in the
    CQT and 0.004 in the Mel spectrogram, and by 0.04 at most.

    Every parameter can be set when the pipeline is created, and overridden for one call.

    Args:
        top_k (`int`, *optional*): Number of best labels to return; all by default.
        function_to_apply (`str`, *optional*): `"softmax"` (default) of the logits over the configuration's
            `temperature`, `"sigmoid"` or `"none"`.
        window_s (`float` or `str`, *optional*, defaults to `"auto"`): Length of a window in seconds, 0.01 to 600. A
            number returns a timeline. `"auto"` classifies a recording as one clip if it is at most as long as the
            longest training clip (the configuration's `max_clip_s`), and otherwise returns the mean over consecutive
            windows of the configuration's `window_s`. None classifies any recording as one clip, which is held in
            memory as a whole, but models are unreliable on clips that are much longer than those of their training.
        hop_s (`float`, *optional*, defaults to `window_s`): Seconds from one window's start to the next, from 0.01 to
            `window_s`. If the last window would leave out the end of the recording, one more window covers it.
        timeline (`bool`, *optional*): True for the timeline, False for one prediction (the mean of the windows'
            scores). With `window_s="auto"`, the timeline consists of the windows whose mean is the prediction.
        smooth (`int`, *optional*, defaults to 1): Odd number of windows, centred on each window of a timeline, whose
            scores are averaged.
        min_score (`float`, *optional*): Minimum of the best score, from 0 to 1. Below it, the prediction is
            "uncertain", with that best score, followed by the labels with their scores; a window of a timeline keeps
            its scores. `selective` in the `metrics.json` of a run lists how many predictions each minimum rejects and
            how good the others are.
        only (`list[str]`, *optional*): At least two labels of the model, to which predictions are restricted: the
            scores are those of a softmax over their logits, that is, divided by their sum. Rows have the key `only`.
        segments (`list`, *optional*; for a call): Parts of the recording to classify, such as speaker turns:
            `(start, end[, speaker[, text]])`, or dicts with `start`, `end` (seconds) and any other keys, which are
            kept. They may overlap, in any order. For several recordings, an iterable with one such list for each.
            Each segment is classified like a recording of its own, without the sound around it, and has one row:
            its keys, `label` and `scores` (the mean over windows if it is long). If a number is given as `window_s`,
            the row of a segment longer than that also has its timeline, `windows`. A segment shorter than 0.4 s is
            labelled "too short", which takes precedence over other labels; its scores are kept. A segment that ends
            more than 0.05 s after the recording raises an error, which names its `place` (a string, such as
            "turns.csv, line 3") if its dict has this key.
        speaker ([`SpeakerProfile`] or path, *optional*): Profile from [`~MaxMViTAudioClassificationPipeline.enroll`]:
            the recordings are classified relative to that voice. Or an iterable with one profile, path or None for
            each recording. With `segments`, a dict (or one for each recording) of profiles by the segments' speakers;
            segments of other speakers are classified without one.
        min_familiarity (`float`, *optional*): Minimum familiarity of a recording, from 0 to 1: the share of
            training-like clips that lie farther from the training data than the recording does (the mean over
            windows). Below it, the prediction is "unfamiliar", with the best score, followed by the labels with their
            scores, and so is the label of a window of a timeline; "unfamiliar" takes precedence over "uncertain". With
            any number, rows have `familiarity`; 0 rejects nothing. Needs a checkpoint whose configuration has
            `familiarity`.
        silence_db (`float`, *optional*, defaults to -60): Level in dB relative to full scale. Clips and windows in
            which no 50 ms are louder (RMS) are labelled "silence", without scores, and are not classified. None
            classifies all.
        sampling_rate (`int`, *optional*): Sampling rate of arrays that come without one; by default the model's.
        max_s (`float`, *optional*): Maximum length of a recording in seconds, None for any length. By default 600 for
            a recording that is classified as one clip (`window_s=None`), and any length for windows.
        allow_private_urls (`bool`, *optional*, defaults to False): Whether URLs may point to the network of the
            machine that runs the pipeline (loopback, private and link-local addresses). Do not allow it for URLs from
            untrusted users.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` returns `{"error": message}` for input that
            cannot be used, or whose scores are not finite, and continues.
        batch_size (`int`, *optional*, defaults to 8): Number of clips or windows in one forward pass; windows of
            several recordings may share one.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        if "segments" in kwargs:
            raise TypeError("segments belong to a recording: give them in its call, not when creating the pipeline.")
        super().__init__(*args, **{"top_k": None, "batch_size": 8, **kwargs})
        if "speech" in self.model.config.branch_names and self.feature_extractor.speech_processor is None:
            raise ValueError(
                "the model has a speech encoder, but speech_processor of its feature extractor, which prepares its "
                "inputs, is None: restore preprocessor_config.json."
            )

    def check_model_type(self, supported_models: Any) -> None:
        """
        Refuses a checkpoint that was saved without its head, which every load would initialise at random. This
        replaces transformers' check, whose list of audio classifiers cannot contain a model that comes with its code.
        """
        saved = self.model.config.architectures
        if saved and type(self.model).__name__ not in saved:
            raise ValueError(
                f"{self.model.name_or_path!r} was saved as {', '.join(saved)}, without the head of "
                f"{type(self.model).__name__}: its predictions would be random. Name a checkpoint that was saved with "
                "its head."
            )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """
        Classifies one or several recordings.

        Args:
            inputs: One source, or several: a list, tuple, generator, column of a table (pandas) or of a dataset
                (`datasets`, read from its bytes, without torchcodec), or a dataset with one audio column. A source is
                a path, a URL, the bytes of a file, a binary file object, a `(T,)` or `(channels, T)` array or tensor,
                a dict as `datasets` yields it, or a `datasets` audio decoder.
            kwargs: The parameters of the class.

        Returns:
            For one source `[{"label", "score"}, ...]`, best first, or its timeline, `[{"start", "end", "label",
            "scores"}, ...]` in seconds, or with `segments` a row for each segment, in their order. For several
            sources a list of these; for a generator or dataset an iterator that reads its input lazily.

        Raises:
            AudioError: Names the source that cannot be used.
            FloatingPointError: Names the source for which the model's scores are not finite.
        """
        inputs = _undecoded(inputs)
        if _is_one_source(inputs):
            if kwargs.get("segments") is not None:
                kwargs["segments"] = [kwargs["segments"]]
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, Sequence):
            _refuse_numbers(inputs)
        sources = (source for source in inputs)  # a generator is read lazily
        is_stored = isinstance(inputs, (Sequence, np.ndarray)) or hasattr(inputs, "iloc")  # a column of pandas
        return list(super().__call__(sources, **kwargs)) if is_stored else super().__call__(sources, **kwargs)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        for name, value in given.items():
            if name not in _PARAMETERS:
                raise TypeError(f"{name!r} is not a parameter of this pipeline; it has {', '.join(_PARAMETERS)}.")
            _, fits, wanted = _PARAMETERS[name]
            if not (fits(value) if value is not None else name not in _NEVER_NONE):
                raise ValueError(f"{name}={value!r} does not work; {name} must be {wanted}.")
        steps: tuple[dict, dict, dict] = ({}, {}, {})
        for name, value in given.items():
            steps[_PARAMETERS[name][0]][name] = value
        if given.get("min_familiarity") is not None and not self.model.config.familiarity:
            raise ValueError(
                f"min_familiarity={given['min_familiarity']} needs a checkpoint that keeps the distribution of its "
                f"training data, which {self.model.name_or_path!r} does not: train it again with this version, or "
                "leave min_familiarity out."
            )
        if given.get("min_score") is not None and not self.model.config.num_classes:
            raise ValueError(f"min_score={given['min_score']} is for classes, and {self._without_classes()}")
        if given.get("only") is not None:
            self._check_labels(given["only"])
        return steps

    def _without_classes(self) -> str:
        labels = ", ".join(self.model.config.id2label.values())
        return f"this model has none: it estimates {labels}. Leave it out."

    def _check_labels(self, only: Sequence[str]) -> None:
        """Raises `ValueError` unless `only` holds at least two labels of the model."""
        config = self.model.config
        labels = list(config.id2label.values())[: config.num_classes]
        if not labels:
            raise ValueError(f"only={list(only)!r} is for classes, and {self._without_classes()}")
        if unknown := [label for label in only if label not in labels]:
            raise ValueError(
                f"only={list(only)!r} does not work: the model has no label {unknown[0]!r}; it has "
                f"{', '.join(labels)}."
            )
        if len({*only}) < 2:
            raise ValueError(f"only={list(only)!r} does not work: it must contain at least two labels.")

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        """Yields the prediction for each input in turn. A batch may span recordings; `num_workers` is not used."""
        if "window_s" in preprocess_params:
            timeline = preprocess_params["window_s"] not in (None, "auto")
            postprocess_params = {"timeline": timeline, **postprocess_params}
        on_error = forward_params.get("on_error", "raise")
        shifts = self._shifts(forward_params.get("speaker"))
        segment_lists = _segment_lists(forward_params.get("segments"))
        waiting: list[dict] = []  # recordings of which some windows are not classified yet, the oldest first
        batch: list[dict] = []  # windows for the next forward pass
        for index, source in enumerate(inputs):
            has_name = isinstance(source, (str, os.PathLike))
            name = name_of(source) if has_name else f"Input {index}"
            recording: dict[str, Any] = {"name": name, "windows": [], "error": None}
            waiting.append(recording)
            try:
                shift = next(shifts)
                segments = recording["segments"] = next(segment_lists)
                if isinstance(shift, Mapping) and segments is None:
                    raise ValueError("speaker gives profiles by name, which needs segments with speakers.")
                for window in self.preprocess(source, **preprocess_params, segments=segments):
                    recording["windows"].append(window)
                    window["shift"] = shift
                    if isinstance(shift, Mapping) and segments is not None:
                        window["shift"] = shift.get(segments[window["segment"]].get("speaker"))
                    if window["sound"] is not None:
                        batch.append(window)
                    if len(batch) == batch_size:
                        self._classify(batch)
                        batch = []
            except AudioError as error:
                recording["error"] = str(error) if has_name else f"{recording['name']}: {error}"
                if on_error == "raise":
                    raise AudioError(recording["error"]) from error
            while waiting and all(window.get("sound") is None for window in waiting[0]["windows"]):
                yield self.postprocess(_checked(waiting.pop(0), on_error), **postprocess_params)
        if batch:
            self._classify(batch)
        for recording in waiting:
            yield self.postprocess(_checked(recording, on_error), **postprocess_params)

    def preprocess(
        self,
        source: Any,
        window_s: float | str | None = "auto",
        hop_s: float | None = None,
        silence_db: float | None = -60.0,
        sampling_rate: int | None = None,
        max_s: float | str | None = "auto",
        allow_private_urls: bool = False,
        segments: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields the windows of a recording, `{"start", "end", "sound"}`; the sound is a waveform or its spectrograms,
        or None for a silent window. With segments, these are the windows of each, which have its index, `segment`."""
        rate = self.feature_extractor.sampling_rate
        if sampling_rate is not None and isinstance(source, (np.ndarray, torch.Tensor)):
            source = {"array": source, "sampling_rate": sampling_rate}
        longest_s = max_s
        if isinstance(longest_s, str):  # "auto"
            longest_s = LONGEST_CLIP_S if window_s is None else None
        if segments is None:
            pieces = stream_audio(source, rate, max_s=longest_s, allow_private_urls=allow_private_urls)
            yield from self._windows_along(pieces, window_s, hop_s, silence_db)
            return
        total_s = None if isinstance(max_s, str) else max_s
        recording, own_rate = decode_audio(source, rate, max_s=total_s, allow_private_urls=allow_private_urls)
        name = name_of(source)
        for index, clip in _cut(recording, own_rate, segments, name):
            if not len(clip):
                yield {"start": segments[index]["start"], "end": segments[index]["end"], "sound": None,
                       "segment": index}  # fmt: skip
                continue
            # Since the segment is cut before resampling, it gives the same result as a file of its own.
            clip_name = f"{name}, {_place(segments[index], index)}"
            own = {"path": clip_name, "array": clip, "sampling_rate": own_rate}
            for window in self._windows_along(stream_audio(own, rate, max_s=longest_s), window_s, hop_s, silence_db):
                begin = segments[index]["start"]
                yield window | {"start": begin + window["start"], "end": begin + window["end"], "segment": index}

    def _windows_along(
        self,
        pieces: Iterator[np.ndarray],
        window_s: float | str | None,
        hop_s: float | None,
        silence_db: float | None,
        step_s: float = STEP_S,
    ) -> Iterator[dict[str, Any]]:
        """Yields the windows of a recording that arrives in pieces at the model's rate; see `preprocess`."""
        rate = self.feature_extractor.sampling_rate
        if isinstance(window_s, str):  # "auto"
            longest = math.ceil(self.model.config.max_clip_s * rate)
            begin = list(_until(pieces, longest))
            is_clip = sum(map(len, begin)) <= longest
            pieces, window_s = chain(begin, pieces), (None if is_clip else self.model.config.window_s)
        if window_s is None:
            waveform = np.concatenate(list(pieces))
            is_silent = silence_db is not None and loudness(waveform, rate) < silence_db
            yield {"start": 0.0, "end": len(waveform) / rate, "sound": None if is_silent else waveform}
            return
        hop_s = window_s if hop_s is None else hop_s
        if hop_s > window_s:
            raise ValueError(f"hop_s={hop_s} leaves out audio between the windows of window_s={window_s}; reduce it.")
        frames = None
        if hop_s < window_s and window_s >= SHORTEST_CUT_S and self.feature_extractor.backend == "torch":
            pieces, again = twice(pieces)
            frames = SpectrogramStream(again, self.feature_extractor, self.device, step_s)
        for start, waveform in _windows(pieces, window_s * rate, hop_s * rate):
            sound = frames.cut(start, len(waveform)) if frames else waveform  # silent windows too, to go on in order
            is_silent = silence_db is not None and loudness(waveform, rate) < silence_db
            end = (start + len(waveform)) / rate
            yield {"start": start / rate, "end": end, "sound": None if is_silent else sound}

    def _classify(self, windows: list[dict[str, Any]]) -> None:
        """Replaces the sounds of one batch of windows by their logits, and their familiarity if any."""
        shifts = [window.pop("shift") for window in windows]
        known = next((shift for shift in shifts if shift is not None), None)
        others: dict[str, Any] = {}
        if known is not None:
            blank = torch.zeros_like(known)
            others["feature_shift"] = torch.stack([blank if shift is None else shift for shift in shifts])
        outputs = self.forward([window.pop("sound") for window in windows], **others)
        for window, row in zip(windows, outputs.logits.float(), strict=True):
            window["logits"] = row
        if "familiarity" in outputs:
            for window, familiarity in zip(windows, outputs["familiarity"].tolist(), strict=True):
                window["familiarity"] = familiarity

    def _forward(
        self,
        sounds: Sequence[np.ndarray | dict[str, torch.Tensor]],
        feature_shift: torch.Tensor | None = None,
        only_features: bool = False,
    ) -> Any:
        extractor = self.feature_extractor
        waveforms = [sound for sound in sounds if not isinstance(sound, dict)]
        computed = iter(extractor.spectrograms(waveforms, device=self.device) if waveforms else [])
        spectrograms = [sound if isinstance(sound, dict) else next(computed) for sound in sounds]
        images = extractor.images(spectrograms, self.model.config.image_names)
        inputs = {name: extractor.normalize(image, name.removesuffix("_values")) for name, image in images.items()}
        inputs |= {name: value.to(self.device) for name, value in extractor.waveform_inputs(spectrograms).items()}
        if only_features:
            return self.model.base_model(**inputs)
        return self.model(**inputs) if feature_shift is None else self.model(**inputs, feature_shift=feature_shift)

    def stream(
        self,
        chunks: Iterable[Any],
        sampling_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        **kwargs: Any,
    ) -> Iterator[dict[str, Any]]:
        """
        Classifies a recording while it arrives, and yields a row for each window once it is complete. The rows are
        those of a call for the whole recording with the same windows.

        Overlapping windows of 1 s or more (with the extractor's backend `"torch"`) are cut out of spectrograms that
        include the sound after a window, so that their rows come about 0.8 s later; others come at once.

        Args:
            chunks: Iterable of arrays or tensors of any lengths, of the shape `(T,)` or `(T, channels)`: floats in
                [-1, 1], or int16. Only as much is read as the next row needs.
            sampling_rate (`int`, *optional*): Rate of the chunks in Hz; by default the model's.
            window_s (`float`, *optional*): Length of a window in seconds; by default the configuration's `window_s`.
            hop_s (`float`, *optional*, defaults to `window_s`): Seconds from one window's start to the next.
            kwargs: `silence_db`, `speaker` (a profile), `function_to_apply`, `min_score`, `min_familiarity`, `only`,
                as for the class.

        Returns:
            Iterator over `{"start", "end", "label", "scores"}`, in seconds from the first sample.

        Raises:
            AudioError: A chunk cannot be used, or there are no samples.
            FloatingPointError: The scores of the model are not finite.
        """
        allowed = ("silence_db", "speaker", "function_to_apply", "min_score", "min_familiarity", "only")
        if others := [name for name in kwargs if name not in allowed]:
            raise TypeError(f"stream takes no {', '.join(others)}; it has {', '.join(allowed)}.")
        rate = self.feature_extractor.sampling_rate
        given = {"window_s": self.model.config.window_s if window_s is None else window_s, "hop_s": hop_s}
        given |= {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        preprocess_params, forward_params, postprocess_params = self._sanitize_parameters(**given, **kwargs)
        if not _is_window(given["window_s"]):
            raise ValueError(f"window_s={window_s!r} does not work; a stream needs windows of 0.01 to 600 seconds.")
        preprocess_params = {**self._preprocess_params, **preprocess_params}
        postprocess_params = {**self._postprocess_params, **postprocess_params, "timeline": True}
        if postprocess_params.get("smooth", 1) != 1:
            raise ValueError("smooth averages over later windows, which a stream does not have: leave it out.")
        shift = self.shift_of({**self._forward_params, **forward_params}.get("speaker"))
        pieces = stream_chunks(chunks, preprocess_params.get("sampling_rate") or rate, rate)
        silence_db = preprocess_params.get("silence_db", -60.0)
        windows = self._windows_along(pieces, given["window_s"], hop_s, silence_db, LIVE_STEP_S)
        return self._rows_of(windows, shift, postprocess_params)

    def _rows_of(
        self, windows: Iterable[dict[str, Any]], shift: torch.Tensor | None, postprocess_params: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        for window in windows:
            if window["sound"] is not None:
                window["shift"] = shift
                self._classify([window])
            recording = {"name": "The stream", "windows": [window], "error": None}
            yield from self.postprocess(_checked(recording, "raise"), **postprocess_params)

    def enroll(
        self, recordings: Any, relevance: float = RELEVANCE, several_speakers: bool = False, **kwargs: Any
    ) -> SpeakerProfile:
        """
        Computes the profile of one speaker, or of recording conditions, from recordings without labels.

        What the recordings have in common is attributed to the voice, and removed from its later recordings. So the
        recordings must be of several emotions, in about the proportions of ordinary speech: if they are all of one
        emotion, that emotion is removed too.

        Args:
            recordings: One source or several, as for a call. Each window of a recording longer than the training
                clips counts as a clip; silent ones are left out.
            relevance (`float`, defaults to 4): Number of clips that the mean of the training clips counts for. 0 uses
                the mean of the recordings as it is, which a few clips of one emotion can bias.
            several_speakers (`bool`, defaults to False): True for a profile of recording conditions, which suppresses
                the warning that the clips may be of several speakers.
            kwargs: The parameters of the class for reading recordings (`window_s`, `silence_db`, `sampling_rate`,
                `max_s`, `allow_private_urls`); `segments`: only these are used, without those shorter than 0.4 s; and
                `on_error`: `"skip"` leaves out recordings that cannot be read.

        Raises:
            AudioError: A recording, which the message names, cannot be used; or all of them are silent.
            ValueError: The model stores no statistics of its training clips, its fusion or head reads feature maps, or
                the relevance is below 0.
            FloatingPointError: The features are not finite.
        """
        check_relevance(relevance)
        population_mean(self.model)
        preprocess_params, forward_params, others = self._sanitize_parameters(**kwargs)
        if others or "speaker" in forward_params:
            raise TypeError(f"enroll takes no {', '.join([*others, *forward_params])}: they apply to predictions.")
        preprocess_params = {**self._preprocess_params, **preprocess_params}
        preprocess_params.pop("hop_s", None)  # windows that overlap would count a clip several times
        on_error = {**self._forward_params, **forward_params}.get("on_error", "raise")
        inputs = _undecoded(recordings)
        if not _is_one_source(inputs) and isinstance(inputs, Sequence):
            _refuse_numbers(inputs)
        segments = forward_params.get("segments")
        if _is_one_source(inputs):
            inputs, segments = [inputs], None if segments is None else [segments]
        lists = _segment_lists(segments)
        count, seconds = 0, 0.0
        sums = torch.zeros(2, self.model.base_model.num_features, dtype=torch.float64)
        for batch in _batched(self._voiced(inputs, lists, on_error, preprocess_params), self._batch_size or 1):
            features = self.forward([window["sound"] for window in batch], only_features=True).pooler_output.double()
            count, seconds = count + len(batch), seconds + sum(window["end"] - window["start"] for window in batch)
            sums += torch.stack([features.sum(0), features.square().sum(0)])
        if not count:
            raise AudioError("No recording can be enrolled: all are silent, or cannot be read. Give some with speech.")
        if not sums.isfinite().all():
            raise FloatingPointError("The features of the recordings are not finite: the model's weights are broken.")
        mean, square = sums / count
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        profile = SpeakerProfile(
            mean.float().numpy(), deviation.float().numpy(), count, round(seconds, 3), float(relevance), self._digest
        )
        if not several_speakers and self.looks_like_several(profile):
            warnings.warn(
                f"The {count} clips differ more, in the features that distinguish speakers, than those of any "
                "training speaker: they may be of several speakers. Enroll each speaker separately.",
                stacklevel=2,
            )
        return profile

    def looks_like_several(self, profile: SpeakerProfile) -> bool:
        """Returns whether the clips of a profile differ more than those of any training speaker, in the features that
        distinguish speakers; False for fewer than 8 clips."""
        statistics = self.model.base_model.feature_statistics
        bound = SPREAD_MARGIN * float(statistics.largest_spread)
        return profile.clips >= CLIPS_FOR_SPREAD and 0 < bound < statistics.spread(torch.tensor(profile.deviation))

    def _voiced(
        self, sources: Iterable[Any], segment_lists: Iterator[Any], on_error: str, parameters: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yields the windows that are not silent of some recordings, or of their segments that are not too short."""
        for index, source in enumerate(sources):
            segments = next(segment_lists)
            if segments is not None:
                segments = [each for each in segments if not _is_short(each)]
            try:
                windows = self.preprocess(source, **parameters, segments=segments)
                yield from (each for each in windows if each["sound"] is not None)
            except AudioError as error:
                if on_error == "raise":
                    has_name = isinstance(source, (str, os.PathLike))
                    raise AudioError(str(error) if has_name else f"Input {index}: {error}") from error

    @cached_property
    def _digest(self) -> str:
        return features_digest(self.model)

    def _shifts(self, speaker: Any) -> Iterator[Any]:
        """Yields the shift of the features for each recording, or a dict of shifts by the names of speakers."""
        if speaker is None or _is_profile(speaker) or isinstance(speaker, Mapping):
            yield from repeat(self._shifts_of(speaker))
        for each in speaker or ():
            yield self._shifts_of(each)
        raise ValueError("speaker has fewer profiles than there are recordings: give one profile for each.")

    def _shifts_of(self, speaker: Any) -> Any:
        if isinstance(speaker, Mapping):
            return {name: self.shift_of(profile) for name, profile in speaker.items()}
        return self.shift_of(speaker)

    def shift_of(self, profile: Any) -> torch.Tensor | None:
        """
        Returns the shift of the features, `(num_features,)`, for a profile or the path of one; None without one.

        Raises:
            ValueError: It is not a profile, or is one of another model; or the model stores no statistics.
        """
        if profile is None:
            return None
        if not _is_profile(profile):
            raise ValueError(f"speaker={profile!r} does not work; it must be a SpeakerProfile, or the path of one.")
        name = "speaker: the profile"
        if isinstance(profile, (str, os.PathLike)):
            name, profile = os.fspath(profile), SpeakerProfile.load(profile)
        population = population_mean(self.model)
        if profile.model != self._digest:
            raise ValueError(
                f"{name} was made by another model, or by this one in another precision: enroll the speaker again."
            )
        return torch.from_numpy(profile.shift(population))

    def postprocess(
        self,
        recording: dict[str, Any],
        top_k: int | None = None,
        function_to_apply: str | None = None,
        timeline: bool = False,
        smooth: int = 1,
        min_score: float | None = None,
        min_familiarity: float | None = None,
        only: Sequence[str] | None = None,
    ) -> Any:
        """Returns the prediction for one recording, from its windows with their logits."""
        if recording["error"]:
            return {"error": recording["error"]}
        if recording.get("segments") is not None:
            options = {"function_to_apply": function_to_apply, "smooth": smooth, "min_score": min_score}
            return self._segment_rows(recording, timeline, **options, min_familiarity=min_familiarity, only=only)
        windows = recording["windows"]
        labels = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        is_class = [index < self.model.config.num_classes for index in range(len(labels))]
        kept = [i for i, label in enumerate(labels) if only is None or label in only or not is_class[i]]
        labels = [labels[index] for index in kept]
        count = sum(is_class[index] for index in kept)  # of classes, which precede dimensions
        if min_score is not None and self._function(function_to_apply) == "none":
            raise ValueError(
                f"min_score={min_score} applies to probabilities, but function_to_apply='none' gives logits."
            )
        scores = [self._scores(window, function_to_apply, kept, count) for window in windows]
        familiarities = [window.get("familiarity") for window in windows]

        def mean_over(some: slice) -> tuple[np.ndarray, str | None, dict[str, Any]]:
            """Returns the mean scores of classified windows, what replaces the best label if any, and more columns."""
            mean = np.mean([row for row in scores[some] if row is not None], axis=0)
            instead = UNCERTAIN if min_score is not None and float(mean[:count].max()) < min_score else None
            columns: dict[str, Any] = {} if only is None else {"only": labels[:count]}
            if min_familiarity is None:
                return mean, instead, columns
            familiarity = float(np.mean([value for value in familiarities[some] if value is not None]))
            instead = UNFAMILIAR if familiarity < min_familiarity else instead
            return mean, instead, {"familiarity": familiarity} | columns

        if not timeline:
            if all(row is None for row in scores):
                return [{"label": SILENCE, "score": 1.0}]
            mean, instead, columns = mean_over(slice(None))
            best = [*np.argsort(-mean[:count], kind="stable")[:top_k], *range(count, len(labels))]
            entries = [{"label": labels[index], "score": float(mean[index])} | columns for index in best]
            if instead is None:
                return entries
            return [entries[0] | {"label": instead} | ({} if count else {"score": 1.0}), *entries]
        rows = []
        for index, window in enumerate(windows):
            row = {"start": round(window["start"], 3), "end": round(window["end"], 3), "label": SILENCE, "scores": {}}
            if scores[index] is not None:
                mean, instead, columns = mean_over(slice(max(0, index - smooth // 2), index + smooth // 2 + 1))
                row["label"] = instead or (labels[int(mean[:count].argmax())] if count else None)
                row["scores"] = dict(zip(labels, mean.tolist(), strict=True))
                row |= columns
            rows.append(row)
        return rows

    def _segment_rows(self, recording: dict[str, Any], timeline: bool, **options: Any) -> list[dict[str, Any]]:
        """Returns a row for each segment, which is classified like a recording of its own."""
        windows: list[list[dict[str, Any]]] = [[] for _ in recording["segments"]]
        for window in recording["windows"]:
            windows[window["segment"]].append(window)
        labels = list(self.model.config.id2label.values())
        values = labels[self.model.config.num_classes :]
        rows = []
        for segment, parts in zip(recording["segments"], windows, strict=True):
            own = {"error": None, "windows": parts}
            entries = self.postprocess(own, **options)
            scores = {each["label"]: each["score"] for each in entries if each["label"] in labels}
            label = TOO_SHORT if _is_short(segment) else entries[0]["label"]
            row = {
                "label": None if label in values else label,
                "scores": {name: scores[name] for name in labels if name in scores},
            }
            row |= {name: value for name, value in entries[0].items() if name not in ("label", "score")}
            if timeline and len(parts) > 1:
                row["windows"] = self.postprocess(own, timeline=True, **options)
            rows.append({name: value for name, value in segment.items() if name != "place"} | row)
        return rows

    def _scores(
        self, window: dict[str, Any], function_to_apply: str | None, kept: list[int], count: int
    ) -> np.ndarray | None:
        """Returns the scores of a window for the labels of the indices `kept`, of which the first `count` are classes,
        or None if it is silent."""
        if "logits" not in window:
            return None
        functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "softmax": self._softmax, "sigmoid": torch.sigmoid, "none": lambda logits: logits,
        }  # fmt: skip
        logits = window["logits"][kept]
        of_classes = functions[self._function(function_to_apply)](logits[:count])
        return torch.cat([of_classes, logits[count:]]).numpy()

    def _softmax(self, logits: torch.Tensor) -> torch.Tensor:
        temperature = self.model.config.temperature
        # float64 preserves the order of the scores, so that no label changes.
        return (logits if temperature == 1 else logits.double() / temperature).softmax(-1)

    def _function(self, given: str | None) -> str:
        by_problem = {"regression": "none", "multi_label_classification": "sigmoid"}
        return given or by_problem.get(self.model.config.problem_type, "softmax")


def _is_profile(value: Any) -> bool:
    # Not by its class: a checkpoint that comes with its own code has a copy of the class.
    return isinstance(value, (str, os.PathLike)) or hasattr(value, "shift")


def _segment_lists(given: Iterable[Any] | None) -> Iterator[list[dict[str, Any]] | None]:
    """Yields the segments of each recording as dicts, or None for all recordings if there are none."""
    if given is None:
        yield from repeat(None)
    for segments in given or ():
        if not isinstance(segments, Iterable) or isinstance(segments, (str, bytes, Mapping)):
            raise ValueError(
                f"segments={segments!r} does not work; segments is a list of segments, or one list for each of "
                "several recordings."
            )
        yield [_segment(each, index) for index, each in enumerate(segments)]
    raise ValueError("segments has fewer lists than there are recordings: give one list for each.")


def _segment(given: Any, index: int) -> dict[str, Any]:
    """Returns a segment as a dict, or raises `ValueError`."""
    segment: dict[str, Any] = {}
    if isinstance(given, Mapping):
        segment = dict(given)
    elif isinstance(given, (tuple, list)) and 2 <= len(given) <= 4:
        segment = dict(zip(("start", "end", "speaker", "text"), given, strict=False))
    start: Any = segment.get("start")
    end: Any = segment.get("end")
    if not (_is_number(start, 0) and _is_number(end, low=start)):
        raise ValueError(
            f"{_place(segment, index)}={given!r} does not work; it is (start, end[, speaker[, text]]) or a dict with "
            "start and end, in seconds, where 0 <= start <= end."
        )
    return segment | {"start": float(start), "end": float(end)}


def _place(segment: Mapping[str, Any], index: int) -> str:
    return str(segment.get("place") or f"segments[{index}]")


def _is_short(segment: Mapping[str, Any]) -> bool:
    return segment["end"] - segment["start"] < SHORTEST_SEGMENT_S - 1e-6  # 1.4 - 1.0 is below 0.4


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yields lists of `size` items, of which the last may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _is_one_source(inputs: Any) -> bool:
    """Returns whether an input of the pipeline is one recording rather than several."""
    if isinstance(inputs, np.ndarray):
        return inputs.dtype.kind not in "OUS"  # an array of paths is several
    kinds = (str, bytes, bytearray, memoryview, os.PathLike, dict, torch.Tensor)
    is_file = hasattr(inputs, "read") or hasattr(inputs, "get_all_samples")
    return isinstance(inputs, kinds) or is_file or not (hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__"))


def _refuse_numbers(inputs: Sequence[Any]) -> None:
    """Raises `AudioError` if a sequence holds the samples of one recording, with or without their sampling rate."""
    if len(inputs) and all(isinstance(value, Real) for value in inputs[:2]):
        raise AudioError(f"A list of {len(inputs):,} numbers is not a list of recordings; {ONE_ARRAY}")
    is_pair = len(inputs) == 2 and isinstance(inputs, (tuple, list))
    if is_pair and sum(isinstance(value, Real) for value in inputs) == 1:
        raise AudioError(f"A pair of samples and their sampling rate is not a list of recordings; {ONE_ARRAY}")


def _undecoded(inputs: Any) -> Any:
    """Returns a column of a dataset undecoded, since `datasets` would need torchcodec; anything else as it is."""
    column = getattr(inputs, "column_name", None) or getattr(inputs, "key", None)  # of datasets, of transformers
    dataset: Any = inputs
    if column is not None:
        dataset = getattr(inputs, "source", None) or getattr(inputs, "dataset", None)
    if isinstance(dataset, dict) and hasattr(dataset, "cast_column"):
        raise AudioError(
            f'A dataset of the splits {", ".join(dataset)} is not a list of recordings; use dataset["split"].'
        )
    if not hasattr(dataset, "cast_column"):
        return inputs
    features = dataset.features or {}
    audio = [name for name, feature in features.items() if type(feature).__name__ == "Audio"]
    if column is None:
        if len(audio) != 1:
            raise AudioError(
                f"A dataset with the columns {', '.join(features)} has {len(audio)} audio columns, where one is "
                'needed; give the column of the recordings: dataset["name"].'
            )
        column = audio[0]
    if column in audio:
        dataset = dataset.cast_column(column, replace(features[column], decode=False))
    return dataset[column]


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf, kind: type[Any] = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


def _is_window(value: Any) -> bool:
    return _is_number(value, SHORTEST_WINDOW_S, LONGEST_CLIP_S)


# name: (its step: 0 preprocess, 1 forward, 2 postprocess; test of a value other than None; valid values in words)
_PARAMETERS = {
    "window_s": (
        0,
        lambda value: value == "auto" or _is_window(value),
        'a length from 0.01 to 600 seconds, None for one clip, or "auto"',
    ),
    "hop_s": (0, _is_window, "a length from 0.01 to 600 seconds, or None for the window's"),
    "silence_db": (0, _is_number, "a level in dB below full scale, or None"),
    "sampling_rate": (
        0,
        lambda value: _is_number(value, LOWEST_RATE, HIGHEST_RATE) and value == int(value),
        f"a whole number of Hz from {LOWEST_RATE:,} to {HIGHEST_RATE:,}, or None for the model's",
    ),
    "max_s": (0, lambda value: _is_number(value, SHORTEST_WINDOW_S), "a length in seconds, or None for any"),
    "allow_private_urls": (0, lambda value: isinstance(value, bool), "True or False"),
    "speaker": (
        1,
        lambda value: _is_profile(value) or isinstance(value, Iterable),
        "a SpeakerProfile, the path of one, or an iterable of these, one for each recording",
    ),
    "segments": (
        1,
        lambda value: isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)),
        "a list of segments, or one list for each of several recordings",
    ),
    "on_error": (1, lambda value: value in ("raise", "skip"), '"raise" or "skip"'),
    "top_k": (2, lambda value: _is_number(value, 1, kind=Integral), "a whole number of at least 1, or None for all"),
    "function_to_apply": (2, lambda value: value in ("softmax", "sigmoid", "none"), '"softmax", "sigmoid" or "none"'),
    "timeline": (2, lambda value: isinstance(value, bool), "True or False"),
    "min_score": (2, lambda value: _is_number(value, 0, 1), "a score from 0 to 1, or None for no minimum"),
    "min_familiarity": (2, lambda value: _is_number(value, 0, 1), "a share from 0 to 1, or None for no minimum"),
    "only": (
        2,
        lambda value: isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value),
        "a list of labels, or None for all",
    ),
    "smooth": (2, lambda value: _is_number(value, 1, kind=Integral) and value % 2 == 1, "an odd number of windows"),
}


def _checked(recording: dict[str, Any], on_error: str) -> dict[str, Any]:
    """Returns the recording, with an error if the logits of a window are not finite."""
    logits = [window["logits"] for window in recording["windows"] if "logits" in window]
    if not recording["error"] and not all(torch.isfinite(row).all() for row in logits):
        recording["error"] = (
            f"{recording['name']}: the model's scores are not finite. Its weights are broken, or overflow in their "
            "precision: try float32, or another checkpoint."
        )
        if on_error == "raise":
            raise FloatingPointError(recording["error"])
    return recording


_NEVER_NONE = ("on_error", "timeline", "smooth", "allow_private_urls")


def _until(pieces: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Yields pieces up to the one that exceeds `length` samples in total."""
    while length >= 0 and (piece := next(pieces, None)) is not None:
        length -= len(piece)
        yield piece


def _cut(
    pieces: Iterable[np.ndarray], rate: int, segments: Sequence[Mapping[str, Any]], name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yields index and samples of each segment of a recording that arrives in pieces, in the order of their ends. Pieces
    are kept only until the last segment that overlaps them, and none is read after the last segment.

    Raises:
        AudioError: A segment ends more than 0.05 s after the recording.
    """
    spans = [(round(each["start"] * rate), round(each["end"] * rate)) for each in segments]
    order = sorted(range(len(spans)), key=lambda index: spans[index][1])
    # The first sample that the remaining segments need.
    needed = list(accumulate((spans[index][0] for index in reversed(order)), min))[::-1]
    kept: deque[tuple[int, np.ndarray]] = deque()  # (position of its first sample, piece)
    done = length = 0

    def samples(first: int, last: int) -> np.ndarray:
        parts = [piece[max(0, first - at) : last - at] for at, piece in kept if first < at + len(piece) and at < last]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    for piece in pieces:
        kept.append((length, piece))
        length += len(piece)
        while done < len(order) and spans[order[done]][1] <= length:
            yield order[done], samples(*spans[order[done]])
            done += 1
        if done == len(order):
            return
        while kept and kept[0][0] + len(kept[0][1]) <= needed[done]:
            kept.popleft()
    for index in order[done:]:
        if spans[index][1] > length + ROUNDING_S * rate:
            raise AudioError(
                f"{_place(segments[index], index)}: the segment ends at {segments[index]['end']:g} s, but {name} at "
                f"{length / rate:g} s. Correct its times, which are in seconds, or the recording."
            )
        yield index, samples(*spans[index])


def _windows(pieces: Iterable[np.ndarray], length: float, hop: float) -> Iterator[tuple[int, np.ndarray]]:
    """
    Yields the first sample and the samples of windows over a recording in pieces: one window every `hop` samples and,
    if these leave out its end, one that ends with it. A recording shorter than a window is one window.
    """
    size = max(1, round(length))
    kept, first, index = np.zeros(0, np.float32), 0, 0  # samples still needed, position of the first one, next window
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
