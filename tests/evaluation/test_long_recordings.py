"""Small runs of the benchmarks that join clips into long recordings."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from benchmarks import long_recordings, pipeline
from benchmarks.results import speakers_of
from ser.data.corpora import load_corpus
from ser.data.corpora.ravdess import RAVDESS_EMOTIONS
from ser.models import load_pipeline
from tests.helpers.tiny import convnet_model, tiny_feature_extractor, voice

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PARTS = {"01": "train", "02": "validation", "03": "test"}


@pytest.fixture(scope="module")
def ravdess(tmp_path_factory):
    """Writes four clips of every emotion by two actors, named as in RAVDESS."""
    folder = tmp_path_factory.mktemp("ravdess")
    for actor in ("02", "03"):
        (folder / f"Actor_{actor}").mkdir()
        for emotion in range(1, 9):
            for take in range(4):
                sound = voice(0.4, f0=80 + 10 * emotion + int(actor), sampling_rate=16_000, seed=take)
                name = f"03-01-{emotion:02d}-{1 + take // 2:02d}-01-{1 + take % 2:02d}-{actor}.wav"
                soundfile.write(folder / f"Actor_{actor}" / name, 0.1 * (1 + take) * sound, 16_000)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Saves a model that always predicts anger."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = convnet_model(len(RAVDESS_EMOTIONS))
    model.config.id2label = dict(enumerate(RAVDESS_EMOTIONS))
    model.config.label2id = {name: index for index, name in enumerate(RAVDESS_EMOTIONS)}
    with torch.no_grad():
        model.classifier.out_proj.bias[RAVDESS_EMOTIONS.index("angry")] = 100.0
    model.save_pretrained(folder)
    tiny_feature_extractor().save_pretrained(folder)
    clips = [{"file": f"{speaker}.wav", "part": part, "speaker": speaker} for speaker, part in PARTS.items()]
    (folder / "splits.json").write_text(json.dumps({"clips": clips}))
    return folder


def run(benchmark, monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", [f"{benchmark.__name__}.py", *map(str, flags)])
    benchmark.main()


@pytest.mark.parametrize(("flags", "actor"), [([], "03"), (["--part", "validation"], "02"), (["--actors", 2], "02")])
def test_smoothing_is_varied_for_actors_of_the_requested_part(
    ravdess, checkpoint, flags, actor, tmp_path, monkeypatch, capsys
):
    kept, plot = tmp_path / "figures.json", tmp_path / "joined.png"
    windows = ["--window", 1, "--hop", 1, "--smooth", 1, 3]
    run(long_recordings, monkeypatch, checkpoint, ravdess, *flags, *windows, "--json", kept, "--figure", plot)
    corpus = load_corpus("ravdess", str(ravdess))
    waveform, reference = long_recordings.join_clips(corpus, actor, 44_100, False, 0)
    emotional = sum(segment.end - segment.start for segment in reference)
    angry = sum(segment.end - segment.start for segment in reference if segment.label == "angry")
    figures = json.loads(kept.read_text())["figures"]["by_levels_and_smooth"]
    assert list(figures) == ["as recorded", "equalised"] and list(figures["equalised"]) == ["1", "3"]
    for scores in (figures[levels][smooth] for levels in figures for smooth in ("1", "3")):
        assert scores["time_right"] == pytest.approx(angry / emotional, abs=1e-3)
        assert scores["EDER"] == pytest.approx(1 - angry / (len(waveform) / 44_100), abs=1e-3)
        assert scores["answer_segments"] == 1 and scores["segment_F1"] == 0
    printed = capsys.readouterr().out.splitlines()[6:]  # after the table by length
    assert printed[0].startswith(f"actors {actor}; windows of 1 s every 1 s; chance 0.125")
    assert printed[3] == f"| as recorded | 1 | {angry / emotional:.3f} | {scores['EDER']:.3f} | 0.000 |"
    assert [line.split(" | ")[:2] for line in printed[3:7]] == [
        ["| as recorded", "1"], ["| as recorded", "3"], ["| equalised", "1"], ["| equalised", "3"],
    ]  # fmt: skip
    with Image.open(plot) as drawn:
        assert drawn.size == (1800, 720)


def test_recordings_of_one_emotion_are_scored_by_the_number_of_their_clips(
    ravdess, checkpoint, tmp_path, monkeypatch, capsys
):
    kept = tmp_path / "figures.json"
    run(long_recordings, monkeypatch, checkpoint, ravdess, "--clips", 1, 3, 8, "--smooth", "--json", kept)
    figures = json.loads(kept.read_text())["figures"]
    assert list(figures) == ["by_clips"]
    # The four clips of each emotion make four recordings of one clip, one of three, and one of four for `--clips 8`.
    expected = {"1": (32, 0.4), "3": (8, 1.2), "8": (8, 1.6)}
    for clips, (recordings, seconds) in expected.items():
        row = figures["by_clips"][clips]
        assert (row["recordings"], row["mean_s"]) == (recordings, pytest.approx(seconds, abs=1e-3))
        assert row["UA"] == row["UA_as_one"] == 0.125
    assert capsys.readouterr().out.splitlines()[2] == "| 1 | 32 | 0.4 s | 0.125 | 0.125 |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the figures of the demo recipe are those of a CPU")
def test_a_trained_model_recognises_long_recordings_as_well_as_clips(trained_demo):
    """Recordings of two, four and eight clips are recognised as often as single clips."""
    classify = load_pipeline(str(trained_demo), "cpu", batch_size=16)
    config = classify.model.config
    splits = json.loads((trained_demo / "splits.json").read_text())["clips"]
    corpus = load_corpus("demo", cache_dir=str(trained_demo.parent / "cache"))
    longest = max(
        soundfile.info(corpus.clips[corpus.files.index(clip["file"])]["audio"]["path"]).duration
        for clip in splits
        if clip["part"] == "train"
    )
    assert longest <= config.max_clip_s < longest + 1e-3 and config.window_s == config.max_clip_s
    table = long_recordings.scores_by_clips(classify, corpus, speakers_of(trained_demo), [1, 2, 4, 8])
    assert table[1]["UA"] >= 0.8
    for clips in (2, 4, 8):
        assert table[clips]["UA"] >= table[1]["UA"] - 0.05, table


def test_joined_clips_have_one_level_if_requested(ravdess):
    corpus = load_corpus("ravdess", str(ravdess))
    for equalised in (False, True):
        waveform, reference = long_recordings.join_clips(corpus, "03", 44_100, equalised, 0)
        spans = [waveform[round(44_100 * segment.start) : round(44_100 * segment.end)] for segment in reference]
        levels = [20 * np.log10(np.sqrt(np.mean(np.square(span[span != 0])))) for span in spans]
        assert (np.ptp(levels) < 0.5) == equalised
        assert sorted(segment.label for segment in reference) == sorted(2 * RAVDESS_EMOTIONS)


def test_one_command_plots_a_long_recording_by_any_checkpoint(ravdess, checkpoint, tmp_path, monkeypatch, capsys):
    plot, kept = tmp_path / "timeline.png", tmp_path / "figures.json"
    flags = ["--minutes", 0.2, "--window", 1, "--hop", 0.5, "--figure", plot, "--json", kept]
    run(pipeline, monkeypatch, "long_recording", checkpoint, ravdess, *flags)
    figures = json.loads(kept.read_text())["figures"]
    assert (figures["angry_half_named"], figures["calm_half_named"]) == (1, 0)
    assert [row["windows"] for row in figures["recordings"]] == [2, 23] and figures["border_s"] == 6
    with Image.open(plot) as drawn:
        assert drawn.size == (900, 630)
    assert f"wrote {plot}" in capsys.readouterr().out


def test_actors_must_be_named_without_a_list_of_test_speakers(ravdess, checkpoint, tmp_path, monkeypatch):
    assert speakers_of(checkpoint) == ["03"] and speakers_of(checkpoint, "validation") == ["02"]
    with pytest.raises(SystemExit, match="has no splits.json .* name them by --actors"):
        speakers_of(tmp_path)
    convnet_model().save_pretrained(tmp_path)
    tiny_feature_extractor().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="has the classes LABEL_0, .*, but not angry or calm"):
        run(pipeline, monkeypatch, "long_recording", tmp_path, ravdess, "--actors", 3)
