"""Predictions of the pipeline for given segments, and predictions restricted to some labels."""

import numpy as np
import pytest
import soundfile
import torch

from audio_maxmvit import AudioError
from modeling_maxmvit import FeatureStatistics
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

LABELS = ["angry", "happy", "neutral", "sad"]
RATE = 22_050
SEGMENTS = [(0.3, 1.1, "anna"), (0.9, 2.05, "ben", "well then"), (2.4, 2.6, "anna"), (3.0, 7.7)]


@pytest.fixture(scope="module")
def classify():
    model = convnet_model()
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    statistics = FeatureStatistics(model.base_model.num_features)
    statistics.mean.copy_(torch.randn(len(statistics.mean), generator=torch.Generator().manual_seed(3)) / 10)
    model.base_model.set_feature_statistics(statistics)
    model.config.max_clip_s, model.config.window_s = 2.0, 1.5
    with torch.no_grad():
        model.classifier.out_proj.weight *= 15  # so that any difference shows
    return MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification", device="cpu"
    )


def recording(seconds: float = 8.0, rate: int = RATE) -> np.ndarray:
    """Returns a voice whose pitch changes twice a second, so that any two parts differ."""
    parts = [voice(0.5, f0=80.0 + 25 * k, sampling_rate=rate, seed=k) for k in range(round(2 * seconds))]
    return np.concatenate(parts)


def scores(prediction: list[dict]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in prediction}


def assert_near(one: dict, other: dict, tolerance: float = 1e-4) -> None:
    assert one.keys() == other.keys()
    np.testing.assert_allclose([one[key] for key in sorted(one)], [other[key] for key in sorted(one)], atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "rate"), [("array", RATE), ("file", 16_000), ("file", 48_000)])
def test_a_segment_is_classified_like_its_audio_alone(classify, tmp_path, form, rate):
    sound = recording(rate=rate)
    source = {"array": sound, "sampling_rate": rate}
    if form == "file":
        source = tmp_path / "talk.wav"
        soundfile.write(source, sound, rate, subtype="FLOAT")
    rows = classify(source, segments=SEGMENTS, batch_size=3)
    assert [row["label"] == "too short" for row in rows] == [False, False, True, False]
    assert [row.get("speaker") for row in rows] == ["anna", "ben", "anna", None]
    assert [row.get("text") for row in rows] == [None, "well then", None, None]
    for row, (start, end, *_) in zip(rows, SEGMENTS, strict=True):
        assert (row["start"], row["end"]) == (start, end)
        crop = {"array": sound[round(start * rate) : round(end * rate)], "sampling_rate": rate}
        alone = classify(crop)
        assert_near(row["scores"], scores(alone))
        if row["label"] != "too short":
            assert row["label"] == alone[0]["label"]


@pytest.mark.slow
@pytest.mark.parametrize("window", [{}, {"window_s": 1.0, "hop_s": 0.5}, {"window_s": 0.8}])
def test_windows_within_long_segments_are_those_of_their_audio_alone(classify, window):
    sound = recording()
    (row,) = classify({"array": sound, "sampling_rate": RATE}, segments=[(3.0, 7.7)], **window)
    crop = {"array": sound[round(3.0 * RATE) : round(7.7 * RATE)], "sampling_rate": RATE}
    assert_near(row["scores"], scores(classify(crop, **window, timeline=False)))
    assert ("windows" in row) == bool(window)
    for own, alone in zip(row.get("windows", []), classify(crop, **window) if window else [], strict=True):
        assert (own["start"], own["end"]) == pytest.approx((alone["start"] + 3, alone["end"] + 3), abs=2e-3)
        assert own["label"] == alone["label"]
        assert_near(own["scores"], alone["scores"])


def test_the_order_and_other_keys_of_segments_are_kept(classify):
    source = {"array": recording(), "sampling_rate": RATE}
    given = [{"start": 5.0, "end": 6.0, "id": 7, "place": "line 3"}, {"start": 1, "end": 2.5, "note": "x"}]
    rows = classify(source, segments=given)
    assert [(row["start"], row.get("id"), row.get("note")) for row in rows] == [(5.0, 7, None), (1.0, None, "x")]
    assert "place" not in rows[0]
    forth, back = classify([source, source], segments=(each for each in (SEGMENTS, SEGMENTS[::-1])))
    for one, other in zip(forth, back[::-1], strict=True):
        assert one["label"] == other["label"]
        assert_near(one["scores"], other["scores"], 1e-5)
    assert classify(source, segments=[]) == []


def test_short_and_silent_segments_have_such_labels(classify):
    sound = recording()
    sound[RATE : 3 * RATE] = 0
    spans = [(1.2, 2.8), (1.2, 1.3), (5.0, 5.0), (5.0, 5.39), (1.0, 1.4), (5.0, 5.4)]
    rows = classify({"array": sound, "sampling_rate": RATE}, segments=spans)
    assert [row["label"] for row in rows[:5]] == ["silence", "too short", "too short", "too short", "silence"]
    assert rows[5]["label"] in LABELS
    assert [len(row["scores"]) for row in rows] == [0, 0, 0, 4, 0, 4]


@pytest.mark.parametrize("end", [8.2, 30.0])
def test_an_end_beyond_the_recording_is_an_error_that_names_the_line(classify, tmp_path, end):
    source = tmp_path / "talk.wav"
    soundfile.write(source, recording(), RATE)
    given = [{"start": 0, "end": 1}, {"start": 7.0, "end": end, "place": "turns.csv, line 3"}]
    with pytest.raises(AudioError, match=rf"turns.csv, line 3: the segment ends at {end:g} s, but .*talk.wav at 8 s"):
        classify(source, segments=given)
    assert "line 3" in classify([source], segments=[given], on_error="skip")[0]["error"]
    assert len(classify(source, segments=[(7.0, 8.04)])) == 1  # annotations are rounded


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(1.0,)], r"segments\[0\]=\(1.0,\) does not work"),
        ([(0, 1), (2.0, 1.0)], r"segments\[1\]=\(2.0, 1.0\) does not work"),
        ([(-1, 1)], "0 <= start <= end"),
        ([{"start": 0}], "does not work"),
        ([("0", "1")], "does not work"),
        ([(0, float("nan"))], "does not work"),
        (3, "segments=3 does not work"),
        ("ab", "segments='ab' does not work"),
    ],
)
def test_invalid_segments_are_refused(classify, segments, message):
    with pytest.raises(ValueError, match=message):
        classify({"array": recording(2.0), "sampling_rate": RATE}, segments=segments)


def test_fewer_lists_than_recordings_are_refused(classify):
    source = {"array": recording(1.0), "sampling_rate": RATE}
    with pytest.raises(ValueError, match="fewer lists than there are recordings"):
        classify([source, source], segments=[[(0, 1)]])
    with pytest.raises(TypeError, match="belong to a recording"):
        MaxMViTAudioClassificationPipeline(
            model=classify.model, feature_extractor=classify.feature_extractor, segments=[(0, 1)]
        )


def test_segments_are_classified_relative_to_the_profile_of_their_speaker(classify):
    sound = recording()
    source = {"array": sound, "sampling_rate": RATE}
    turns = {"anna": [(0.0, 1.0), (2.0, 3.5)], "ben": [(4.0, 5.0), (6.1, 6.3)]}
    profiles = {name: classify.enroll(source, segments=spans) for name, spans in turns.items()}
    for name, spans in turns.items():
        crops = [
            {"array": sound[round(start * RATE) : round(end * RATE)], "sampling_rate": RATE}
            for start, end in spans
            if end - start > 0.4
        ]
        np.testing.assert_allclose(profiles[name].mean, classify.enroll(crops).mean, atol=1e-4)
        assert profiles[name].clips == len(crops)
    given = [(0.2, 1.2, "anna"), (0.2, 1.2, "ben"), (0.2, 1.2, "carl"), (0.2, 1.2)]
    rows = classify(source, segments=given, speaker=profiles)
    alone = [classify(source, segments=[(0.2, 1.2)], speaker=profiles.get(name))[0] for name in ("anna", "ben", "")]
    for row, expected in zip(rows, [*alone, alone[2]], strict=True):
        assert_near(row["scores"], expected["scores"], 1e-5)
    assert max(abs(rows[0]["scores"][label] - rows[1]["scores"][label]) for label in LABELS) > 1e-3
    with pytest.raises(ValueError, match="needs segments"):
        classify(source, speaker=profiles)


@pytest.mark.parametrize("only", [["happy", "sad"], ["sad", "angry", "neutral"]])
def test_scores_of_some_labels_are_divided_by_their_sum(classify, only):
    source = {"array": recording(1.0), "sampling_rate": RATE}
    all_scores, prediction = scores(classify(source)), classify(source, only=only)
    total = sum(all_scores[label] for label in only)
    assert_near(scores(prediction), {label: all_scores[label] / total for label in only}, 1e-6)
    assert all(row["only"] == [label for label in LABELS if label in only] for row in prediction)
    (row,) = classify(source, only=only, segments=[(0.0, 1.0)])
    (window,) = classify(source, only=only, timeline=True)
    for each in (row, window):
        assert_near(each["scores"], scores(prediction), 1e-5)
        assert each["label"] == prediction[0]["label"] and set(each["only"]) == set(only)
    assert "only" not in classify(source)[0]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["happy", "glad"], "no label 'glad'"),
        (["happy"], "at least two labels"),
        (["sad", "sad"], "at least two labels"),
        ("happy", "a list of labels"),
    ],
)
def test_invalid_selections_of_labels_are_refused(classify, only, message):
    with pytest.raises(ValueError, match=message):
        classify({"array": recording(1.0), "sampling_rate": RATE}, only=only)
