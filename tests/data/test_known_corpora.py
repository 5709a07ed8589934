"""Known corpora other than IEMOCAP, RAVDESS and EMO-DB, read from small copies in the exact forms of the real ones."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ser.commands.train import main
from ser.data.corpora import RECORDS, Corpus, load_corpus
from ser.data.corpora.cremad import TFDS_TEST, TFDS_VALIDATION
from ser.data.protocols import make_split, resolve_protocol
from ser.utils import DataError
from tests.helpers.clips import write_parquet, write_sound


def write_sounds(folder: Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        write_sound(folder / name, seed)


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


CREMAD_SEXES = {actor: ("Male", "Female")[int(actor) % 2] for actor in ("1001", "1002", *TFDS_VALIDATION, *TFDS_TEST)}
CREMAD_CODES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
CREMAD_CLIPS = [f"{actor}_DFA_{code}_XX" for actor in CREMAD_SEXES for code in CREMAD_CODES]


def cremad(folder: Path) -> None:
    write_sounds(folder, [f"AudioWAV/{clip}.wav" for clip in CREMAD_CLIPS] + ["AudioWAV/tone.wav"])
    person = {"Age": 30, "Race": "Unknown", "Ethnicity": "Not Hispanic"}
    write_table(folder / "VideoDemographics.csv", [person | {"ActorID": a, "Sex": s} for a, s in CREMAD_SEXES.items()])
    votes = []
    for kind in (1, 2, 3):  # ratings of voice, face and both: only the first are of voice alone
        for index, clip in enumerate(CREMAD_CLIPS[1:]):
            row = dict.fromkeys("ADFHNS", 0)
            if kind != 1:
                row["N"] = 9
            elif clip in ("1001_DFA_DIS_XX", "1010_DFA_DIS_XX"):  # perceived as anger
                row |= {"A": 6, "D": 3}
            elif clip == "1002_DFA_SAD_XX":
                row |= {"S": 4, "N": 4}
            else:
                row[clip[9]] = 8
            facts = {"fileName": clip, "numResponses": sum(row.values()), "agreement": 1.0, "emoVote": "A"}
            votes.append({"": 100_000 * kind + index + 1, **row, **facts})
    write_table(folder / "processedResults" / "tabulatedVotes.csv", votes)


def tess(folder: Path) -> None:
    for seed, (actress, emotion, word) in enumerate(
        (a, e, w) for a in ("OAF", "YAF") for e in ("angry", "disgust", "fear", "happy", "ps", "sad", "neutral")
        for w in ("back", "bite", "chain_link")
    ):  # fmt: skip
        name = f"{'OA' if (actress, emotion, word) == ('OAF', 'neutral', 'bite') else actress}_{word}_{emotion}.wav"
        place = f"{actress}_{'Pleasant_surprise' if emotion == 'ps' else emotion}"
        write_sound(folder / "TESS Toronto emotional speech set data" / place / name, seed)
        write_sound(
            folder / "data" / "TESS Toronto emotional speech set data" / place / name, seed
        )  # Kaggle's copy has every file twice
    write_sound(folder / "README.wav", 99)


SAVEE = {"a": 2, "d": 2, "f": 2, "h": 2, "sa": 2, "su": 2, "n": 4}


def savee(folder: Path, between: str = "/") -> None:
    names = [f"{speaker}{between}{code}{k:02d}.wav" for speaker in ("DC", "JE", "JK", "KL")
             for code, n in SAVEE.items() for k in range(1, n + 1)]  # fmt: skip
    write_sounds(folder / "AudioData", [*names, "Info.wav"])


MELD_FILMS = {
    "train": "train/train_splits",
    "dev": "dev/dev_splits_complete",
    "test": "test/output_repeated_splits_test",
}


def meld(folder: Path) -> None:
    emotions = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    for offset, (part, films) in enumerate(MELD_FILMS.items()):
        rows = []
        for index, emotion in enumerate(emotions * 2):
            row = {"Sr No.": index, "Utterance": "Oh\x92, no", "Speaker": ("Rachel", "Joey")[index % 2]}
            row |= {"Emotion": emotion, "Sentiment": "neutral", "Dialogue_ID": index // 7, "Utterance_ID": index % 7}
            rows.append(row | {"Season": 1, "Episode": 2, "StartTime": "00:00:01,000", "EndTime": "00:00:02,000"})
            if (part, index) != ("train", 8):
                write_sound(folder / films / f"dia{index // 7}_utt{index % 7}.wav", 100 * offset + index)
        (folder / films / "dia1_utt1.mp4").write_bytes(b"a film")
        write_table(folder / ("train" if part == "train" else "") / f"{part}_sent_emo.csv", rows)


def esd(folder: Path, part: str = "") -> None:
    emotions = ("Neutral", "Angry", "Happy", "Sad", "Surprise")
    names = [
        f"{speaker}/{emotion}/{part}{speaker}_{350 * k + take:06d}.wav"
        for speaker in ("0001", "0002", "0011", "0012", "0013")
        for k, emotion in enumerate(emotions)
        for take in (1, 2)
    ]
    write_sounds(folder, [*names, "0011/hello.wav"])


def asvpesd(folder: Path) -> None:
    actors, takes = (1, 2, 103, 4), (1, 2)
    names = [
        f"03-01-{emotion:02d}-01-{take:02d}-{actor:02d}-02-02-01.wav"
        for actor in actors
        for emotion in range(1, 9)
        for take in takes
    ]
    names += ["03-02-06-02-01-01-02-02-01.wav", "03-01-10-01-01-02-02-02-01-16.wav", "03-01-17-01-01-02-02-02.wav"]
    write_sounds(folder / "Audio", [f"actor_{name.split('-')[5]}/{name}" for name in names] + ["actor_1/x.wav"])


def msp(folder: Path) -> None:
    rows = []
    for offset, (part, speakers) in enumerate(
        {"Train": "12", "Development": "3", "Test1": "4", "Test2": "5", "Test3": "6"}.items()
    ):
        for index, code in enumerate("ASHUFDCN" * 2 + "OX"):
            name = f"MSP-PODCAST_{offset:04d}_{index:04d}.wav"
            speaker = "Unknown" if (part, index) == ("Train", 0) else speakers[index % len(speakers)]
            rows.append(
                {"FileName": name, "EmoClass": code, "EmoAct": 4.0, "EmoVal": 4.0, "EmoDom": 4.0, "SpkrID": speaker}
            )
            rows[-1] |= {"Gender": ("Female", "Male", "Unknown")[index % 3], "Split_Set": part}
            write_sound(folder / "Audios" / name, 100 * offset + index)
    write_table(folder / "Labels" / "labels_consensus.csv", rows)


SUBESCO = ("ANGRY", "DISGUST", "FEAR", "HAPPY", "NEUTRAL", "SAD", "SURPRISE")


def subesco(folder: Path) -> None:
    speakers = ("F_01_OISHI", "F_02_TITHI", "M_01_ALIF", "M_10_RASEL")
    names = [f"{who}_S_{sentence}_{emotion}_1.wav" for who in speakers for sentence in (1, 10) for emotion in SUBESCO]
    write_sounds(folder / "SUBESCO", [*names, "F_01_OISHI_S_1_ANGRY.wav"])


@dataclass
class Form:
    """A copy of a corpus, and what must be read from it."""

    name: str
    write: Callable[[Path], None]
    classes: dict[str, int]
    speakers: dict[str | None, int]
    protocol: str
    tested: dict[str, int]
    """Speakers of the test part of the first fold."""
    dropped: dict[str, int] = field(default_factory=dict)
    sexes: dict[str | None, int] = field(default_factory=dict)
    languages: dict[str | None, int] = field(default_factory=dict)


SIX = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
SEVEN = ("anger", "disgust", "fear", "happiness", "surprise", "sadness", "neutral")
EIGHT = ("anger", "sadness", "happiness", "surprise", "fear", "disgust", "contempt", "neutral")
ESD = ("neutral", "angry", "happy", "sad", "surprise")
MELD = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
ASVP = ("boredom", "neutral", "happy", "sad", "angry", "fear", "disgust", "surprise")
NO_SOUND = "no sound file of this utterance (such as dia0_utt0.wav, extracted from its film by ffmpeg)"
MSP_DROPPED = {"annotators do not agree (X)": 5, "class 'other' not among those kept": 3, "in Test3, not {}": 17}


def msp_form(name: str, test: str, other: str, speaker: str) -> Form:
    return Form(
        name, msp, dict.fromkeys(EIGHT, 6), {None: 1, "1": 7, "2": 8, "3": 16, speaker: 16}, "predefined",
        {speaker: 16}, {why.format(test): n for why, n in MSP_DROPPED.items()} | {f"in {other}, not {test}": 17},
        {"female": 18, "male": 15, None: 15}, {"en": 48},
    )  # fmt: skip


FORMS = [
    Form(
        "cremad", cremad, dict.fromkeys(SIX, 30), dict.fromkeys(CREMAD_SEXES, 6), "tfds",
        dict.fromkeys(TFDS_TEST, 6), {"not named as a CREMA-D clip": 1}, {"male": 102, "female": 78}, {"en": 180},
    ),
    Form(
        "cremad-perceived", cremad, dict.fromkeys(SIX, 30) | {"anger": 31, "disgust": 28, "sadness": 29},
        dict.fromkeys(CREMAD_SEXES, 6) | {"1001": 5, "1002": 5}, "tfds", dict.fromkeys(TFDS_TEST, 6),
        {"not named as a CREMA-D clip": 1, "no votes": 1, "annotators' votes tie": 1},
        {"male": 101, "female": 77}, {"en": 178},
    ),
    Form(
        "tess", tess, dict.fromkeys(SEVEN, 6), {"OAF": 21, "YAF": 21}, "random", {"OAF": 5, "YAF": 4},
        {"second file of the same name": 42, "not named as a TESS clip": 1}, {"female": 42}, {"en": 42},
    ),
    Form(
        "savee", savee, dict.fromkeys(SEVEN, 8) | {"neutral": 16}, dict.fromkeys(("DC", "JE", "JK", "KL"), 16),
        "emobox", {"JE": 16}, {"not named as a SAVEE clip": 1}, {"male": 64}, {"en": 64},
    ),
    Form(
        "meld", meld, dict.fromkeys(MELD, 6) | {"disgust": 5}, {"Rachel": 20, "Joey": 21}, "predefined",
        {"Rachel": 7, "Joey": 7}, {NO_SOUND: 1}, {None: 41}, {"en": 41},
    ),
    Form(
        "esd", esd, dict.fromkeys(ESD, 10), dict.fromkeys(("0001", "0002", "0011", "0012", "0013"), 10), "speaker",
        {"0001": 10}, {"not named as an ESD clip": 1}, {None: 50}, {"zh": 20, "en": 30},
    ),
    Form(
        "esd-english", esd, dict.fromkeys(ESD, 6), dict.fromkeys(("0011", "0012", "0013"), 10), "speaker",
        {"0011": 10}, {"not named as an ESD clip": 1, "Mandarin": 20}, {None: 30}, {"en": 30},
    ),
    Form(
        "asvpesd", asvpesd, dict.fromkeys(ASVP, 8), dict.fromkeys(("001", "002", "004", "103"), 16), "speaker",
        {"001": 16}, {"no speech": 1, "class 'pleasure' not among those kept": 1, "unknown label 'emotion 17'": 1,
        "not named as an ASVP-ESD clip": 1}, {"female": 32, "male": 32}, {None: 64},
    ),
    msp_form("msp-podcast", "Test1", "Test2", "4"),
    msp_form("msp-podcast-test2", "Test2", "Test1", "5"),
    Form(
        "subesco", subesco, dict.fromkeys(SEVEN, 8), dict.fromkeys(("F_01", "F_02", "M_01", "M_10"), 14), "speaker",
        {"F_01": 14}, {"not named as a SUBESCO clip": 1}, {"female": 28, "male": 28}, {"bn": 56},
    ),
]  # fmt: skip
NEW = {"iemocap", "ravdess", "emodb", "demo"} ^ {*RECORDS}


def classes_of(corpus: Corpus) -> dict[str, int]:
    return Counter(corpus.label_names[label] for label in corpus.labels)


def test_every_corpus_has_a_copy_here():
    assert {form.name for form in FORMS} == NEW


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_original_tree_is_read(form, tmp_path):
    form.write(tmp_path)
    corpus = load_corpus(form.name, str(tmp_path))
    assert corpus.label_names == list(RECORDS[form.name].labels)
    assert classes_of(corpus) == form.classes
    assert Counter(corpus.speakers) == form.speakers
    assert corpus.dropped == form.dropped
    assert Counter(corpus.clips["sex"][:]) == form.sexes
    assert Counter(corpus.clips["language"][:]) == form.languages
    assert resolve_protocol(corpus) == form.protocol
    assert all(item["path"].endswith(".wav") for item in corpus.clips["audio"][:])
    split = make_split(corpus)
    assert Counter(corpus.speakers[i] for i in split.test) == form.tested
    assert split.speaker_disjoint == (form.protocol in ("speaker", "tfds", "emobox"))


# One corpus for each kind of protocol, with clips in two languages and clips without a speaker among them.
REPORTED = ("cremad-perceived", "tess", "savee", "esd", "msp-podcast")


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form.name in REPORTED], ids=lambda form: form.name)
def test_from_the_tree_to_a_report(form, tmp_path):
    """Trains the smallest network for one epoch, with one branch and small images."""
    form.write(tmp_path / "data")
    main([
        "--dataset_name", form.name, "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"),
        "--cache_dir", str(tmp_path / "cache"), "--cqt_backbone", "none", "--mel_backbone", "convnet",
        "--mel_backbone_kwargs", '{"channels": [4, 4]}', "--image_size", "32", "--hidden_size", "4",
        "--imagenet_weights", "false", "--feature_extractor_kwargs", '{"image_size": 32}', "--num_train_epochs", "1",
        "--per_device_train_batch_size", "8", "--report_to", "none",
        "--save_strategy", "no", "--load_best_model_at_end", "false", "--preprocessing_num_workers", "1",
    ])  # fmt: skip
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["protocol"].startswith(f"{form.name}/{form.protocol}")
    assert report["n_clips"] == sum(form.tested.values())
    assert sum(report["corpus"]["rows_used"].values()) == sum(form.classes.values())
    assert report["corpus"]["rows_left_out"] == form.dropped
    assert {name: each["support"] for name, each in report["per_class"].items()}.keys() == form.classes.keys()
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        speakers = Counter(row["speaker"] or None for row in csv.DictReader(file))
    assert speakers == form.tested


# --- special cases ---


def test_the_published_actors_of_cremad_are_those_of_its_recipe():
    """Shuffled as in tensorflow_datasets/audio/crema_d.py."""
    actors = [str(number) for number in range(1001, 1092)]
    np.random.RandomState(0).shuffle(actors)
    for record in (RECORDS["cremad"], RECORDS["cremad-perceived"]):
        assert record.folds["tfds"] == (tuple(sorted(actors[72:])),)
        assert record.validated["tfds"] == (tuple(sorted(actors[63:72])),)


def test_the_published_validation_actors_of_cremad_are_used(tmp_path):
    cremad(tmp_path)
    corpus = load_corpus("cremad", str(tmp_path))
    split = make_split(corpus, "tfds")
    assert {corpus.speakers[i] for i in split.validation} == {*TFDS_VALIDATION}
    with pytest.raises(DataError, match="has its own validation part"):
        make_split(corpus, "tfds", validation_share=0.2)


def test_perceived_emotions_need_votes(tmp_path):
    cremad(tmp_path)
    assert len(load_corpus("cremad-perceived", str(tmp_path / "AudioWAV"))) == 178
    (tmp_path / "processedResults" / "tabulatedVotes.csv").unlink()
    with pytest.raises(DataError, match="no processedResults/tabulatedVotes.csv with the votes of listeners"):
        load_corpus("cremad-perceived", str(tmp_path))
    assert len(load_corpus("cremad", str(tmp_path))) == 180


def test_cremad_on_the_hub_has_both_kinds_of_labels(tmp_path):
    files = [
        f"{actor}_{code}_XX.wav"
        for actor in ("1001_DFA", "1002_IEO")
        for code in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    ]
    columns = {"file": files, "gender": ["Male"] * 6 + ["Female"] * 6, "major_emotion": ["angry"] * 12}
    columns |= {name: [0.0] * 12 for name in ("angry", "disgust", "fear", "happy", "neutral", "sad")}
    for row, name in enumerate(("angry", "angry", "fear", "happy", "neutral", "sad") * 2):
        columns[name][row] = 0.8
    columns["sad"][0] = 0.8
    columns["disgust"][7] = 0.9
    write_parquet(tmp_path, "train", columns, [None] * 12)
    intended = load_corpus("AbstractTTS/CREMA-D", str(tmp_path))
    assert (intended.name, classes_of(intended)) == ("cremad", dict.fromkeys(intended.label_names, 2))
    assert Counter(zip(intended.speakers, intended.clips["sex"][:], strict=True)) == {
        ("1001", "male"): 6,
        ("1002", "female"): 6,
    }
    perceived = load_corpus("cremad-perceived", str(tmp_path))
    assert classes_of(perceived) == {"anger": 2, "disgust": 1, "fear": 2, "happiness": 2, "neutral": 2, "sadness": 2}
    assert perceived.dropped == {"annotators' votes tie": 1}
    soft = load_corpus("cremad-perceived", str(tmp_path), soft_labels="votes")
    assert len(soft) == 12 and soft.clips["votes"][0] == [0.8, 0, 0, 0, 0, 0.8] and not soft.dropped


def test_savee_of_kaggle(tmp_path):
    savee(tmp_path, between="_")
    corpus = load_corpus("savee", str(tmp_path))
    assert Counter(corpus.speakers) == dict.fromkeys(("DC", "JE", "JK", "KL"), 16)


def test_an_old_release_of_esd_keeps_its_parts(tmp_path):
    for part, seed in (("train", 0), ("evaluation", 100), ("test", 200)):
        for k, emotion in enumerate(("Neutral", "Angry", "Happy", "Sad", "Surprise")):
            write_sound(tmp_path / "0011" / emotion / part / f"0011_{350 * k + seed:06d}.wav", seed + k)
    corpus = load_corpus("esd-english", str(tmp_path))
    assert resolve_protocol(corpus) == "predefined"
    split = make_split(corpus)
    assert {part: len(indices) for part, indices in split.parts.items()} == {"train": 5, "validation": 5, "test": 5}
    assert not split.speaker_disjoint


def test_msp_podcast_of_an_old_release(tmp_path):
    msp(tmp_path)
    labels = tmp_path / "Labels" / "labels_consensus.csv"
    (labels.parent / "labels_concensus.csv").write_text(labels.read_text().replace("Development", "Validation"))
    labels.unlink()
    split = make_split(load_corpus("msp-podcast", str(tmp_path)))
    assert [len(indices) for indices in split.parts.values()] == [16, 16, 16]


def test_films_of_meld_are_not_read_as_audio(tmp_path):
    meld(tmp_path)
    for path in tmp_path.glob("**/*.wav"):
        path.unlink()
    with pytest.raises(DataError, match="No clips are left .* extracted from its film by ffmpeg.: 42"):
        load_corpus("meld", str(tmp_path))


HUB = {
    "AbstractTTS/TESS": (
        {"file": ["OAF_back_angry.wav", "YAF_back_ps.wav"], "emotion": ["angry", "ps"]},
        [("anger", "OAF", "female"), ("surprise", "YAF", "female")],
    ),
    "AbstractTTS/SAVEE": (
        {"file": ["DC_a01.wav", "KL_su02.wav"], "emotion": ["anger", "surprise"]},
        [("anger", "DC", "male"), ("surprise", "KL", "male")],
    ),
    "AbstractTTS/ESD_english": (
        {"file": ["0011_000351.wav", "0020_000001.wav"], "emotion": ["angry", "Neutral"], "gender": ["male", None]},
        [("angry", "0011", "male"), ("neutral", "0020", None)],
    ),
    "TwinkStart/MELD": (
        {"Emotion": ["joy", "anger"], "Speaker": ["Joey", "Ross"], "Dialogue_ID": [0, 3], "Utterance_ID": [1, 2]},
        [("joy", "Joey", None), ("anger", "Ross", None)],
    ),
    "sajid73/SUBESCO-audio-dataset": (
        {"label": [0, 6], "speaker_id": [1, 10], "speaker_gender": ["F", "Male"]},
        [("anger", "F_01", "female"), ("surprise", "M_10", "male")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("hub_id", HUB)
def test_the_copies_on_the_hub_are_read(hub_id, tmp_path):
    columns, expected = HUB[hub_id]
    classes = {"label": list(SUBESCO)} if "label" in columns else None
    write_parquet(tmp_path, "test" if "MELD" in hub_id else "train", columns, [None, None], classes)
    corpus = load_corpus(hub_id, str(tmp_path), labels=[label for label, _, _ in expected])
    found = zip(classes_names(corpus), corpus.speakers, corpus.clips["sex"][:], strict=True)
    assert list(found) == expected
    assert corpus.dropped == {}


def classes_names(corpus: Corpus) -> list[str]:
    return [corpus.label_names[label] for label in corpus.labels]


def test_every_record_is_complete():
    for name, record in RECORDS.items():
        assert record.licence and record.speech and (record.citation or name == "demo"), name
        assert {*record.labels} <= {*record.aliases.values()}, name
        for folds in record.folds.values():
            tested = [speaker for fold in folds for speaker in fold]
            assert len(tested) == len({*tested}), name


def test_the_table_of_corpora(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["configs/demo.yaml", "--list_corpora"])
    assert not ending.value.code
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[2 : 2 + len(RECORDS)]}
    assert rows.keys() == RECORDS.keys()
    for word in ("1,440", " 8 ", " 24 ", "en", "CC BY-NC-SA 4.0", "emobox (6), luna-jimenez (5)", "narad/ravdess"):
        assert word in rows["ravdess"]
    assert "predefined" in rows["msp-podcast"] and "tfds (1)" in rows["cremad"]
