"""Dimensions of corpora (arousal, valence, dominance, intensity), read from columns and scaled to 0 to 1."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ser.data.corpora import load_corpora, load_corpus
from ser.data.corpora.corpus import Corpus
from ser.data.corpora.demo import dimensions_of_clip, prosody_of_clip
from ser.data.corpora.dimensions import dimensions_of
from ser.data.corpora.iemocap import IEMOCAP_VOTES
from ser.data.protocols import make_split
from ser.evaluation.report import splits_table
from ser.utils import DataError
from tests.helpers.clips import write_parquet, write_sound

AVD = ["arousal", "valence", "dominance"]


def values_of(corpus: Corpus) -> dict[str, list[float]]:
    return dict(zip(corpus.files, np.round(dimensions_of(corpus.clips), 6).tolist(), strict=True))


# file, major_emotion, votes, EmoAct, EmoVal, EmoDom
IEMOCAP_ROWS = [
    ("Ses01F_impro01_F000.wav", "neutral", {"neutral": 3}, 2.5, 3.0, 2.0),
    ("Ses01F_impro01_M000.wav", "happy", {"happy": 2}, 4.0, 4.5, 3.5),
    ("Ses02M_script01_1_F003.wav", "angry", {"angry": 2, "frustrated": 2}, 5.0, 1.0, 4.5),
    ("Ses03F_impro02_F001.wav", "sad", {"sad": 2}, 1.0, 1.5, 2.0),
    ("Ses05F_impro04_F006.wav", "frustrated", {"frustrated": 3}, 3.0, 2.0, 5.5),
    ("Ses05F_impro04_F007.wav", "other", {"neutral": 1}, None, None, None),
]


@pytest.fixture
def iemocap(tmp_path) -> str:
    files, emotions, votes, *ratings = zip(*IEMOCAP_ROWS, strict=True)
    columns = {"file": files, "major_emotion": emotions}
    columns |= {name: [float(vote.get(name, 0)) for vote in votes] for name in IEMOCAP_VOTES}
    columns |= dict(zip(("EmoAct", "EmoVal", "EmoDom"), ratings, strict=True))
    write_parquet(tmp_path / "iemocap", "train", columns, list(files))
    return str(tmp_path / "iemocap")


def test_iemocap_keeps_every_rated_clip_whatever_its_emotion(iemocap):
    corpus = load_corpus("AbstractTTS/IEMOCAP", iemocap, target="dimensions")
    assert corpus.dimensions == dict.fromkeys(AVD, [1.0, 5.0]) and corpus.label_names == []
    assert corpus.labels == [-1] * 5 and corpus.dropped == {"no value of arousal, valence, dominance": 1}
    assert values_of(corpus) == {
        "Ses01F_impro01_F000.wav": [0.375, 0.5, 0.25],
        "Ses01F_impro01_M000.wav": [0.75, 0.875, 0.625],
        "Ses02M_script01_1_F003.wav": [1.0, 0.0, 0.875],
        "Ses03F_impro02_F001.wav": [0.0, 0.125, 0.25],
        "Ses05F_impro04_F006.wav": [0.5, 0.25, 1.125],  # a rating beyond the scale is kept as it is
    }
    some = load_corpus("AbstractTTS/IEMOCAP", iemocap, target="dimensions", dimensions=["valence", "arousal"])
    assert values_of(some)["Ses01F_impro01_F000.wav"] == [0.5, 0.375]
    assert corpus.speakers == [None if not f else f"{f[:5]}{f[-8]}" for f in corpus.files]


def test_target_both_keeps_clips_with_a_class_or_a_rating(iemocap):
    names = ["neutral", "happy", "sad"]
    corpus = load_corpus("iemocap", iemocap, target="both", labels=names)
    assert corpus.classes == ["neutral", "happy", None, "sad", None]  # None: rated only
    assert corpus.dropped == {"class 'other' not among those kept": 1}
    merged = load_corpus("iemocap", iemocap, target="both", labels=["neutral", "sad"], merge_labels=["happy=sad"])
    assert merged.classes == ["neutral", "sad", None, "sad", None]
    plain = load_corpus("iemocap", iemocap)
    assert len(plain) == 4 and "dimensions" not in plain.clips.column_names and not plain.dimensions


def test_a_copy_of_iemocap_without_ratings_is_refused(tmp_path):
    files = [row[0] for row in IEMOCAP_ROWS]
    write_parquet(tmp_path, "train", {"file": files, "major_emotion": ["sad"] * 6}, files)
    with pytest.raises(DataError, match="has no dimensions: name a source with columns such as arousal"):
        load_corpus("AbstractTTS/IEMOCAP", str(tmp_path), target="dimensions")


def test_the_iemocap_release_gives_valence_arousal_and_dominance(tmp_path):
    turns = {"F000": ("neu", "[2.5000, 3.5000, 2.0000]"), "M000": ("xxx", "[4.0, 1.0, 5.0]"), "F001": ("fru", "")}
    notes = tmp_path / "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt"
    lines = []
    for seed, (turn, (code, ratings)) in enumerate(turns.items()):
        lines += [f"[6.29 - 8.23]\tSes02F_impro01_{turn}\t{code}\t{ratings}", "C-E2:\tNeutral;\t()"]
        write_sound(tmp_path / f"Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_{turn}.wav", seed)
    notes.parent.mkdir(parents=True)
    notes.write_text("\n".join(lines))
    corpus = load_corpus("iemocap", str(tmp_path), target="dimensions")
    assert values_of(corpus) == {
        "Ses02F_impro01_F000.wav": [0.625, 0.375, 0.25],
        "Ses02F_impro01_M000.wav": [0.0, 0.75, 1.0],
    }
    assert corpus.dropped == {"no value of arousal, valence, dominance": 1}
    both = load_corpus("iemocap", str(tmp_path), target="both", labels=["neutral", "frustrated"])
    assert both.classes == ["neutral", None, "frustrated"]


@pytest.mark.parametrize("name, tested", [("msp-podcast", "Test1"), ("msp-podcast-test2", "Test2")])
def test_msp_podcast_has_its_consensus_ratings(tmp_path, name, tested):
    parts = {"Train": "12", "Development": "3", "Test1": "4", "Test2": "5", "Test3": "6"}
    head = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
    lines, expected = [head], {}
    for offset, (part, speakers) in enumerate(parts.items()):
        for index, code in enumerate("ANXO"):
            file = f"MSP-PODCAST_{offset:04d}_{index:04d}.wav"
            ratings = ["", "", ""] if part == "Test3" else [1 + 1.5 * index, 7 - 1.5 * index, 4.0]
            lines.append(",".join(map(str, [file, code, *ratings, speakers[index % len(speakers)], "Female", part])))
            write_sound(tmp_path / "Audios" / file, 10 * offset + index)
            if part in ("Train", "Development", tested):
                expected[file] = [0.25 * index, 1 - 0.25 * index, 0.5]
    (tmp_path / "Labels").mkdir()
    (tmp_path / "Labels" / "labels_consensus.csv").write_text("\n".join(lines))
    corpus = load_corpus(name, str(tmp_path), target="dimensions")
    assert values_of(corpus) == expected and corpus.dimensions == dict.fromkeys(AVD, [1.0, 7.0])
    assert Counter(corpus.clips["split"][:]) == {"train": 4, "validation": 4, "test": 4}
    assert sum(corpus.dropped.values()) == 8
    both = load_corpus(name, str(tmp_path), target="both", labels=["anger", "neutral"])
    assert Counter(both.classes) == {"anger": 3, "neutral": 3, None: 6}
    assert make_split(corpus).name.endswith("predefined")


def test_the_intensity_of_ravdess_is_read_from_the_file_names_of_any_source(tmp_path):
    names = [f"03-01-{emotion:02d}-{strength:02d}-01-01-{actor:02d}.wav"
             for actor in (1, 2) for emotion, strength in ((1, 1), (3, 1), (3, 2), (5, 2))]  # fmt: skip
    for seed, name in enumerate(names):
        write_sound(tmp_path / "tree" / f"Actor_{name[-6:-4]}" / name, seed)
    columns = {"labels": [0, 2, 2, 4] * 2, "speaker_id": ["1"] * 4 + ["2"] * 4}
    classes = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
    write_parquet(tmp_path / "hub", "train", columns, names, {"labels": classes})
    for folder in ("tree", "hub"):
        corpus = load_corpus("ravdess", str(tmp_path / folder), target="dimensions")
        found = {Path(file).name: values for file, values in values_of(corpus).items()}
        assert found == {name: [float(name[9:11] == "02")] for name in names}
        assert corpus.dimensions == {"intensity": [1.0, 2.0]} and {*corpus.speakers} == {"01", "02"}


LINES = [
    "file,arousal,Valence ,speaker",
    "a.wav,2,4.5,s1",
    "b.wav,,1,s1",
    "c.wav,5,,s2",
    "d.wav,NaN,,s2",
    "e.wav,1,3,s3",
]


def table(folder: Path, lines: list[str], name: str = "clips.csv") -> str:
    for seed, letter in enumerate("abcdef"):
        write_sound(folder / f"{letter}.wav", seed)
    (folder / name).write_text("\n".join(lines))
    return str(folder / name)


def test_a_list_with_some_of_the_columns_needs_no_labels(tmp_path):
    path = table(tmp_path, LINES)
    corpus = load_corpus(path, target="dimensions", dimension_range=[1, 5])
    assert corpus.dimensions == {"arousal": [1.0, 5.0], "valence": [1.0, 5.0]}
    np.testing.assert_equal(dimensions_of(corpus.clips), [[0.25, 0.875], [np.nan, 0], [1, np.nan], [0, 0.5]])
    assert corpus.dropped == {"no value of arousal, valence": 1} and corpus.speakers == ["s1", "s1", "s2", "s3"]
    one = load_corpus(path, target="dimensions", dimensions=["arousal"], dimension_range=[1, 5])
    assert one.files == ["a.wav", "c.wav", "e.wav"]
    split = make_split(one, "random", validation_share=0)
    clips = splits_table(one, split, 42)["clips"]
    assert all(clip["label"] is None for clip in clips) and {clip["dimensions"][0] for clip in clips} == {0.25, 1, 0}


def test_lists_of_other_forms_and_columns(tmp_path):
    rows = [{"file": f"{letter}.wav", "label": label, "power": power} for letter, label, power in
            (("a", "x", -1), ("b", "y", 0.5), ("c", None, 1), ("d", "x", None))]  # fmt: skip
    path = table(tmp_path, [json.dumps(row) for row in rows], "clips.jsonl")
    corpus = load_corpus(path, target="both", dimensions=["power"], dimension_range=[-1, 1])
    np.testing.assert_equal(dimensions_of(corpus.clips), [[0], [0.75], [1], [np.nan]])
    assert corpus.classes == ["x", "y", None, "x"]
    columns = {"arousal": [0.1, None, 0.3], "label": ["x", "y", "x"]}
    write_parquet(tmp_path / "own", "train", columns, ["p.wav", "q.wav", "r.wav"])
    stored = load_corpus(str(tmp_path / "own"), target="both")
    np.testing.assert_allclose(dimensions_of(stored.clips), [[0.1], [np.nan], [0.3]])
    assert stored.classes == ["x", "y", "x"] and stored.dimensions == {"arousal": [0.0, 1.0]}
    write_parquet(tmp_path / "plain", "train", {"valence": [0.5, 1.0]}, ["p.wav", "q.wav"])
    assert len(load_corpus(str(tmp_path / "plain"), target="dimensions")) == 2  # without a label column
    flat = tmp_path / "flat"
    table(flat, ["file_name,dominance", "a.wav,0.5", "b.wav,1"], "metadata.csv")  # without class folders
    assert values_of(load_corpus(str(flat), target="dimensions")) == {"a.wav": [0.5], "b.wav": [1.0]}


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["file,arousal", "a.wav,3.5"], {}, "arousal of a.wav is 3.5, outside the scale from 0 to 1: .*_range 1 5"),
        (["file,valence", "b.wav,-1"], {"dimension_range": [1, 7]}, "valence of b.wav is -1, outside the scale"),
        (["file,arousal", "a.wav,high"], {}, "arousal of a.wav is 'high', which is not a number"),
        (["file,valence", "a.wav,inf"], {}, "valence of a.wav is 'inf', which is not a number"),
        (["file,label", "a.wav,x"], {}, "has no dimensions: name a source with columns such as arousal, valence"),
        (["file,arousal", "a.wav,1"], {"dimensions": ["power"]}, "has no dimension 'power'; it has none"),
        (["file,speaker,arousal", "a.wav,s,1"], {"dimensions": ["speaker"]}, "speaker of a.wav is 's', which is not"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_used_are_named(tmp_path, lines, options, message):
    with pytest.raises(DataError, match=message):
        load_corpus(table(tmp_path, lines), target="dimensions", **options)


def test_options_that_do_not_apply_are_refused(tmp_path, demo_corpus):
    path = table(tmp_path, LINES)
    with pytest.raises(DataError, match="no column 'label'"):
        load_corpus(path, target="both", dimension_range=[1, 5])
    with pytest.raises(DataError, match="The scale of .* is known: leave out --dimension_range"):
        load_corpus("demo", str(demo_corpus), target="dimensions", dimension_range=[0, 1])
    with pytest.raises(DataError, match="has no dimension 'dominance'; it has arousal, valence"):
        load_corpus("demo", str(demo_corpus), target="dimensions", dimensions=["dominance"])
    with pytest.raises(DataError, match="--target is for a single corpus"):
        load_corpora(["demo", path], [str(demo_corpus), "none"], target="dimensions")
    lines = ["file,label,happy", "a.wav,happy,1", "b.wav,sad,0"]
    with pytest.raises(DataError, match="'happy' as a class and as a dimension"):
        load_corpus(table(tmp_path, lines), target="both", dimensions=["happy"])


def test_equal_sound_under_different_ratings_is_left_out(tmp_path):
    path = table(tmp_path, ["file,arousal", "a.wav,0.5", "b.wav,0.5", "c.wav,0.1", "d.wav,0.2"])
    for copy, letter in (("b", "a"), ("d", "c")):
        (tmp_path / f"{copy}.wav").write_bytes((tmp_path / f"{letter}.wav").read_bytes())
    corpus = load_corpus(path, target="dimensions", drop_duplicates=True)
    assert corpus.files == ["a.wav"]
    assert corpus.dropped == {"equal sound as another clip": 1, "equal sound under different labels": 2}


def test_a_single_clip_without_a_class_does_not_prevent_a_random_split(tmp_path):
    lines = [
        "file,label,arousal",
        *(f"{letter}.wav,{label},0.5" for letter, label in zip("abcdef", "xyxy", strict=False)),
    ]
    corpus = load_corpus(table(tmp_path, [*lines, "e.wav,,1"]), target="both")
    split = make_split(corpus, "random", validation_share=0)
    assert sorted([*split.train, *split.test]) == [0, 1, 2, 3, 4]
    assert Counter(corpus.classes) == {"x": 2, "y": 2, None: 1}


def test_the_demo_corpus_rates_its_clips_by_their_prosody(demo_corpus):
    corpus = load_corpus("demo", str(demo_corpus), target="both")
    found = values_of(corpus)
    assert found["voice_03/angry_01.wav"] == pytest.approx([*dimensions_of_clip("angry", 3, 1).values()], abs=1e-6)
    values, emotions = dimensions_of(corpus.clips), np.array(corpus.classes)
    arousal, valence = ({e: values[emotions == e, d].mean() for e in {*emotions}} for d in (0, 1))
    assert arousal["sad"] < arousal["neutral"] < min(arousal["happy"], arousal["angry"])
    assert max(valence["angry"], valence["sad"]) < valence["neutral"] < valence["happy"]
    assert values.min() > 0 and values.max() < 1 and values[emotions == "neutral"].std(0).min() > 0.02
    # Louder and faster clips are rated higher in arousal, rising contours higher in valence.
    rated = [(prosody_of_clip("happy", voice, 0)[0], dimensions_of_clip("happy", voice, 0)) for voice in range(40)]
    for cue, dimension in (("level", "arousal"), ("rate", "arousal"), ("slope", "valence")):
        cues, ratings = [getattr(prosody, cue) for prosody, _ in rated], [rating[dimension] for _, rating in rated]
        assert np.corrcoef(cues, ratings)[0, 1] > 0.2, cue
