"""Corpora: known ones in all their forms, and lists, folders and tables of users."""

import json
import os
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import soundfile

import ser.data.corpora.demo
import ser.data.corpora.names
from audio_maxmvit import AudioError, read_audio
from ser.cli import parse_arguments
from ser.data.corpora import Corpus, load_corpus
from ser.data.corpora.ravdess import RAVDESS_EMOTIONS
from ser.data.features import extract_features
from ser.data.prepare import read_corpus
from ser.data.protocols import resolve_protocol
from ser.utils import DataError
from tests.helpers.clips import sound, write_parquet, write_sound
from tests.helpers.tiny import tiny_feature_extractor

RAVDESS = os.environ.get("SER_RAVDESS_DIR")
VOTES = ("frustrated", "angry", "sad", "disgust", "excited", "fear", "neutral", "surprise", "happy")


@pytest.fixture
def load(tmp_path_factory):
    """Returns `load_corpus` with a separate cache."""
    return partial(load_corpus, cache_dir=str(tmp_path_factory.mktemp("cache")))


def names_of(corpus: Corpus) -> list[str]:
    return [corpus.label_names[label] for label in corpus.labels]


# --- IEMOCAP ---

# file, major_emotion, votes
IEMOCAP_ROWS = [
    ("Ses01F_impro01_F000.wav", "neutral", {"neutral": 3}),
    ("Ses01F_impro01_M000.wav", "happy", {"happy": 2, "excited": 1}),
    ("Ses02M_script01_1_F003.wav", "angry", {"angry": 2, "frustrated": 2}),
    ("Ses02M_script01_1_M004.wav", "angry", {"angry": 3}),
    ("Ses03F_impro02_F001.wav", "sad", {"sad": 2}),
    ("Ses03F_impro02_M001.wav", "sad", {"sad": 1, "neutral": 1, "fear": 1}),
    ("Ses04M_impro03_F002.wav", "excited", {"excited": 2}),
    ("Ses05F_impro04_M005.wav", "excited", {"excited": 1, "happy": 1}),
    ("Ses05F_impro04_F006.wav", "frustrated", {"frustrated": 3}),
    ("Ses05F_impro04_F007.wav", "bored", {"neutral": 1}),
]


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("iemocap")
    files, emotions, votes = zip(*IEMOCAP_ROWS, strict=True)
    columns = {"file": files, "major_emotion": emotions, "gender": ["Female"] * len(files)}
    columns |= {name: [float(vote.get(name, 0)) for vote in votes] for name in VOTES}
    write_parquet(folder, "train", columns, list(files))
    return str(folder)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"neutral": 1, "happy": 1, "angry": 2, "sad": 2}),
        ({"merge_labels": ["excited=happy"]}, {"neutral": 1, "happy": 3, "angry": 2, "sad": 2}),
        ({"unique_vote": True}, {"neutral": 1, "happy": 1, "angry": 1, "sad": 1}),
        (
            {"unique_vote": True, "merge_labels": ["excited=happy"]},
            {"neutral": 1, "happy": 2, "angry": 1, "sad": 1},
        ),
    ],
)
def test_iemocap_rules_give_the_expected_rows(load, iemocap, options, expected):
    corpus = load("AbstractTTS/IEMOCAP", iemocap, **options)
    assert corpus.label_names == ["neutral", "happy", "angry", "sad"]
    assert Counter(names_of(corpus)) == expected
    assert len(corpus) + sum(corpus.dropped.values()) == len(IEMOCAP_ROWS)
    assert corpus.dropped["unknown label 'bored'"] == 1
    assert corpus.dropped["class 'frustrated' not among those kept"] == 1
    assert corpus.options["unique_vote"] == options.get("unique_vote", False)


def test_soft_labels_are_the_votes_and_keep_clips_without_agreement(load, iemocap, demo_corpus):
    corpus = load("AbstractTTS/IEMOCAP", iemocap, soft_labels="votes")
    votes = dict(zip(corpus.files, corpus.clips["votes"][:], strict=True))
    assert votes == {
        "Ses01F_impro01_F000.wav": [3, 0, 0, 0],
        "Ses01F_impro01_M000.wav": [0, 2, 0, 0],
        "Ses02M_script01_1_F003.wav": [0, 0, 2, 0],
        "Ses02M_script01_1_M004.wav": [0, 0, 3, 0],
        "Ses03F_impro02_F001.wav": [0, 0, 0, 2],
        "Ses03F_impro02_M001.wav": [1, 0, 0, 1],
        "Ses05F_impro04_M005.wav": [0, 1, 0, 0],
        "Ses05F_impro04_F007.wav": [1, 0, 0, 0],
    }
    assert corpus.labels == [int(np.argmax(votes[file])) for file in corpus.files]
    assert corpus.dropped == {"no vote for a class that is kept": 2} and corpus.options["soft_labels"] == "votes"
    merged = load("AbstractTTS/IEMOCAP", iemocap, soft_labels="votes", merge_labels=["excited=happy"])
    votes = dict(zip(merged.files, merged.clips["votes"][:], strict=True))
    assert votes["Ses01F_impro01_M000.wav"] == [0, 3, 0, 0] and votes["Ses04M_impro03_F002.wav"] == [0, 2, 0, 0]
    assert "votes" not in load("AbstractTTS/IEMOCAP", iemocap).clips.column_names
    with pytest.raises(DataError, match="--unique_vote leaves out the clips that --soft_labels keeps"):
        load("AbstractTTS/IEMOCAP", iemocap, soft_labels="votes", unique_vote=True)
    with pytest.raises(DataError, match="soft_labels needs the annotators' votes, which .* does not have"):
        load("demo", str(demo_corpus), soft_labels="votes")


def test_incomplete_votes_are_counted_if_votes_are_needed(load, tmp_path):
    files, emotions, votes = zip(*IEMOCAP_ROWS, strict=True)
    columns = {"file": [None, *files[1:]], "major_emotion": emotions}
    columns |= {name: [float(vote.get(name, 0)) for vote in votes] for name in VOTES}
    columns["angry"][3], columns["sad"][4] = None, float("nan")
    write_parquet(tmp_path, "train", columns, list(files))
    soft = load("AbstractTTS/IEMOCAP", str(tmp_path), soft_labels="votes", labels=["neutral", "happy"])
    assert soft.dropped["annotators' votes are incomplete"] == 2
    corpus = load("AbstractTTS/IEMOCAP", str(tmp_path), unique_vote=True, labels=["neutral", "happy"])
    assert corpus.speakers == [None, "Ses01M"]
    with pytest.raises(DataError, match="annotators' votes are incomplete: 2"):
        load("AbstractTTS/IEMOCAP", str(tmp_path), unique_vote=True)
    assert len(load("AbstractTTS/IEMOCAP", str(tmp_path))) == 6


def test_a_row_that_differs_from_the_known_copy_is_named(load, tmp_path):
    columns = {"labels": [0, 1], "speaker_id": ["1", "anna"]}
    write_parquet(tmp_path, "train", columns, ["a.wav", "b.wav"], {"labels": list(RAVDESS_EMOTIONS)})
    with pytest.raises(
        DataError, match=r"Row 1 of .* differs in form from narad/ravdess \(labels 'calm', speaker_id 'anna'\)"
    ):
        load("narad/ravdess", str(tmp_path))


def test_the_superb_recipe_of_iemocap_merges_votes_and_tests_sessions(iemocap, tmp_path):
    flags = ["--data_dir", iemocap, "--cache_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    _, data_args, args = parse_arguments(["configs/iemocap_superb.yaml", *flags])
    corpus = read_corpus(data_args, args)
    assert Counter(names_of(corpus)) == {"neutral": 1, "happy": 2, "angry": 1, "sad": 1}
    assert corpus.dropped["annotators' votes tie"] == 3
    assert resolve_protocol(corpus, data_args.protocol) == "sessions"


def test_iemocap_speaker_is_the_letter_of_the_last_token(load, iemocap):
    corpus = load("iemocap", iemocap)
    speaker = dict(zip(corpus.files, corpus.speakers, strict=True))
    assert speaker["Ses01F_impro01_F000.wav"] == "Ses01F"
    assert speaker["Ses01F_impro01_M000.wav"] == "Ses01M"
    assert speaker["Ses02M_script01_1_F003.wav"] == "Ses02F"
    assert set(corpus.sessions) == {"Ses01", "Ses02", "Ses03"}
    assert corpus.options["schema"] == "AbstractTTS/IEMOCAP"
    assert corpus.clips[0]["audio"]["bytes"] == sound(0)


def test_zahra99_takes_the_session_from_the_split(load, tmp_path):
    for k in range(1, 6):
        label = {"label": [0, 1, 2, 3]}
        write_parquet(tmp_path, f"session{k}", label, [None] * 4, {"label": ["ang", "hap", "neu", "sad"]}, seed=10 * k)
    corpus = load("iemocap", str(tmp_path))
    assert corpus.options["schema"] == "Zahra99/IEMOCAP_Audio"
    assert corpus.sessions == [f"Ses0{k}" for k in range(1, 6) for _ in range(4)]
    assert names_of(corpus)[:4] == ["angry", "happy", "neutral", "sad"]
    assert set(corpus.speakers) == {None}
    assert len(set(corpus.files)) == 20


IEMOCAP_NOTES = {  # turn: its emotion, and what the evaluators chose
    "M000": ("neu", ["Neutral", "Neutral", "Sadness"]),
    "F000": ("hap", ["Happiness", "Happiness; Excited", "Happiness"]),
    "F001": ("exc", ["Excited", "Excited", "Happiness"]),
    "M001": ("ang", ["Anger; Frustration", "Anger", "Frustration"]),
    "M002": ("sad", ["Sadness", "Sadness", "Other"]),
    "F002": ("xxx", ["Sadness", "Neutral", "Surprise"]),
    "F003": ("fru", ["Frustration", "Frustration", "Anger"]),
    "M003": ("ang", ["Anger", "Anger", "Neutral"]),
}


def iemocap_release(folder: Path) -> None:
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for seed, (turn, (code, chosen)) in enumerate(IEMOCAP_NOTES.items()):
        lines.append(f"[6.29 - 8.23]\tSes01F_impro01_{turn}\t{code}\t[2.5, 2.5, 2.5]")
        lines += [f"C-E{number}:\t{words};\t()" for number, words in enumerate(chosen, 2)]
        lines += ["C-F1:\tFear;\t(curious)", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
        write_sound(folder / f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_{turn}.wav", seed)
    notes = folder / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("\n".join(lines))
    (notes.parent / "._Ses01F_impro01.txt").write_bytes(b"\0\5\x16\7\xff")


def test_iemocap_full_release(load, tmp_path):
    iemocap_release(tmp_path)
    corpus = load("iemocap", str(tmp_path))
    assert Counter(names_of(corpus)) == {"neutral": 1, "happy": 1, "angry": 2, "sad": 1}
    assert corpus.dropped["annotators' votes tie"] == 1
    assert corpus.speakers[names_of(corpus).index("happy")] == "Ses01F"
    assert len(load("iemocap", str(tmp_path), merge_labels=["excited=happy"])) == 6
    unique = load("iemocap", str(tmp_path), unique_vote=True)
    assert Counter(names_of(unique)) == {"neutral": 1, "happy": 1, "angry": 1, "sad": 1}
    assert unique.dropped["annotators' votes tie"] == 2
    soft = load("iemocap", str(tmp_path), soft_labels="votes", merge_labels=["excited=happy"])
    votes = {Path(file).stem[-4:]: row for file, row in zip(soft.files, soft.clips["votes"][:], strict=True)}
    assert votes == {
        "M000": [2, 0, 0, 1],
        "F000": [0, 4, 0, 0],
        "F001": [0, 3, 0, 0],
        "M001": [0, 0, 2, 0],
        "M002": [0, 0, 0, 2],
        "F002": [1, 0, 0, 1],
        "F003": [0, 0, 1, 0],
        "M003": [1, 0, 2, 0],
    }
    (tmp_path / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M001.wav").unlink()
    with pytest.raises(DataError, match="Ses01F_impro01_M001.wav does not exist"):
        load("iemocap", str(tmp_path))


# --- RAVDESS ---


def ravdess_names() -> list[str]:
    return [f"03-01-{e:02d}-01-01-01-{actor:02d}.wav" for actor in (1, 12) for e in range(1, 9)]


def ravdess_tree(folder: Path, suffix: str) -> None:
    for seed, name in enumerate(ravdess_names()):
        write_sound(folder / f"Actor_{name[-6:-4]}" / Path(name).with_suffix(suffix), seed)


def ravdess_copy(folder: Path, form: str) -> None:
    """Writes the 16 clips of `ravdess_names` in one of the published forms."""
    names = ravdess_names()
    long = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"]
    emotions = [long[int(name[6:8]) - 1] for name in names]
    if form in (".wav", ".flac"):
        ravdess_tree(folder, form)
    elif form == "TwinkStart/RAVDESS":
        write_parquet(folder, "ravdess_emo", {"emotion": emotions}, names)
        write_parquet(folder, "ravdess_gender", {"emotion": emotions}, names)
    elif form == "AbstractTTS/RAVDESS":
        write_parquet(folder, "train", {"file": names, "emotion": emotions}, [None] * 16)
    else:
        columns = {"labels": [int(name[6:8]) - 1 for name in names], "speaker_id": ["1"] * 8 + ["12"] * 8}
        write_parquet(folder, "train", columns, names, {"labels": list(RAVDESS_EMOTIONS)})


@pytest.mark.parametrize("form", [".wav", ".flac", "TwinkStart/RAVDESS", "AbstractTTS/RAVDESS", "narad/ravdess"])
def test_ravdess_gives_the_same_clips_in_every_form(load, tmp_path, form):
    ravdess_copy(tmp_path, form)
    corpus = load(form if "/" in form else "ravdess", str(tmp_path))
    assert corpus.name == "ravdess"
    assert corpus.label_names == ["neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise"]
    assert corpus.labels == [*range(8)] * 2
    assert corpus.speakers == ["01"] * 8 + ["12"] * 8
    if "/" in form:  # the name of the corpus and the folder are enough
        assert load("ravdess", str(tmp_path)).options["schema"] == form


def test_ravdess_without_file_names_has_no_speakers(load, tmp_path):
    write_parquet(tmp_path, "ravdess_emo", {"emotion": ["calm", "happy"]}, [None, None])
    corpus = load("ravdess", str(tmp_path), labels=["calm", "happy"])
    assert corpus.speakers == [None, None]
    assert corpus.files == ["clip-000000", "clip-000001"]


def test_ravdess_tree_leaves_out_songs_second_copies_and_other_files(load, tmp_path):
    ravdess_tree(tmp_path, ".wav")
    ravdess_tree(tmp_path / "audio_speech_actors_01-24", ".wav")
    write_sound(tmp_path / "Actor_01" / "03-02-03-01-01-01-01.wav", 99)
    write_sound(tmp_path / "Actor_01" / "noise.wav", 98)
    corpus = load("ravdess", str(tmp_path))
    assert len(corpus) == 16
    assert corpus.dropped == {
        "song, not speech": 1,
        "not named as a RAVDESS clip": 1,
        "second file of the same name": 16,
    }


def test_merging_calm_into_neutral_leaves_seven_classes(load, tmp_path):
    ravdess_tree(tmp_path, ".wav")
    corpus = load("ravdess", str(tmp_path), merge_labels=["calm=neutral"])
    assert corpus.label_names == ["neutral", "happy", "sad", "angry", "fear", "disgust", "surprise"]
    assert Counter(names_of(corpus))["neutral"] == 4


@pytest.mark.skipif(not RAVDESS, reason="SER_RAVDESS_DIR names no copy of RAVDESS")
def test_real_ravdess():
    corpus = load_corpus("ravdess", RAVDESS)
    assert Counter(names_of(corpus)) == {name: 96 if name == "neutral" else 192 for name in RAVDESS_EMOTIONS}
    assert Counter(corpus.speakers) == {f"{actor:02d}": 60 for actor in range(1, 25)}
    assert corpus.dropped == {}


# --- EMO-DB ---


@pytest.mark.parametrize("form", ["tree", "renumics/emodb"])
def test_emodb(load, tmp_path, form):
    if form == "tree":
        for seed, name in enumerate(["03a01Fa", "08b10Wb", "16a05Lc", "15a02Nd", "12a02Ec", "10a02Aa", "09b03Ta"]):
            write_sound(tmp_path / "wav" / f"{name}.wav", seed)
        data = tmp_path
    else:
        emotions = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
        columns = {"age": [34.0, 31.0, 35.0, 32.0, 31.0, 25.0, 21.0], "gender": [0, 0, 1, 1, 1, 1, 0]}
        columns["emotion"] = [0, 1, 2, 3, 4, 5, 6]
        classes = {"gender": ["female", "male"], "emotion": emotions}
        write_parquet(tmp_path, "train", columns, [None] * 7, classes)
        data = tmp_path
    corpus = load("emodb", str(data))
    assert corpus.label_names == ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    speaker = dict(zip(names_of(corpus), corpus.speakers, strict=True))
    disgust = "12" if form == "tree" else None  # no speaker is a man of 35 years
    assert speaker == {
        "happiness": "03",
        "anger": "08",
        "boredom": "16",
        "neutral": "15",
        "disgust": disgust,
        "fear": "10",
        "sadness": "09",
    }


def test_demo_is_written_into_the_cache_and_refused_if_incomplete(load, tmp_path, monkeypatch):
    small = partial(ser.data.corpora.demo.write_demo_corpus, n_voices=3, clips_per_emotion=1)
    monkeypatch.setattr(ser.data.corpora.demo, "write_demo_corpus", small)
    corpus = load("Demo")
    assert Counter(names_of(corpus)) == {"neutral": 3, "happy": 3, "angry": 3, "sad": 3}
    assert len(set(corpus.speakers)) == 3
    assert load("demo", corpus.source).files == corpus.files
    with pytest.raises(DataError, match="nowhere does not exist"):
        load("demo", str(tmp_path / "nowhere"))
    (Path(corpus.source) / corpus.files[0]).unlink()
    with pytest.raises(DataError, match="delete"):
        load("demo")


# --- data of users ---


def write_csv(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def clips(tmp_path) -> Path:
    for i in range(4):
        write_sound(tmp_path / f"{i}.wav", i)
    return tmp_path


def test_csv(load, clips):
    rows = ["0.wav,joy,anna,train", "1.wav,anger,anna,train", "2.wav,joy,ben,test", "3.wav,,ben,test"]
    corpus = load(str(write_csv(clips / "mine.csv", "file,label,speaker,split", rows)))
    assert (corpus.name, corpus.label_names) == ("mine", ["anger", "joy"])
    assert corpus.speakers == ["anna", "anna", "ben"]
    assert corpus.clips["split"][:] == ["train", "train", "test"]
    assert corpus.dropped == {"no label": 1}
    assert corpus.clips[2]["audio"]["path"] == str(clips / "2.wav")


def test_csv_of_a_spreadsheet(load, clips, tmp_path_factory):
    table = tmp_path_factory.mktemp("elsewhere") / "mine.csv"
    table.write_text("\ufeffname;class;who\n0.wav;süß;1\n1.wav;böse;2\n", encoding="utf-8")
    columns = {"audio_column_name": "name", "label_column_name": "class", "speaker_column_name": "who"}
    corpus = load(str(table), str(clips), **columns)
    assert (corpus.label_names, corpus.speakers) == (["böse", "süß"], ["1", "2"])


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("file,emotion", ["0.wav,joy"], "no column 'label'; it has file, emotion"),
        ("file,label", ["0.wav,joy", "9.wav,joy"], r"line 3: .*9\.wav is not a file"),
        ("file,label", ["0.wav,joy", "1.wav,joy", "./0.wav,sad"], "0.wav is listed twice, in lines 2 and 4"),
        ("file,label,split", ["0.wav,joy,holdout"], "line 2: split 'holdout' must be train, validation or test"),
        ("file,label", [], "lists no clips"),
        ("file,label", ["x" * 300 + ".wav,joy"], "line 2: .*xxx.wav is not a file"),
        ("file,label", ["x" * 200_000 + ",joy"], "mine.csv, line 2: field larger than field limit"),
        ("x" * 200_000, [], "mine.csv, line 1: field larger than field limit"),
        ("file,label", ["0.wav,"], "No clips are left in .* no label: 1"),
        (
            "file,label,speaker",
            ["0.wav,joy, mild,anna"],
            "line 2: 4 cells for the 3 columns file, label, speaker. Put",
        ),
        ("file;label;split", ["0.wav;joy"], "line 2: 2 cells for the 3 columns"),
        ("file,label", ["0.wav,joy", '1.wav,"joy', "2.wav,sad"], "line 4: unexpected end of data"),
        ("file,label", ['0.wav,joy"'], 'line 2: joy" ends with a double quote but does not begin with one'),
        ("file,Label,label ", ["0.wav,joy,sad"], "has the column 'label' twice .'Label' and 'label '.: rename one"),
    ],
)
def test_a_bad_csv_raises_a_clear_error(load, clips, header, rows, message):
    with pytest.raises(DataError, match=message):
        load(str(write_csv(clips / "mine.csv", header, rows)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.csv", " File ,LABEL, Speaker,Split\n0.wav,joy,anna,train\n1.wav,sad,ben,test\n"),
        ("mine.CSV", "\ufefffile_name;Label;speaker ;SPLIT\r\n0.wav;joy;anna;train\r\n;;;\r\n1.wav;sad;ben;test\r\n"),
        ("mine.tsv", "Speaker\tFILE\tsplit\tlabel\nanna\t0.wav\ttrain\tjoy\nben\t1.wav\ttest\tsad\n"),
        ("mine.csv", ",file,label,speaker,split\n0,0.wav,joy,anna,train\n1,1.wav,sad,ben,test\n"),
        (
            "mine.jsonl",
            '{"File": "0.wav", "Label ": "joy", "speaker": "anna", "Split": "train"}\n\n'
            '{"label": "sad", "Speaker": "ben", "file": "1.wav", "split": "test", "notes": [1]}\n',
        ),
    ],
)
def test_a_list_gives_the_same_clips_in_every_dialect(load, clips, name, text):
    (clips / name).write_bytes(text.encode())
    corpus = load(str(clips / name))
    assert (corpus.name, corpus.files, names_of(corpus)) == ("mine", ["0.wav", "1.wav"], ["joy", "sad"])
    assert (corpus.speakers, corpus.clips["split"][:]) == (["anna", "ben"], ["train", "test"])


@pytest.mark.parametrize("name", ["a\u2028b.wav", "a\x85b.wav", "a\rb.wav", "a\nb.wav", "\x0bc.wav"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_name_may_contain_any_line_break(load, clips, name, suffix):
    write_sound(clips / name, 9)
    path = clips / f"mine{suffix}"
    if suffix == ".csv":
        path.write_bytes(f'file,label\n"{name}",joy\n0.wav,sad\n'.encode())
    else:
        rows = [{"file": name, "label": "joy"}, {"file": "0.wav", "label": "sad"}]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), newline="")
    corpus = load(str(path))
    assert (corpus.files, names_of(corpus)) == ([name, "0.wav"], ["joy", "sad"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "0.wav", "label": ["joy"]}', "line 1: 'label' is neither text nor a number, but .'joy'."),
        ('{"file": "0.wav", "label": true}', "line 1: 'label' is neither text nor a number, but True"),
        ('{"file": "0.wav", "label": "joy", "Label": "sad"}', "line 1 has the column 'label' twice"),
        ('["0.wav", "joy"]', "line 1 is not an object"),
        ('{"file": "0.wav"', "line 1: Expecting ',' delimiter"),
        ('{"path": "0.wav", "label": "joy"}', "no column 'file'; it has path, label"),
    ],
)
def test_a_bad_line_of_json_raises_a_clear_error(load, clips, line, message):
    (clips / "mine.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load(str(clips / "mine.jsonl"))


@pytest.mark.parametrize("name", ["clip.wav", "nowhere/clip.FLAC", "talk.mp3"])
def test_a_recording_is_not_looked_up_on_the_hub(load, name, tmp_path):
    (tmp_path / "clip.wav").write_bytes(sound(1))
    for place in (name, str(tmp_path / name)):
        with pytest.raises(DataError, match="is a recording, not a data set: give a folder"):
            load(place)


@pytest.mark.parametrize("name", ["mine.json", "mine.xlsx", "mine.txt"])
def test_an_unsupported_table_is_not_looked_up_on_the_hub(load, name, tmp_path):
    (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=f"{name} is not a supported table: give one of .arrow, .csv, .jsonl, .parq"):
        load(str(tmp_path / name))


# --- names of classes and speakers ---


@pytest.mark.parametrize(
    ("one", "other"),
    [("Happy", "happy"), ("s\u00fc\u00df", "su\u0308\u00df"), ("very sad", "Very  sad"), ("\uff41", "a")],
)
def test_almost_equal_classes_are_refused_until_they_are_merged(load, clips, one, other):
    path = write_csv(clips / "mine.csv", "file,label", [f"0.wav,{one}", f"1.wav,{other}", "2.wav,calm"])
    with pytest.raises(DataError, match="are almost equal: merge them with --merge_labels"):
        load(str(path))
    with pytest.raises(DataError, match="are almost equal"):
        load(str(path), labels=[one, "calm"])
    corpus = load(str(path), merge_labels=[f"{one}={other}"])
    assert sorted(names_of(corpus)) == sorted([other, other, "calm"])


def test_almost_equal_class_folders_are_refused(load, tmp_path):
    for seed, folder in enumerate(("Angry", "angry", "sad")):
        write_sound(tmp_path / folder / "1.wav", seed)
    with pytest.raises(DataError, match="'Angry' and 'angry', which are almost equal"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("speakers", "named"),
    [
        (["01", "1", "1.0", "2"], "'01' = '1' = '1.0'"),
        (["Anna", "anna", "ben", "ben"], "'Anna' = 'anna'"),
        (["s07", "s7", "s70", "x"], "'s07' = 's7'"),
        (["1", "2", "10", "1.5"], None),
    ],
)
def test_almost_equal_speakers_are_named_in_one_warning(load, clips, speakers, named, monkeypatch):
    warnings = []
    monkeypatch.setattr(ser.data.corpora.names.logger, "warning", warnings.append)
    rows = [f"{i}.wav,{'ab'[i % 2]},{speaker}" for i, speaker in enumerate(speakers)]
    corpus = load(str(write_csv(clips / "mine.csv", "file,label,speaker", rows)))
    assert corpus.speakers == speakers
    assert [f"{named}. Spell each speaker in one way" in message for message in warnings] == ([True] if named else [])


@pytest.mark.parametrize("name", ["file", "prediction", "silence", "uncertain", "Label", "windows"])
def test_a_class_cannot_have_a_name_that_tables_of_predictions_use(load, tmp_path, name):
    for seed, folder in enumerate((name, "sad")):
        write_sound(tmp_path / folder / "1.wav", seed)
    with pytest.raises(DataError, match=f"A class cannot be called '{name}', .* --merge_labels"):
        load(str(tmp_path))
    renamed = load(str(tmp_path), merge_labels=[f"{name}={name} class"])
    assert sorted(renamed.label_names) == sorted([f"{name} class", "sad"])
    assert load(str(tmp_path), merge_labels=[f"{name}=sad"]).label_names == ["sad"]


@pytest.mark.parametrize(
    ("labels", "speakers", "expected"),
    [
        ([1.0, float("nan"), 2.0, 1.0], [1.0, 2.0, float("nan"), 7.0], (["1", "2", "1"], ["1", None, "7"])),
        (["up", None, "down", "up"], ["nan", "x", "<NA>", " y "], (["up", "down", "up"], [None, None, "y"])),
        (["up", "NaN", "down", " up"], [1, 2, None, 3], (["up", "down", "up"], ["1", None, "3"])),
    ],
)
def test_missing_labels_and_speakers_are_not_names(load, tmp_path, labels, speakers, expected):
    write_parquet(tmp_path, "train", {"label": labels, "speaker": speakers}, [f"{i}.wav" for i in range(4)])
    corpus = load(str(tmp_path))
    assert (names_of(corpus), corpus.speakers) == expected
    assert corpus.dropped == {"no label": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [["happy"], ["sad"]]}, "Column 'label' of .* holds .'happy'., which is neither text nor a number"),
        ({"label": ["a", "b"], "speaker": [{"id": 1}, {"id": 2}]}, "Column 'speaker' of .* holds .'id': 1., which"),
        ({"label": [b"up", b"down"]}, "Column 'label' of .* holds b'up'"),
    ],
)
def test_a_cell_that_is_not_a_name_is_refused(load, tmp_path, columns, message):
    write_parquet(tmp_path, "train", columns, ["a.wav", "b.wav"])
    with pytest.raises(DataError, match=message):
        load(str(tmp_path))


# --- folders with tables among the recordings ---


def class_folder(folder: Path) -> None:
    for seed, name in enumerate(["happy/1.wav", "happy/2.wav", "sad/1.wav", "sad/2.wav"]):
        write_sound(folder / name, seed)


@pytest.mark.parametrize("name", ["stray.parquet", "data/train-00000-of-00001.parquet", "sad/notes.arrow", "x.jsonl"])
def test_class_folders_with_a_stray_table_are_still_class_folders(load, tmp_path, name):
    class_folder(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / name)
    corpus = load(str(tmp_path))
    assert names_of(corpus) == ["happy", "happy", "sad", "sad"]
    assert corpus.dropped == ({f"not audio by its name ({Path(name).suffix})": 1} if "/" in name else {})


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_adds_columns_to_class_folders_and_chooses_their_clips(load, tmp_path, suffix):
    class_folder(tmp_path)
    rows = [{"file_name": name, "speaker": who, "text": "oh"} for name, who in
            (("happy/1.wav", "anna"), ("sad/1.wav", "ben"), ("sad/2.wav", ""))]  # fmt: skip
    lines = [json.dumps(row) for row in rows]
    if suffix == "csv":
        lines = ["file_name,speaker,text", *(",".join(row.values()) for row in rows)]
    (tmp_path / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")
    corpus = load(str(tmp_path))
    found = [*zip(corpus.files, names_of(corpus), corpus.speakers, strict=True)]
    assert found == [("happy/1.wav", "happy", "anna"), ("sad/1.wav", "sad", "ben"), ("sad/2.wav", "sad", None)]
    assert corpus.dropped == {f"not in metadata.{suffix}": 1}


def test_labels_in_metadata_override_class_folders(load, tmp_path):
    class_folder(tmp_path)
    rows = [{"file_name": "happy/1.wav", "label": "joy"}, {"file_name": "sad/2.wav", "label": "grief"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert names_of(load(str(tmp_path))) == ["joy", "grief"]


def test_metadata_of_several_splits_must_be_in_one_file(load, tmp_path):
    for seed, name in enumerate(["train/1.wav", "train/2.wav", "test/1.wav"]):
        write_sound(tmp_path / name, seed)
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "1.wav", "label": "joy"}\n')
    with pytest.raises(DataError, match="train/metadata.jsonl is not read: put one .* column split"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "shape"), [("float32", (400,)), ("float64", (2, 400)), ("int16", (400,)), ("float32", (400, 2))]
)
def test_tables_of_arrays_are_read_without_another_decoder(load, tmp_path, kind, shape):
    samples = [np.random.default_rng(i).uniform(-0.5, 0.5, shape) for i in range(3)]
    samples = [np.round(each * 32768).astype("int16") if kind == "int16" else each.astype(kind) for each in samples]
    element: pyarrow.DataType = pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(kind)))
    element = pyarrow.list_(element) if len(shape) == 2 else element
    cells = [{"array": each.tolist(), "sampling_rate": 16_000} for each in samples]
    audio = pyarrow.array(cells, pyarrow.struct({"array": element, "sampling_rate": pyarrow.int64()}))
    table = pyarrow.table({"sound": audio, "label": ["up", "down", "up"]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    corpus = load(str(tmp_path), audio_column_name="sound")
    for clip, expected in zip(corpus.clips, samples, strict=True):
        array = {"array": expected, "sampling_rate": 16_000}
        assert np.allclose(read_audio(clip["audio"], 16_000), read_audio(array, 16_000), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
def test_arrays_of_another_type_are_refused(load, tmp_path, kind):
    cells = [{"array": [1, 0, 1], "sampling_rate": 16_000}] * 2
    element = pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(kind)))
    audio = pyarrow.array(cells, pyarrow.struct({"array": element, "sampling_rate": pyarrow.int64()}))
    pyarrow.parquet.write_table(pyarrow.table({"audio": audio, "label": ["up", "down"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f"samples of the type {kind}: give floats from -1 to 1, or int16"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["dev", "valid", "val"])
def test_a_validation_split_may_have_any_usual_name(load, tmp_path, name):
    for seed, split in enumerate(("train", name)):
        columns = {"label": ["up", "down"] * 3, "speaker": [f"{split}{i // 2}" for i in range(6)]}
        write_parquet(tmp_path / split, split, columns, [f"{i}.wav" for i in range(6)], seed=10 * seed)
    tables = {split: datasets.load_dataset(str(tmp_path / split), split=split if split == "train" else None,
              cache_dir=str(tmp_path / "c")) for split in ("train", name)}  # fmt: skip
    other = tables[name]
    other = other if isinstance(other, datasets.Dataset) else next(iter(other.values()))
    datasets.DatasetDict({"train": tables["train"], name: other}).save_to_disk(tmp_path / "saved")
    corpus = load(str(tmp_path / "saved"))
    assert Counter(corpus.clips["split"][:]) == {"train": 6, "validation": 6}


def test_class_folders_keep_every_clip_whatever_its_name(load, tmp_path):
    for seed, name in enumerate(["happy/test_1.wav", "happy/train-2.flac", "sad/validation.wav", "sad/deep/4.wav"]):
        write_sound(tmp_path / name, seed)
    corpus = load(str(tmp_path))
    assert names_of(corpus) == ["happy", "happy", "sad", "sad"]
    assert set(corpus.clips["split"][:]) == {None}
    assert load("audiofolder", str(tmp_path)).name == tmp_path.name
    write_sound(tmp_path / "loose.wav", 9)
    with pytest.raises(DataError, match="loose.wav is not in a class folder"):
        load(str(tmp_path))


def test_class_folders_read_every_audio_suffix_and_count_other_files(load, tmp_path):
    suffixes = [".opus", ".oga", ".m4a", ".au", ".caf", ".WAV", ".aiff", ".webm"]
    for seed, suffix in enumerate(suffixes):
        write_sound(tmp_path / "happy" / f"clip{suffix}", seed)
    write_sound(tmp_path / "sad" / "1.wav", 99)
    for name in ("happy/notes.txt", "sad/deep/face.jpg", "sad/LICENSE", "README.txt", "happy/._clip.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no audio")
    corpus = load(str(tmp_path))
    assert Counter(names_of(corpus)) == {"happy": len(suffixes), "sad": 1}
    assert corpus.dropped == {f"not audio by its name ({suffix})": 1 for suffix in (".txt", ".jpg", "no suffix")}


def test_files_of_a_class_folder_that_cannot_be_decoded_are_named_or_skipped(load, tmp_path):
    for name in ("happy/1.wav", "sad/2.au", "sad/film.m4a"):
        write_sound(tmp_path / name, len(name))
    (tmp_path / "sad/film.m4a").write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(2_000))
    clips = load(str(tmp_path)).clips
    with pytest.raises(AudioError, match="sad/film.m4a: .*film.m4a cannot be decoded"):
        extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path / "features")
    kept = extract_features(clips, tiny_feature_extractor(), cache_dir=tmp_path / "others", on_bad_audio="skip")
    assert kept["file"][:] == ["happy/1.wav", "sad/2.au"]


def test_rows_without_audio_are_counted(load, tmp_path):
    columns = {"label": ["up", "down", "up", "down"]}
    write_parquet(tmp_path, "train", columns, [f"{i}.wav" for i in range(4)])
    path = next(tmp_path.rglob("*.parquet"))
    table = pyarrow.parquet.read_table(path)
    cells = table["audio"].to_pylist()
    cells[1], cells[2] = None, {"bytes": None, "path": None}
    audio = pyarrow.array(cells, table.schema.field("audio").type)
    pyarrow.parquet.write_table(table.set_column(0, table.schema.field("audio"), audio), path)
    corpus = load(str(tmp_path))
    assert (corpus.files, corpus.dropped) == (["0.wav", "3.wav"], {"no audio": 2})
    assert len(set(corpus.contents)) == 2


def test_class_folders_below_splits(load, tmp_path):
    for seed, name in enumerate(["train/happy/1.wav", "train/sad/1.wav", "dev/sad/1.wav", "test/happy/2.wav"]):
        write_sound(tmp_path / name, seed)
    corpus = load(str(tmp_path))
    found = zip(corpus.clips["split"][:], names_of(corpus), strict=True)
    assert sorted(found) == [("test", "happy"), ("train", "happy"), ("train", "sad"), ("validation", "sad")]


def own_tables(folder: Path) -> None:
    for seed, split in enumerate(["train", "test", "extra"]):
        columns = {"mood": [0, 1, -1], "voice": [1, 2, 3], "other": [1.5, 2.5, 3.5]}
        names = [f"{i}.wav" for i in range(3)]
        write_parquet(folder, split, columns, names, {"mood": ["up", "down"]}, seed=10 * seed)


def test_own_tables_by_column_name(load, tmp_path):
    own_tables(tmp_path)
    columns = {"label_column_name": "mood", "speaker_column_name": "voice"}
    corpus = load(str(tmp_path), **columns)
    assert corpus.label_names == ["up", "down"]
    assert corpus.speakers == ["1", "2", "1", "2"]
    assert corpus.clips["split"][:] == ["train", "train", "test", "test"]
    assert corpus.dropped == {"no label": 2, "split 'extra' not used": 3}
    assert len(set(corpus.files)) == 4
    other = load(str(tmp_path), test_split_name="extra", **columns)
    assert other.clips["split"][:] == ["train", "train", "test", "test"]
    assert other.contents[:2] == corpus.contents[:2]
    assert set(other.contents[2:]).isdisjoint(corpus.contents)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no column 'label' .* it has audio, mood, voice, other"),
        ({"label_column_name": "mood", "speaker_column_name": "who"}, "no column 'who'"),
        ({"label_column_name": "mood", "audio_column_name": "other"}, "'other' .* holds .*, not audio"),
        ({"label_column_name": "mood", "test_split_name": "final"}, "no split 'final'; it has"),
        ({"label_column_name": "mood", "labels": ["up", "sideways"]}, "no class 'sideways'; its classes are down, up"),
        ({"label_column_name": "mood", "merge_labels": ["up>down"]}, "pairs such as excited=happy, not 'up>down'"),
        ({"label_column_name": "mood", "merge_labels": ["up=down"], "labels": ["up"]}, "makes clips 'down'"),
        ({"label_column_name": "mood", "unique_vote": True}, "unique_vote needs the annotators' votes"),
    ],
)
def test_bad_requests_raise_a_clear_error(load, tmp_path, options, message):
    own_tables(tmp_path)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), **options)


def test_tables_saved_to_disk(load, tmp_path):
    own_tables(tmp_path / "hub")
    table = datasets.load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))
    table.save_to_disk(tmp_path / "saved")
    assert len(load(str(tmp_path / "saved"), label_column_name="mood")) == 4


def test_a_missing_column_of_a_known_corpus_names_the_expected_ones(load, tmp_path):
    write_parquet(tmp_path, "train", {"feeling": ["sad"]}, ["a.wav"])
    with pytest.raises(
        DataError, match="columns audio, feeling; expected AbstractTTS/IEMOCAP: audio, file, major_emo"
    ):
        load("iemocap", str(tmp_path))
    with pytest.raises(DataError, match="no column 'age', 'gender', 'emotion'"):
        load("renumics/emodb", str(tmp_path))


def test_an_empty_class_is_named(load, tmp_path):
    ravdess_tree(tmp_path, ".wav")
    for path in tmp_path.glob("*/03-01-07-*.wav"):
        path.unlink()
    with pytest.raises(DataError, match="No clip of class 'disgust' in .* Choose classes with --labels"):
        load("ravdess", str(tmp_path))
    assert len(load("ravdess", str(tmp_path), labels=["calm", "sad"])) == 4


@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        ("ravdess", "nowhere", "data_dir nowhere does not exist"),
        ("nonsense", None, "not a known corpus .iemocap, ravdess, .*, demo., a file, a folder or a Hub id"),
        ("missing.csv", None, "missing.csv does not exist"),
    ],
)
def test_a_missing_source_is_named(load, name, data_dir, message):
    with pytest.raises(DataError, match=message):
        load(name, data_dir)


def test_folders_without_audio(load, tmp_path):
    for name in ("ravdess", "iemocap", "emodb", str(tmp_path)):
        with pytest.raises(DataError, match="holds n"):
            load(name, str(tmp_path))


def test_an_unreachable_hub_gives_its_reason_in_one_line(load, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'AbstractTTS/IEMOCAP'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match="Couldn't reach 'AbstractTTS/IEMOCAP' on the Hub .*data_dir names a local copy"
    ):
        load("AbstractTTS/IEMOCAP")


@pytest.mark.parametrize("name", ["iemocap", "Ravdess"])
def test_own_data_named_like_a_corpus_has_none_of_its_folds(load, clips, name):
    lines = [f"{i}.wav,{'ab'[i % 2]},{i}" for i in range(4)]
    corpus = load(str(write_csv(clips / f"{name}.csv", "file,label,speaker", lines)))
    assert corpus.name == f"own-{name}"
    assert resolve_protocol(corpus) == "speaker"


def test_a_tree_with_a_stray_table_is_still_read_as_a_tree(load, tmp_path):
    ravdess_tree(tmp_path, ".wav")
    (tmp_path / "timeline.jsonl").write_text('{"start": 0}\n')
    assert load("ravdess", str(tmp_path)).options["schema"] == "original tree"


# --- equal sound ---


def test_equal_sound_is_found_across_formats_and_can_be_left_out(load, tmp_path):
    paths = ["train/a/1.wav", "test/a/2.flac", "train/b/3.wav", "train/a/4.wav", "train/b/5.wav", "test/b/6.wav"]
    for path, seed in zip(paths, [1, 1, 2, 2, 3, 4], strict=True):
        write_sound(tmp_path / path, seed)
    corpus = load(str(tmp_path))
    content = dict(zip(corpus.files, corpus.contents, strict=True))
    assert content["train/a/1.wav"] == content["test/a/2.flac"] != content["train/b/5.wav"]
    less = load(str(tmp_path), drop_duplicates=True)
    assert less.files == ["test/a/2.flac", "test/b/6.wav", "train/b/5.wav"]
    assert less.contents == [content[file] for file in less.files]
    assert less.dropped == {"equal sound as another clip": 1, "equal sound under different labels": 2}


def test_a_stereo_copy_is_the_same_sound(load, tmp_path):
    mono, rate = soundfile.read(write_sound(tmp_path / "a" / "1.wav", 1))
    (tmp_path / "b").mkdir()
    soundfile.write(tmp_path / "b" / "2.wav", np.stack([mono, mono], axis=1), rate)
    assert len(set(load(str(tmp_path)).contents)) == 1


def test_files_that_cannot_be_decoded_do_not_count_as_equal(load, tmp_path):
    for name in ("a/1.wav", "a/2.wav", "b/3.wav"):
        write_sound(tmp_path / name, 0).write_bytes(b"no audio")
    assert len(set(load(str(tmp_path)).contents)) == 3


def test_the_revision_of_a_local_copy_follows_its_files(load, tmp_path):
    ravdess_tree(tmp_path, ".wav")
    before = load("ravdess", str(tmp_path)).revision
    assert load("ravdess", str(tmp_path)).revision == before
    write_sound(tmp_path / "Actor_01" / "03-01-03-02-01-01-01.wav", 77)
    assert load("ravdess", str(tmp_path)).revision != before
