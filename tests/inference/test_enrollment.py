"""Speaker profiles: how the pipeline and predict_ser.py make, save, check and use them."""

import csv
import json
import re
import warnings

import numpy as np
import pytest
import soundfile
import torch

from audio_maxmvit import AudioError
from modeling_maxmvit import FeatureStatistics
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline, SpeakerProfile, features_digest, map_shift
from ser.commands import predict as predict_ser
from ser.inference.enrollment import profiles_of
from ser.inference.predictions import Item
from ser.utils import UsageError
from tests.helpers.marks import first_fast
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

LABELS = ["angry", "happy", "neutral", "sad"]
RATE = 44_100


def model_with_statistics(seed: int = 0, **changes):
    model = convnet_model(seed=seed, **changes)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    statistics = FeatureStatistics(model.base_model.num_features)
    statistics.mean.copy_(torch.randn(len(statistics.mean), generator=torch.Generator().manual_seed(3)) / 10)
    model.base_model.set_feature_statistics(statistics)
    with torch.no_grad():
        model.classifier.out_proj.weight *= 15  # so that any difference shows
    return model


def pipeline_of(model, **kwargs) -> MaxMViTAudioClassificationPipeline:
    parts = {"model": model, "feature_extractor": tiny_feature_extractor()}
    return MaxMViTAudioClassificationPipeline(**parts, task="audio-classification", device="cpu", **kwargs)


@pytest.fixture(scope="module")
def classify():
    return pipeline_of(model_with_statistics())


def sound(seconds: float = 0.6, f0: float = 120.0, seed: int = 0) -> dict:
    return {"array": voice(seconds, f0=f0, sampling_rate=RATE, seed=seed), "sampling_rate": RATE}


def features_of(classify, clip: dict) -> np.ndarray:
    inputs = classify.feature_extractor(clip["array"], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return classify.model.base_model(**inputs).pooler_output[0].numpy()


def scores_of(prediction: list[dict]) -> list[float]:
    by_label = {row["label"]: row["score"] for row in prediction}
    return [by_label[label] for label in LABELS]


CLIPS = [sound(0.5 + 0.1 * index, f0=100 + 15 * index, seed=index) for index in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("relevance", [0, 2.5, 4])
@pytest.mark.parametrize("count", [1, 5])
def test_a_profile_is_the_mean_of_the_clips_shrunk_to_the_training_mean(classify, count, relevance):
    profile = classify.enroll(CLIPS[:count], relevance=relevance)
    features = np.stack([features_of(classify, clip) for clip in CLIPS[:count]])
    np.testing.assert_allclose(profile.mean, features.mean(0), atol=1e-5)
    np.testing.assert_allclose(profile.deviation, features.std(0), atol=1e-4)
    assert profile.clips == count
    assert profile.seconds == pytest.approx(sum(len(clip["array"]) for clip in CLIPS[:count]) / RATE, abs=1e-3)
    population = classify.model.base_model.feature_statistics.mean.numpy()
    shrunk = (count * features.mean(0) + relevance * population) / (count + relevance)  # Reynolds et al., eq. 12
    np.testing.assert_allclose(profile.shift(population), shrunk - population, atol=1e-5)


def test_predictions_are_relative_to_the_profile_and_unchanged_without_one(classify, tmp_path):
    profile = classify.enroll(CLIPS[:3])
    plain = classify(CLIPS[4])
    profile.save(tmp_path / "voice.json")
    shift = torch.tensor(profile.shift(classify.model.base_model.feature_statistics.mean.numpy()))
    logits = classify.model.classify_features(torch.tensor(features_of(classify, CLIPS[4]))[None] - shift)
    expected = logits.softmax(-1)[0].tolist()
    for speaker in (profile, str(tmp_path / "voice.json"), tmp_path / "voice.json", [profile]):
        np.testing.assert_allclose(scores_of(classify(CLIPS[4], speaker=speaker)), expected, atol=1e-5)
    assert np.abs(np.subtract(scores_of(plain), expected)).max() > 1e-3
    assert classify(CLIPS[4]) == plain == classify(CLIPS[4], speaker=None)
    own = pipeline_of(classify.model, speaker=profile)
    np.testing.assert_allclose(scores_of(own(CLIPS[4])), expected, atol=1e-5)


def test_each_recording_may_have_its_own_profile(classify):
    one, other = classify.enroll(CLIPS[:2]), classify.enroll(CLIPS[2:4])
    speakers = [one, None, other, one, None]
    together = classify(CLIPS, speaker=(each for each in speakers), batch_size=4)
    separate = [classify(clip, speaker=speaker) for clip, speaker in zip(CLIPS, speakers, strict=True)]
    for prediction, expected in zip(together, separate, strict=True):
        np.testing.assert_allclose(scores_of(prediction), scores_of(expected), atol=1e-5)
    with pytest.raises(ValueError, match="fewer profiles than there are recordings"):
        classify(CLIPS, speaker=[one, other])


def test_windows_of_a_long_recording_count_as_clips_and_are_classified_relative_to_the_profile(classify):
    long = sound(2.0)
    profile = classify.enroll(long, window_s=0.5, hop_s=0.1)
    assert profile.clips == 4 and profile.seconds == pytest.approx(2.0)
    rows = classify(long, window_s=0.5, speaker=profile)
    alone = classify({**long, "array": long["array"][: RATE // 2]}, speaker=profile)
    np.testing.assert_allclose([rows[0]["scores"][label] for label in LABELS], scores_of(alone), atol=1e-5)


def test_silence_is_left_out_and_silence_alone_is_refused(classify):
    silent = {"array": np.zeros(RATE, np.float32), "sampling_rate": RATE}
    profile = classify.enroll([silent, CLIPS[0], silent])
    assert profile.clips == 1
    np.testing.assert_allclose(profile.mean, classify.enroll(CLIPS[0]).mean, atol=1e-6)
    for recordings in ([silent, silent], silent, []):
        with pytest.raises(AudioError, match="all are silent, or cannot be read"):
            classify.enroll(recordings)


def test_recordings_that_cannot_be_read_are_named_or_left_out(classify, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    with pytest.raises(AudioError, match="broken.wav"):
        classify.enroll([CLIPS[0], str(broken)])
    assert classify.enroll([CLIPS[0], str(broken)], on_error="skip").clips == 1


@pytest.mark.parametrize("relevance", [-1, -0.1, float("nan"), float("inf"), "4", None, True])
def test_an_invalid_relevance_is_refused(classify, relevance):
    with pytest.raises(ValueError, match="relevance=.* 0 or more"):
        classify.enroll(CLIPS[:1], relevance=relevance)


def test_models_that_cannot_enroll_give_the_reason():
    with pytest.raises(ValueError, match="keeps no statistics .* train it again"):
        pipeline_of(convnet_model()).enroll(CLIPS[:1])
    for changes in ({"fusion": "attention"}, {"head": "decoder"}):
        with pytest.raises(ValueError, match="No speaker can be enrolled with fusion="):
            pipeline_of(convnet_model(**changes)).enroll(CLIPS[:1])


def test_a_profile_of_another_model_is_refused(classify, tmp_path):
    for seed in (1, 2):
        other = pipeline_of(model_with_statistics(seed=seed)).enroll(CLIPS[:1])
        other.save(tmp_path / "other.json")
        for speaker in (other, tmp_path / "other.json"):
            with pytest.raises(ValueError, match="made by another model"):
                classify(CLIPS[0], speaker=speaker)
    assert features_digest(classify.model) != features_digest(classify.model.half()) and classify.model.float()


def test_a_profile_is_read_as_it_was_saved(classify, tmp_path):
    profile = classify.enroll(CLIPS[:3], relevance=1.5)
    profile.save(tmp_path / "voice.json")
    read = SpeakerProfile.load(tmp_path / "voice.json")
    for name, value in vars(profile).items():
        assert np.array_equal(getattr(read, name), value), name
    assert [path.name for path in tmp_path.iterdir()] == ["voice.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text[: len(text) // 2], "is not a complete speaker profile"),
        (lambda text: "", "is not a complete speaker profile"),
        (lambda text: "[1, 2]", "is not a speaker profile"),
        (lambda text: '{"UA": 0.5}', "is not a speaker profile"),
        (lambda text: text.replace('"clips": 1', '"clips": 0'), "is a broken speaker profile"),
        (lambda text: text.replace('"relevance": 4.0', '"relevance": -4.0'), "is a broken speaker profile"),
        (lambda text: text.replace('"mean": [', '"mean": [NaN, '), "is a broken speaker profile"),
        (lambda text: text.replace('"mean": [', '"mean": [0.5, '), "is a broken speaker profile"),
        (lambda text: text.replace('"seconds"', '"minutes"'), "is a broken speaker profile"),
    ],
)
def test_an_incomplete_or_invalid_profile_is_refused(classify, tmp_path, change, message):
    path = tmp_path / "voice.json"
    classify.enroll(CLIPS[:1]).save(path)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(ValueError, match=f"voice.json {message}.* Create it again"):
        classify(CLIPS[0], speaker=path)


def test_joined_profiles_are_those_of_all_clips(classify):
    joined = SpeakerProfile.joined([classify.enroll(CLIPS[:1]), classify.enroll(CLIPS[1:])])
    whole = classify.enroll(CLIPS)
    assert (joined.clips, joined.model) == (whole.clips, whole.model)
    assert joined.seconds == pytest.approx(whole.seconds)
    np.testing.assert_allclose(joined.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(joined.deviation, whole.deviation, atol=1e-5)


@pytest.mark.slow
def test_clips_that_seem_to_be_of_two_speakers_give_a_warning():
    model = model_with_statistics()
    classify = pipeline_of(model)
    one = [sound(0.5, f0=118 + index, seed=index) for index in range(8)]
    two = one[:4] + [sound(0.5, f0=290 + index, seed=index) for index in range(4)]
    features = np.stack([features_of(classify, clip) for clip in one + two[4:]])
    statistics = model.base_model.feature_statistics
    statistics.deviation.copy_(torch.tensor(features.std(0)))
    statistics.speaker_deviation.copy_(torch.tensor(np.abs(features[:8].mean(0) - features[8:].mean(0))))
    statistics.largest_spread.fill_(statistics.spread(torch.tensor(features[:8].std(0))))
    classify = pipeline_of(model)
    with pytest.warns(UserWarning, match="8 clips differ more, .* may be of several speakers"):
        classify.enroll(two)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classify.enroll(one)
        classify.enroll(two[2:6])  # too few for a warning
        classify.enroll(two, several_speakers=True)


# ---- The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    model_with_statistics().save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Writes clips of two speakers, a list of them, and a list in which one speaker is missing."""
    folder = tmp_path_factory.mktemp("clips")
    for name, f0 in (("ann", 220), ("bob", 110)):
        (folder / name).mkdir()
        for index in range(3):
            waveform = voice(0.4 + 0.1 * index, f0=f0 + 20 * index, sampling_rate=RATE, seed=index)
            soundfile.write(folder / name / f"{index}.wav", waveform, RATE)
    rows = [f"{name}/{index}.wav,{name}" for index in range(3) for name in ("ann", "bob")]
    (folder / "list.csv").write_text("\n".join(["file,speaker", *rows]))
    (folder / "unknown.csv").write_text("\n".join(["file,speaker", *rows[:-1], "bob/2.wav,"]))
    return folder


def predicted(path) -> dict[str, list[float]]:
    with open(path, newline="") as file:
        return {row["file"]: [float(row[label]) for label in LABELS] for row in csv.DictReader(file)}


def run(checkpoint, *arguments) -> int:
    return predict_ser.main(["--model", checkpoint, "--device", "cpu", *map(str, arguments)])


@pytest.mark.slow
def test_a_speaker_is_enrolled_and_adapted_to(checkpoint, clips, tmp_path, capsys):
    profile, output = tmp_path / "voice.json", tmp_path / "out.csv"
    assert run(checkpoint, "--enroll", clips / "ann", "--speaker_profile", profile, "--relevance", 2) == 0
    assert "a profile of 3 clips, 1.5 s of audio" in capsys.readouterr().err
    assert json.loads(profile.read_text())["relevance"] == 2
    assert run(checkpoint, clips / "ann", "--adapt", profile, "--output", output) == 0
    classify = pipeline_of(predict_ser.load_pipeline(checkpoint, "cpu").model)
    for file, scores in predicted(output).items():
        np.testing.assert_allclose(scores, scores_of(classify(file, speaker=profile)), atol=1e-5)
    both = tmp_path / "both.csv"
    arguments = ["--enroll", clips / "ann", "--speaker_profile", tmp_path / "again.json", "--relevance", 2]
    assert run(checkpoint, clips / "ann", *arguments, "--output", both) == 0
    assert predicted(both) == predicted(output)


@pytest.mark.slow
@pytest.mark.parametrize("adapt", first_fast(["speaker", "table"]))
def test_a_list_is_adapted_to_its_speakers_or_as_a_whole(checkpoint, clips, tmp_path, adapt):
    output = tmp_path / "out.csv"
    assert run(checkpoint, clips / "list.csv", "--adapt", adapt, "--output", output) == 0
    classify = predict_ser.load_pipeline(checkpoint, "cpu")
    found = predicted(output)
    assert [*found][:2] == [str(clips / "ann" / "0.wav"), str(clips / "bob" / "0.wav")]  # in the order of the list
    for file, scores in found.items():
        group = [each for each in found if adapt == "table" or each.split("/")[-2] == file.split("/")[-2]]
        profile = classify.enroll(group, several_speakers=True)
        assert profile.clips == (6 if adapt == "table" else 3)
        np.testing.assert_allclose(scores, scores_of(classify(file, speaker=profile)), atol=1e-5)


@pytest.mark.slow
def test_a_table_with_another_adaptation_is_not_continued(checkpoint, clips, tmp_path, capsys):
    output = tmp_path / "out.csv"
    assert run(checkpoint, clips / "list.csv", "--adapt", "table", "--output", output) == 0
    assert run(checkpoint, clips / "list.csv", "--adapt", "table", "--output", output) == 0  # the same again
    before = output.read_text()
    for inputs in (
        [clips / "list.csv"],
        [clips / "list.csv", "--adapt", "speaker"],
        [clips / "ann", "--adapt", "table"],
        [clips / "list.csv", "--adapt", "table", "--relevance", 1],
    ):
        capsys.readouterr()
        assert run(checkpoint, *inputs, "--output", output) == 2
        assert "holds rows made with another adapt" in capsys.readouterr().err and output.read_text() == before


@pytest.mark.slow
def test_a_table_of_a_version_without_profiles_is_continued(checkpoint, clips, tmp_path):
    output = tmp_path / "out.csv"
    assert run(checkpoint, clips / "ann", "--output", output) == 0
    origin = tmp_path / "out.csv.origin.json"
    known = json.loads(origin.read_text())
    assert known.pop("adapt") is None
    origin.write_text(json.dumps(known))
    assert run(checkpoint, clips, "--output", output) == 0 and len(predicted(output)) == 6


@pytest.mark.slow
def test_invalid_adaptations_are_refused_with_one_line(checkpoint, clips, tmp_path, capsys):
    silent = tmp_path / "silent"
    silent.mkdir()
    soundfile.write(silent / "0.wav", np.zeros(RATE), RATE)
    (tmp_path / "broken.json").write_text("{")
    plain = tmp_path / "plain"
    convnet_model().save_pretrained(plain)
    tiny_feature_extractor().save_pretrained(plain)
    cases = [
        (checkpoint, [clips / "unknown.csv", "--adapt", "speaker"], "1 have none, such as .*2.wav: give a list"),
        (checkpoint, [clips / "ann", "--adapt", "speaker"], "3 have none, such as"),
        (checkpoint, [clips / "ann", "--adapt", tmp_path / "none.json"], "none.json cannot be read"),
        (checkpoint, [clips / "ann", "--adapt", tmp_path / "broken.json"], "is not a complete speaker profile"),
        (str(plain), [clips / "ann", "--adapt", "table"], "keeps no statistics"),
        (checkpoint, ["--enroll", silent, "--speaker_profile", tmp_path / "a.json"], "all are silent"),
        (
            checkpoint,
            ["--enroll", clips / "ann", "--speaker_profile", tmp_path / "no" / "a.json"],
            "cannot be written",
        ),
    ]
    for model, arguments, message in cases:
        assert run(model, *arguments) == 2, arguments
        stderr = capsys.readouterr().err
        assert re.search(message, stderr), stderr
    for arguments, message in [
        ([], "are required"),
        (["--enroll", clips / "ann"], "must be given together"),
        ([clips / "ann", "--speaker_profile", "a.json"], "must be given together"),
        ([clips / "ann", "--adapt", "table", "--relevance", -1], "--relevance must be"),
        (["--enroll", clips / "ann", "--speaker_profile", "a.json", "--adapt", "table"], "cannot be combined"),
    ]:
        with pytest.raises(SystemExit):
            run(checkpoint, *arguments)
        assert message in capsys.readouterr().err


def test_a_speaker_whose_recordings_are_all_silent_has_no_profile(classify, clips, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    items = [Item(str(clips / "ann" / "0.wav"), None, "ann"), Item(str(tmp_path / "silent.wav"), None, "sil")]
    found = profiles_of(pipeline_of(model_with_statistics()), "speaker", items, 4.0)
    assert [*found] == [items[0].file]
    with pytest.raises(UsageError, match="No speaker can be enrolled|keeps no statistics"):
        profiles_of(pipeline_of(convnet_model()), "table", items, 4.0)


@pytest.mark.parametrize("count, relevance, share", [(0, 4, 0), (4, 4, 0.5), (12, 4, 0.75), (3, 0, 1)])
def test_a_shift_is_a_share_of_the_difference(count, relevance, share):
    mean, population = np.array([3.0, -1.0]), np.array([1.0, 1.0])
    np.testing.assert_allclose(map_shift(mean, count, population, relevance), share * (mean - population))
