import copy
import functools
import io
import subprocess
import tracemalloc

import datasets
import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import audio_maxmvit
import pipeline_maxmvit
from audio_maxmvit import AudioError, loudness, read_audio
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline, _windows
from tests.helpers.servers import Folder, serving
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

RATE = 44_100
RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000)
FORMATS = {  # name: (container, codec, rates it has)
    "wav": ("WAV", "PCM_16", RATES),
    "wav-float": ("WAV", "FLOAT", RATES),
    "flac": ("FLAC", "PCM_16", RATES),
    "ogg": ("OGG", "VORBIS", RATES),
    "opus": ("OGG", "OPUS", (8_000, 12_000, 16_000, 24_000, 48_000)),
    "mp3": ("MP3", "MPEG_LAYER_III", RATES[:-2]),
}


def encoded(waveform: np.ndarray, rate: int, name: str = "wav") -> bytes:
    """Returns a file of a waveform `(T,)` or `(T, channels)`."""
    container, codec, _ = FORMATS[name]
    file = io.BytesIO()
    quality = {} if codec in ("PCM_16", "FLOAT") else {"compression_level": 0.0}
    soundfile.write(file, waveform, rate, format=container, subtype=codec, **quality)
    return file.getvalue()


def telephone_voice(seconds: float = 1.0) -> np.ndarray:
    """Returns a voice at 96 kHz without frequencies above 3.4 kHz, which a file at 8 kHz can represent."""
    return librosa.resample(voice(seconds, sampling_rate=6_800), orig_sr=6_800, target_sr=96_000)


@pytest.fixture(scope="module")
def parts():
    model = convnet_model()
    model.config.id2label = {0: "angry", 1: "happy", 2: "neutral", 3: "sad"}
    model.config.label2id = {label: index for index, label in model.config.id2label.items()}
    feature_extractor = tiny_feature_extractor()
    voices = [voice(1.0, f0=70.0 + 40 * index, seed=index) for index in range(8)]
    with torch.no_grad():  # a head that separates the voices, so that every difference is visible
        images = feature_extractor(voices, sampling_rate=RATE, return_tensors="pt")
        features = model.classifier.dense(model.maxmvit(**images).pooler_output)
        model.classifier.norm.running_mean.copy_(features.mean(0))
        model.classifier.norm.running_var.copy_(features.var(0))
        model.classifier.out_proj.weight *= 15
    return {"model": model, "feature_extractor": feature_extractor}


def build(parts, **kwargs) -> MaxMViTAudioClassificationPipeline:
    return MaxMViTAudioClassificationPipeline(**parts, task="audio-classification", device="cpu", **kwargs)


@pytest.fixture(scope="module")
def classify(parts):
    return build(parts)


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in parts.values():
        part.save_pretrained(folder)
    return folder


def by_label(rows: list[dict]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in rows}


def assert_same(rows: list[dict], other: list[dict], tolerance: float = 1e-5) -> None:
    assert by_label(rows) == pytest.approx(by_label(other), abs=tolerance)


# Inputs


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_rate_and_channel_count_is_classified_alike_without_ffmpeg(classify, name, channels, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    clip = telephone_voice()
    expected = classify({"array": clip, "sampling_rate": 96_000})
    for rate in FORMATS[name][2][:: 1 if channels == 1 else 5]:
        resampled = librosa.resample(clip, orig_sr=96_000, target_sr=rate)
        resampled = np.stack([1.2 * resampled, 0.8 * resampled], axis=1) if channels == 2 else resampled
        rows = classify(encoded(resampled, rate, name))
        assert rows[0]["label"] == expected[0]["label"], rate
        assert_same(rows, expected, tolerance=0.02)


class Unseekable(io.RawIOBase):
    def __init__(self, content: bytes):
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.content.readinto(buffer)


class Decoder:
    """Imitates what `datasets` returns for an `Audio` column if torchcodec is installed."""

    def __init__(self, waveform: np.ndarray):
        self.samples = type("AudioSamples", (), {"data": torch.tensor(waveform), "sample_rate": 16_000})()

    def get_all_samples(self):
        return self.samples


def test_every_kind_of_source_gives_the_same_prediction(classify, tmp_path):
    left, right = voice(0.5, sampling_rate=16_000), voice(0.5, f0=200, sampling_rate=16_000)
    stereo = np.stack([left, right])
    content = encoded(stereo.T, 16_000, "wav-float")
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    column = datasets.Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", datasets.Audio(decode=False))
    expected = classify({"array": (left + right) / 2, "sampling_rate": 16_000})
    with open(path, "rb") as file:
        sources = [
            str(path), path, content, bytearray(content), io.BytesIO(content), Unseekable(content), file,
            {"path": str(path), "bytes": None}, {"path": "elsewhere.wav", "bytes": content}, column[0]["audio"],
            {"array": stereo, "sampling_rate": 16_000}, {"raw": stereo.T, "sampling_rate": 16_000.0},
            {"array": torch.tensor(stereo, dtype=torch.float64), "sampling_rate": 16_000}, Decoder(stereo),
        ]  # fmt: skip
        for source in sources:
            assert_same(classify(source), expected)
    assert_same(classify(stereo, sampling_rate=16_000), expected)
    assert_same(classify(torch.tensor(stereo), sampling_rate=16_000), expected)
    assert_same(classify(column["audio"])[0], expected)
    integers = (stereo * 32_767).astype(np.int16)
    assert_same(classify({"array": integers, "sampling_rate": 16_000}), expected, tolerance=0.02)


def test_a_url_in_the_own_network_is_read_only_if_permitted(classify, tmp_path):
    (tmp_path / "clip.flac").write_bytes(encoded(voice(0.3), RATE, "flac"))
    with serving(functools.partial(Folder, directory=tmp_path)) as base:
        with pytest.raises(AudioError, match="/clip.flac cannot be read: .*own network; allow_private_urls permits"):
            classify(f"{base}/clip.flac")
        permitted = functools.partial(classify, allow_private_urls=True)
        assert_same(permitted(f"{base}/clip.flac"), classify(str(tmp_path / "clip.flac")))
        with pytest.raises(AudioError, match="/nothing.flac cannot be read: .*404"):
            permitted(f"{base}/nothing.flac")


@pytest.mark.parametrize(("dtype", "scale"), [(np.int16, 2**15), (np.int32, 2**31), (np.uint8, 2**7)])
def test_integers_are_scaled_by_the_range_of_their_type(dtype, scale):
    samples = np.array([0.5, -0.25, 0.0]) * scale + (scale if dtype is np.uint8 else 0)
    source = {"array": samples.astype(dtype), "sampling_rate": RATE}
    assert read_audio(source, RATE) == pytest.approx([0.5, -0.25, 0.0])


# Refused inputs


BROKEN = {
    "empty.wav": (b"", "is empty"),
    "no samples.wav": (encoded(np.zeros(0), RATE), "is empty"),
    "text.mp3": (b"not audio at all " * 100, "cannot be decoded"),
    "film.m4a": (b"\x00\x00\x00\x20ftypM4A " + bytes(2_000), "cannot be decoded"),
    "bytes.raw": (bytes(1_000), "cannot be decoded"),
    "nan.wav": (encoded(np.array([0.1, np.nan, 0.2]), RATE, "wav-float"), "holds NaN or infinite samples"),
    "overflow.wav": (encoded(np.array([0.1, 1e38, 0.2]), 8_000, "wav-float"), "holds a sample of 1.0e.38"),
    "inf.wav": (encoded(np.array([0.1, np.inf, 0.2]), 8_000, "wav-float"), "holds NaN or infinite samples"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(classify, tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"{name} {message}"):
        classify(path)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files_are_refused_and_complete_ones_are_read(name):
    whole = encoded(voice(2.0, sampling_rate=24_000), 24_000, name)
    assert len(read_audio(whole, 24_000)) >= 48_000
    for fraction in (0.02, 0.5, 0.9):
        with pytest.raises(AudioError, match="cut off|cannot be decoded"):
            read_audio(whole[: round(fraction * len(whole))], 24_000)


def test_a_wav_without_a_length_as_written_to_a_pipe_is_read():
    whole = bytearray(encoded(voice(0.2), RATE))
    at = whole.index(b"data") + 4
    whole[at : at + 4] = b"\xff\xff\xff\xff"
    assert len(read_audio(bytes(whole), RATE)) == round(0.2 * RATE)


@pytest.mark.parametrize("rate", [16_000, RATE, 48_000])
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 2), (0, 0)])
def test_empty_inputs_are_refused_at_any_rate(classify, shape, rate):
    for array in (np.zeros(shape), np.zeros(shape, np.int16), torch.zeros(shape)):
        with pytest.raises(AudioError, match="is empty: it holds no samples"):
            classify({"array": array, "sampling_rate": rate})
    with pytest.raises(AudioError, match="is empty: it holds no samples"):
        classify(encoded(np.zeros((0, 2)), rate))


def test_the_loudness_of_an_empty_waveform_is_that_of_silence():
    assert loudness(np.zeros(0, np.float32), RATE) == loudness(np.zeros(RATE, np.float32), RATE) == -200
    assert loudness(np.full(9, 0.1), 8) == pytest.approx(-20)  # a rate at which 50 ms are less than a sample


def test_unreadable_sources_and_invalid_rates_are_refused_or_skipped(classify, tmp_path):
    clip = voice(0.3)
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(clip, RATE, "wav-float"))
    closed = io.BytesIO(path.read_bytes())
    closed.close()
    with open(path) as as_text:
        refused = [
            ("nul\0.wav", "cannot be read: embedded null byte"),
            ({"path": "nul\0.wav"}, "cannot be read: embedded null byte"),
            ("http://[bad/x.wav", "is not a valid URL"),
            ("http://127.0.0.1/a b.wav", "is not a valid URL .* percent-encode spaces"),
            ("http://127.0.0.1/\u00e9.wav", "is not a valid URL"),
            ("http://127.0.0.1:port/x.wav", "is not a valid URL .*nonnumeric port"),
            ("http://a..b/x.wav", "is not a valid URL"),
            (as_text, 'clip.wav is open as text; open it with mode "rb"'),
            (io.StringIO("text"), "is open as text"),
            (closed, "cannot be read: I/O operation on closed file"),
            ({"array": clip, "sampling_rate": float("nan")}, "has the sampling rate nan"),
            ({"array": clip, "sampling_rate": float("inf")}, "has the sampling rate inf"),
            ({"array": clip, "sampling_rate": np.float32("inf")}, "has the sampling rate .*inf"),
            ({"array": clip, "sampling_rate": 1e300}, "has the sampling rate 1e.300"),
            ({"array": [[0.1, 0.2], [0.3]], "sampling_rate": RATE}, "is not a waveform"),
        ]
        for source, message in refused:
            with pytest.raises(AudioError, match=message):
                classify(source)
        *errors, last = classify([*(source for source, _ in refused), clip], on_error="skip")
    assert all(set(answer) == {"error"} for answer in errors)
    assert_same(last, classify(clip))


def test_invalid_sources_are_refused(classify, tmp_path):
    refused = {
        "is not audio": 3, "cannot be read: Is a directory": tmp_path, "No such file": tmp_path / "missing.wav",
        "is empty": np.zeros(0), "is not a waveform": np.zeros((2, 2, 2)), "holds NaN": np.array([0.0, np.nan]),
        'has no "sampling_rate"': {"array": np.zeros(9)}, "sampling rate 0": {"raw": [0.0], "sampling_rate": 0},
        'has neither "bytes" nor "path"': {"path": None}, "got <U1": {"array": np.array(["a"]), "sampling_rate": 9},
    }  # fmt: skip
    for message, source in refused.items():
        with pytest.raises(AudioError, match=message):
            classify(source)


def test_on_error_skip_continues_after_invalid_inputs(classify, tmp_path):
    clip, missing = voice(0.3), str(tmp_path / "missing.wav")
    first, second, third, fourth = classify([clip, missing, b"", clip], on_error="skip", batch_size=2)
    assert second == {"error": f"{missing} cannot be read: No such file or directory."}
    assert third == {"error": "Input 2: a file of 0 bytes is empty: it holds no bytes."}
    assert_same(first, fourth)
    with pytest.raises(AudioError, match="missing.wav"):
        classify([clip, missing, clip])


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_a_silent_clip_of_any_length_is_labelled_silence(classify, seconds):
    quiet = 1e-5 * voice(seconds)
    silence = [{"label": "silence", "score": 1.0}]
    for parameters in ({}, {"window_s": None}, {"window_s": 0.2, "timeline": False}):
        assert classify(quiet, **parameters) == silence
        assert classify([quiet, voice(seconds), np.zeros(9)], **parameters)[::2] == [silence] * 2
    assert classify(quiet, silence_db=None)[0]["label"] != "silence"
    inverted = np.stack([voice(seconds), -voice(seconds)])
    with pytest.raises(AudioError, match="has channels that cancel each other"):
        classify(inverted)


def test_columns_of_tables_and_datasets_are_lists_of_sources(classify, tmp_path):
    """`datasets` itself would need torchcodec to decode the audio column of this dataset."""
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.wav")
        paths[-1].write_bytes(encoded(voice(0.3, f0=100.0 + 60 * index), RATE, "wav-float"))
    expected = [classify(str(path)) for path in paths]
    frame = pd.DataFrame({"file": map(str, paths), "label": "x"}, index=[7, 3, 5])
    table = {"audio": [{"path": None, "bytes": path.read_bytes()} for path in paths], "label": [0, 1, 2]}
    dataset = datasets.Dataset.from_dict(table).cast_column("audio", datasets.Audio())
    streamed = dataset.to_iterable_dataset()
    for column in (frame["file"], frame["file"].to_numpy(), dataset["audio"], dataset, KeyDataset(dataset, "audio"),
                   streamed, streamed["audio"], dataset.rename_column("audio", "sound")["sound"]):  # fmt: skip
        for rows, single in zip(classify(column), expected, strict=True):
            assert_same(rows, single)
    assert classify(frame["file"][:1]) == expected[:1]


def test_lists_and_datasets_that_are_not_sources_are_refused_with_a_remedy(classify):
    clip = voice(0.1)
    two = {"a": [None], "b": [None], "n": [1]}
    audio = datasets.Audio(decode=False)
    dataset = datasets.Dataset.from_dict(two).cast_column("a", audio).cast_column("b", audio)
    refused = {
        'give one as {"array": ': ((48_000, clip), (clip, 48_000), [0.1, 0.2, 0.3], [1, 2], [(16_000, clip)]),
        "has 2 audio columns": (dataset,),
        "with the columns n has 0 audio columns": (dataset.select_columns(["n"]),),
        "dataset of the splits train, test": (datasets.DatasetDict({"train": dataset, "test": dataset}),),
    }
    for message, inputs in ((message, inputs) for message, sources in refused.items() for inputs in sources):
        with pytest.raises(AudioError, match=message):
            classify(inputs)


# Outputs


def test_the_prediction_is_that_of_the_model_on_the_extractors_output(parts, classify):
    clip = voice(1.3)
    with torch.no_grad():
        images = parts["feature_extractor"](clip, sampling_rate=RATE, return_tensors="pt")
        scores = parts["model"](**images).logits.softmax(-1)[0]
    labels = parts["model"].config.id2label
    assert by_label(classify(clip)) == {labels[index]: score for index, score in enumerate(scores.tolist())}


def test_predictions_are_sorted_and_limited_to_top_k(parts, classify):
    clip = voice(0.3)
    rows = classify(clip)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert sum(row["score"] for row in rows) == pytest.approx(1)
    assert classify(clip, top_k=2) == rows[:2]
    two = build(parts, top_k=2)
    assert two(clip) == rows[:2]
    assert two(clip, top_k=1) == rows[:1]
    assert two(clip, top_k=None) == rows
    assert two(clip, top_k=99) == rows


def test_a_prediction_below_min_score_is_uncertain_and_lists_the_classes(classify):
    clip = voice(0.3)
    rows = classify(clip)
    best = rows[0]["score"]
    assert classify(clip, min_score=best) == rows
    above = np.nextafter(best, 1)
    uncertain = {"label": "uncertain", "score": best}
    assert classify(clip, min_score=above) == [uncertain, *rows]
    assert classify(clip, min_score=above, top_k=1) == [uncertain, rows[0]]
    assert classify(np.zeros(3 * RATE), window_s=1.0, timeline=False, min_score=1.0)[0]["label"] == "silence"
    with pytest.raises(ValueError, match="min_score=0.5 applies to probabilities, but function_to_apply='none'"):
        classify(clip, min_score=0.5, function_to_apply="none")


def test_windows_below_min_score_are_uncertain_and_keep_their_scores(classify):
    plain = classify(recording(), window_s=1.0)
    bests = sorted(max(row["scores"].values()) for row in plain if row["scores"])
    bounded = classify(recording(), window_s=1.0, min_score=bests[1])
    assert [row["scores"] for row in bounded] == [row["scores"] for row in plain]
    labels = {row["label"] for row in bounded if row["scores"] and max(row["scores"].values()) < bests[1]}
    assert labels == {"uncertain"}
    assert sum(row["label"] == "uncertain" for row in bounded) == 1


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_a_temperature_divides_the_logits_and_changes_no_label(parts, temperature):
    clips = [voice(0.3 + 0.1 * index, f0=80.0 + 40 * index) for index in range(4)]
    pipe = build(parts)
    plain, logits = pipe(clips), pipe(clips, function_to_apply="none")
    pipe.model = copy.deepcopy(pipe.model)
    pipe.model.config.temperature = temperature
    for before, raw, after in zip(plain, logits, pipe(clips), strict=True):
        assert [row["label"] for row in after] == [row["label"] for row in before]
        weights = {row["label"]: np.exp(row["score"] / temperature) for row in raw}
        expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
        assert by_label(after) == pytest.approx(expected, abs=1e-6)
        assert (after[0]["score"] > before[0]["score"]) == (temperature < 1)
    assert pipe(clips, function_to_apply="none") == logits


@pytest.mark.slow
def test_lists_generators_and_batch_sizes_do_not_change_predictions(classify):
    clips = [voice(0.2 + 0.1 * index, f0=100 + 30 * index) for index in range(5)]
    one_by_one = [classify(clip) for clip in clips]
    for batch_size in (1, 2, 8):
        for inputs in (clips, tuple(clips), (clip for clip in clips), iter(clips)):
            results = list(classify(inputs, batch_size=batch_size))
            assert len(results) == len(clips)
            for result, expected in zip(results, one_by_one, strict=True):
                assert_same(result, expected)
    assert classify([]) == []


def test_a_generator_is_read_only_as_far_as_needed(classify):
    read = []

    def sources():
        for index in range(6):
            read.append(index)
            yield voice(0.2)

    results = classify(sources(), batch_size=2)
    next(results)
    assert len(read) == 2


def test_invalid_parameters_are_refused(classify):
    wrong = {
        "window_s": (0, 1e-9, 601, float("nan"), True, "3"), "hop_s": (-1, 1e-9), "top_k": (0, 1.5),
        "smooth": (2, None), "on_error": ("ignore",), "sampling_rate": (1, 0.5, 16_000.5, 10**8),
        "max_s": (0, float("inf")), "allow_private_urls": (None, "yes"), "silence_db": (float("-inf"),),
        "min_score": (-0.1, 1.1, "0.5"),
    }  # fmt: skip
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(ValueError, match=f"{name}=.* does not work; {name} must be "):
            classify(voice(0.1), **{name: value})
    with pytest.raises(ValueError, match="leaves out audio"):
        classify(voice(0.1), window_s=1.0, hop_s=2.0)
    with pytest.raises(TypeError, match="'chunk_length_s' is not a parameter"):
        classify(voice(0.1), chunk_length_s=3)


# Recordings


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 200),
    window=st.integers(1, 60),
    hop_share=st.floats(0.05, 1.0),
    piece=st.integers(1, 80),
)
def test_windows_lie_on_the_grid_cover_everything_and_do_not_depend_on_the_pieces(length, window, hop_share, piece):
    hop = max(1.0, hop_share * window)
    samples = np.arange(length, dtype=np.float32)
    pieces = [samples[start : start + piece] for start in range(0, length, piece)]
    windows = list(_windows(iter(pieces), window, hop))
    for start, waveform in windows:
        np.testing.assert_array_equal(waveform, samples[start : start + window])
        assert len(waveform) == min(window, length)
    assert set(np.concatenate([waveform for _, waveform in windows])) == set(samples)
    on_grid = [round(index * hop) for index in range(length) if round(index * hop) + window <= length]
    assert [start for start, _ in windows][: len(on_grid)] == on_grid
    assert len(windows) <= len(on_grid) + 1


def recording() -> np.ndarray:
    """Returns 2 s of a low voice, 2 s of silence and 2.5 s of a high voice."""
    return np.concatenate([voice(2.0), np.zeros(2 * RATE, np.float32), voice(2.5, f0=300.0)])


def test_a_timeline_has_a_row_for_each_window_and_marks_silence(classify):
    rows = classify(recording(), window_s=1.0)
    assert [row["start"] for row in rows] == [0, 1, 2, 3, 4, 5, 5.5]
    assert all(row["end"] == row["start"] + 1 for row in rows)
    silent = {row["start"]: row["scores"] for row in rows if row["label"] == "silence"}
    assert silent == {2: {}, 3: {}}
    for row in (rows[0], rows[-1]):
        clip = recording()[round(row["start"] * RATE) : round(row["end"] * RATE)]
        assert row["scores"] == pytest.approx(by_label(classify(clip)), abs=1e-5)
        assert row["label"] == max(row["scores"], key=row["scores"].get)


def test_silence_db_sets_the_level_of_silence(classify):
    quiet = recording() * 1e-4
    assert {row["label"] for row in classify(quiet, window_s=1.0)} == {"silence"}
    assert sum(row["label"] == "silence" for row in classify(quiet, window_s=1.0, silence_db=-110.0)) == 2
    assert all(row["scores"] for row in classify(quiet, window_s=1.0, silence_db=None))


def test_silence_is_not_classified(parts, monkeypatch):
    classified = []
    pipe = build(parts)
    forward = pipe._forward
    monkeypatch.setattr(pipe, "_forward", lambda clips: classified.extend(clips) or forward(clips))
    pipe(recording(), window_s=1.0, hop_s=0.5)
    assert classified
    assert all(clip["rms"].max() > -60 for clip in classified)  # overlapping windows are cut out of spectrograms


def test_the_prediction_for_a_recording_is_the_mean_of_its_windows(classify):
    rows = [row for row in classify(recording(), window_s=1.0, hop_s=0.5) if row["label"] != "silence"]
    mean = {label: np.mean([row["scores"][label] for row in rows]) for label in rows[0]["scores"]}
    prediction = classify(recording(), window_s=1.0, hop_s=0.5, timeline=False)
    assert by_label(prediction) == pytest.approx(mean, abs=1e-6)
    assert classify(np.zeros(3 * RATE), window_s=1.0, timeline=False) == [{"label": "silence", "score": 1.0}]


def test_smoothing_is_the_mean_over_neighbouring_windows_that_are_not_silent(classify):
    plain, smooth = (classify(recording(), window_s=1.0, smooth=count) for count in (1, 3))
    for index, row in enumerate(smooth):
        around = [other["scores"] for other in plain[max(0, index - 1) : index + 2] if other["scores"]]
        if row["label"] == "silence":
            assert not plain[index]["scores"]
        else:
            mean = {label: np.mean([scores[label] for scores in around]) for label in row["scores"]}
            assert row["scores"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("max_clip_s, window_s, windows", [(4.0, 3.0, 2), (4.9, 1.5, 4), (2.0004, 2.0, 3)])
def test_a_recording_longer_than_the_training_clips_gets_the_mean_of_its_windows(
    parts, monkeypatch, max_clip_s, window_s, windows
):
    pipe = build(parts)
    monkeypatch.setattr(pipe.model.config, "max_clip_s", max_clip_s)
    monkeypatch.setattr(pipe.model.config, "window_s", window_s)
    long = np.concatenate([voice(2.5), voice(2.5, f0=300.0)])
    as_one = pipe(long, window_s=None)
    assert_same(pipe(long), pipe(long, window_s=window_s, timeline=False))
    assert by_label(pipe(long)) != pytest.approx(by_label(as_one), abs=1e-4)
    assert_same(build(parts, window_s=1.0)(long, window_s="auto"), pipe(long))
    longest = long[: int(max_clip_s * RATE)]
    assert_same(pipe(longest), pipe(longest, window_s=None))
    rows = pipe(long, timeline=True)
    assert len(rows) == windows and len(pipe(longest, timeline=True)) == 1
    assert rows[-1]["end"] == 5 and all(row["end"] - row["start"] == pytest.approx(window_s) for row in rows)
    mean = {label: np.mean([row["scores"][label] for row in rows]) for label in rows[0]["scores"]}
    assert by_label(pipe(long)) == pytest.approx(mean, abs=1e-6)


def test_a_model_without_max_clip_s_does_not_split_clips_of_up_to_6_s(parts):
    pipe = build(parts)
    long = np.concatenate([voice(3.5), voice(3.5, f0=300.0)])
    assert_same(pipe(long[: 6 * RATE]), pipe(long[: 6 * RATE], window_s=None))
    assert_same(pipe(long), pipe(long, window_s=3.0, timeline=False))


def test_recordings_over_the_length_limit_are_refused(classify, monkeypatch):
    long = voice(2.0)
    with pytest.raises(AudioError, match="lasts longer than 1.5 s, which is the limit .max_s.; split it"):
        classify(long, max_s=1.5)
    assert len(classify(long, max_s=2.0, window_s=1.0)) == 2
    monkeypatch.setattr(pipeline_maxmvit, "LONGEST_CLIP_S", 1.5)
    with pytest.raises(AudioError, match="lasts longer than 1.5 s"):
        classify(long, window_s=None)
    assert_same(classify(long, window_s=None, max_s=None), classify(long))


def test_windows_of_several_recordings_share_a_batch(parts, monkeypatch):
    sizes = []
    pipe = build(parts, window_s=0.5)
    forward = pipe._forward
    monkeypatch.setattr(pipe, "_forward", lambda clips: sizes.append(len(clips)) or forward(clips))
    timelines = pipe([voice(1.5), voice(2.0), voice(0.5)], batch_size=4)
    assert [len(timeline) for timeline in timelines] == [3, 4, 1]
    assert sizes == [4, 4]


@pytest.mark.slow
def test_a_recording_of_any_length_is_streamed_in_flat_memory(classify, tmp_path, monkeypatch):
    monkeypatch.setattr(audio_maxmvit, "BLOCK_S", 3)
    peaks = []
    for minutes in (1, 3):
        path = tmp_path / f"{minutes}.flac"
        soundfile.write(path, np.tile(voice(5.0, sampling_rate=8_000), 12 * minutes), 8_000)
        tracemalloc.start()
        windows = sum(1 for _ in classify.preprocess(path, window_s=3.0, hop_s=1.0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert windows == 60 * minutes - 2
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.slow
def test_a_checkpoint_is_loaded_with_its_own_pipeline(checkpoint, classify, tmp_path):
    path = tmp_path / "clip.ogg"
    path.write_bytes(encoded(voice(2.0), RATE, "ogg"))
    loaded = pipeline("audio-classification", model=str(checkpoint), trust_remote_code=True, top_k=2, device="cpu")
    assert_same(loaded(str(path)), classify(str(path), top_k=2))
    timelines = (pipe(str(path), window_s=1.0, hop_s=0.5) for pipe in (loaded, classify))
    for row, expected in zip(*timelines, strict=True):
        assert row["scores"] == pytest.approx(expected["scores"], abs=1e-5)
