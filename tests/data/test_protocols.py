"""Protocols: which clips train, validate and test, and which splits are refused."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ser.data.corpora import RECORDS, Corpus, load_corpus
from ser.data.protocols import Split, check_split, make_split, n_folds, resolve_protocol
from ser.utils import DataError
from tests.helpers.clips import corpus_of, write_sound

RAVDESS = os.environ.get("SER_RAVDESS_DIR")


def needs_ravdess(test):
    """Marks a test that reads all clips of RAVDESS."""
    return pytest.mark.slow(pytest.mark.skipif(not RAVDESS, reason="SER_RAVDESS_DIR names no copy of RAVDESS")(test))


@pytest.fixture(scope="module")
def ravdess() -> Corpus:
    return load_corpus("ravdess", RAVDESS)


def speakers_of(corpus: Corpus, indices: list[int]) -> set[str]:
    speakers = corpus.speakers
    return {speakers[i] for i in indices}


def voices(n_speakers: int, n_classes: int = 2, takes: int = 2, **kwargs) -> Corpus:
    """Returns a corpus in which every speaker speaks every class `takes` times."""
    rows = [(label, f"s{k}") for k in range(n_speakers) for label in range(n_classes) for _ in range(takes)]
    return corpus_of([label for label, _ in rows], [speaker for _, speaker in rows], **kwargs)


# --- on RAVDESS itself ---


@needs_ravdess
@pytest.mark.parametrize("fold", range(1, 7))
def test_emobox_folds_test_the_published_actors(ravdess, fold):
    published = {
        1: (1, 11, 20, 21),
        2: (4, 10, 12, 14),
        3: (8, 9, 19, 23),
        4: (3, 5, 7, 24),
        5: (2, 15, 16, 18),
        6: (6, 13, 17, 22),
    }
    split = make_split(ravdess, "speaker", fold)
    assert split.name == f"ravdess/emobox-fold{fold}"
    assert speakers_of(ravdess, split.test) == {f"{actor:02d}" for actor in published[fold]}
    assert len(split.test) == 240
    parts = [speakers_of(ravdess, indices) for indices in split.parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24
    assert split.speaker_disjoint


@needs_ravdess
def test_random_gives_1152_and_288_and_keeps_the_one_repeated_recording_together(ravdess):
    twins = [i for i, n in enumerate(ravdess.contents) if ravdess.contents.count(n) > 1]
    assert [Path(ravdess.files[i]).stem for i in twins] == ["03-01-03-01-02-01-07", "03-01-03-01-02-02-07"]
    labels = ravdess.labels
    for seed in range(10):
        split = make_split(ravdess, "random", seed=seed)
        assert (len(split.train) + len(split.validation), len(split.test)) == (1152, 288)
        assert any(set(twins) <= set(indices) for indices in split.parts.values())
        counts = Counter(labels[i] for i in split.test)
        assert all(abs(counts[label] - (19.2 if label == 0 else 38.4)) < 1 for label in range(8))
    assert not split.speaker_disjoint


@needs_ravdess
def test_the_five_folds_of_random_test_each_clip_once_with_the_classes_in_proportion(ravdess):
    folds = [make_split(ravdess, "random", fold, seed=7).test for fold in range(1, 6)]
    assert sorted(i for fold in folds for i in fold) == [*range(1440)]
    twins = {i for i, n in enumerate(ravdess.contents) if ravdess.contents.count(n) > 1}
    assert sum(twins <= {*fold} for fold in folds) == 1
    for fold in folds:
        counts = Counter(ravdess.labels[i] for i in fold)
        assert all(abs(counts[label] - (19.2 if label == 0 else 38.4)) < 2 for label in range(8))


@needs_ravdess
def test_every_fold_of_ravdess_can_be_made(ravdess):
    assert {p: n_folds(ravdess, p) for p in ("speaker", "luna-jimenez", "loso", "random")} == {
        "speaker": 6,
        "luna-jimenez": 5,
        "loso": 24,
        "random": 5,
    }
    for protocol in ("speaker", "luna-jimenez", "loso"):
        tested = [
            i for fold in range(1, n_folds(ravdess, protocol) + 1) for i in make_split(ravdess, protocol, fold).test
        ]
        assert sorted(tested) == list(range(1440))
    assert resolve_protocol(ravdess) == "emobox"
    split = make_split(ravdess, test_speakers=["1", "11", "20", "21"])
    assert split.name == "ravdess/speakers-01+11+20+21"
    assert split.test == make_split(ravdess, "emobox", 1).test


def test_embedded_folds_equal_the_published_ones():
    folds = RECORDS["ravdess"].folds
    assert sorted(actor for fold in folds["emobox"] for actor in fold) == [f"{a:02d}" for a in range(1, 25)]
    luna = folds["luna-jimenez"]
    assert luna[0] == ("02", "05", "14", "15", "16") and luna[4] == ("01", "04", "09", "22")
    assert sorted(actor for fold in luna for actor in fold) == [f"{a:02d}" for a in range(1, 25)]
    if RAVDESS and (Path(RAVDESS).parent / "folds.json").is_file():
        published = json.loads((Path(RAVDESS).parent / "folds.json").read_text())
        for ours, theirs in (("emobox", "emobox_ravdess_6fold"), ("luna-jimenez", "luna_jimenez_ravdess_5fold")):
            assert [list(map(int, fold)) for fold in folds[ours]] == list(published[theirs].values())


# --- which protocol ---


def test_default_protocol():
    splits = ["train"] * 16 + ["test"] * 8
    assert resolve_protocol(voices(6, splits=splits)) == "predefined"
    assert resolve_protocol(voices(6)) == "speaker"
    assert resolve_protocol(corpus_of([0, 1] * 5)) == "random"
    assert resolve_protocol(voices(2)) == "random"
    assert resolve_protocol(voices(6, name="emodb"), "speaker") == "loso"
    assert resolve_protocol(voices(6, splits=["train"] * 12 + ["validation"] * 12)) == "speaker"


def test_an_unknown_protocol_or_fold_is_refused():
    with pytest.raises(DataError, match="mine has no protocol 'emobox'; it has predefined, random, speaker, loso"):
        make_split(voices(6), "emobox")
    for fold in (0, 7):
        with pytest.raises(DataError, match=f"has folds 1 to 6, not {fold}"):
            make_split(voices(6), "loso", fold)
    with pytest.raises(DataError, match="validation_share"):
        make_split(voices(6), validation_share=1.0)
    with pytest.raises(DataError, match="validation_share"):
        make_split(voices(6), validation_share=-0.1)


# --- predefined ---


def test_predefined_validates_on_whole_speakers_if_its_test_speakers_are_not_trained_on():
    corpus = voices(6, splits=["train"] * 20 + ["test"] * 4)
    split = make_split(corpus)
    assert split.name == "mine/predefined" and split.speaker_disjoint
    assert split.test == [20, 21, 22, 23]
    assert not speakers_of(corpus, split.train) & speakers_of(corpus, split.validation)


def test_predefined_uses_the_validation_split_of_the_data():
    corpus = voices(6, splits=["train"] * 16 + ["validation"] * 4 + ["test"] * 4)
    split = make_split(corpus)
    assert (split.train, split.validation, split.test) == (list(range(16)), [16, 17, 18, 19], [20, 21, 22, 23])


def test_predefined_with_a_shared_speaker_is_not_speaker_disjoint():
    split = make_split(voices(6, splits=["train"] * 18 + ["test"] * 6))
    assert not split.speaker_disjoint
    assert "SPEAKERS SHARED" in split.summary()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([None] * 8, "needs the splits train and test; /data/mine has none"),
        (["train"] * 8, "needs the splits train and test; /data/mine has train"),
        (["train"] * 4 + ["test"] * 3 + [None], "has no split for 1 clip.*0007.wav"),
    ],
)
def test_predefined_without_splits(splits, message):
    with pytest.raises(DataError, match=message):
        make_split(voices(2, splits=splits), "predefined")


# --- speakers ---


def test_loso_tests_one_speaker_in_natural_order():
    corpus = voices(11)
    assert [speakers_of(corpus, make_split(corpus, "loso", fold).test) for fold in (1, 2, 3, 11)] == [
        {"s0"},
        {"s1"},
        {"s2"},
        {"s10"},
    ]


def test_speaker_folds_of_user_data_test_every_speaker_once():
    corpus = voices(7)
    tested = [speakers_of(corpus, make_split(corpus, "speaker", fold).test) for fold in range(1, 6)]
    assert n_folds(corpus, "speaker") == 5
    assert sorted(speaker for fold in tested for speaker in fold) == [f"s{k}" for k in range(7)]


def test_a_source_without_speakers_names_one_that_has_them():
    for protocol in ("speaker", "loso"):
        with pytest.raises(DataError, match="needs the speaker of every clip.* for 8 of 8 .*0000.wav.*the other copy"):
            make_split(corpus_of([0, 1] * 4), protocol)
    with pytest.raises(DataError, match="for 1 of 8"):
        make_split(corpus_of([0, 1] * 4, speakers=["a", "b", "c", "d"] * 1 + ["a", "b", "c", None]), "loso")


def iemocap(known: bool = True) -> Corpus:
    rows = [(k, who, label) for k in range(1, 6) for who in "FM" for label in range(4)]
    speakers = [f"Ses0{k}{who}" if known else None for k, who, _ in rows]
    return corpus_of([label for *_, label in rows], speakers, sessions=[f"Ses0{k}" for k, *_ in rows], name="iemocap")


@pytest.mark.parametrize("known", [True, False])
def test_iemocap_tests_a_session(known):
    corpus = iemocap(known)
    split = make_split(corpus, fold=3)
    assert split.name == "iemocap/sessions-fold3" and n_folds(corpus) == 5
    assert {corpus.sessions[i] for i in split.test} == {"Ses03"} and len(split.test) == 8
    groups = corpus.speakers if known else corpus.sessions
    assert not {groups[i] for i in split.train} & {groups[i] for i in split.validation}


def test_iemocap_loso_validates_on_the_partner_in_dialogue():
    corpus = iemocap()
    split = make_split(corpus, "loso", 4)
    assert (speakers_of(corpus, split.test), speakers_of(corpus, split.validation)) == ({"Ses02M"}, {"Ses02F"})
    assert len(speakers_of(corpus, split.train)) == 8


def test_test_speakers():
    corpus = voices(5)
    assert speakers_of(corpus, make_split(corpus, test_speakers=["s1", "s4"]).test) == {"s1", "s4"}
    with pytest.raises(DataError, match="tests s9, but .* has no such clips; it has s0, s1"):
        make_split(corpus, test_speakers=["s1", "s9"])


def test_a_fold_of_an_incomplete_copy_is_refused():
    corpus = corpus_of([0, 1] * 4, ["01", "01", "11", "11", "20", "20", "02", "02"], name="ravdess")
    with pytest.raises(DataError, match="emobox tests 21, but"):
        make_split(corpus, "emobox")


def test_validation_leaves_every_class_in_training_if_possible():
    labels = [0, 1] * 3 + [2]
    for seed in range(5):
        corpus = corpus_of([*labels, 0, 1], ["a", "a", "b", "b", "c", "c", "a", "d", "d"])
        split = make_split(corpus, "loso", 4, seed=seed)
        assert {corpus.labels[i] for i in split.train} == {0, 1, 2}


def test_too_few_speakers():
    with pytest.raises(DataError, match="need two speakers that are not tested"):
        make_split(voices(2), "loso")


# --- no validation set, no test set ---


@pytest.mark.parametrize("protocol", ["speaker", "loso", "random"])
def test_without_a_share_there_is_no_validation_set_and_the_test_set_is_the_same(protocol):
    corpus = voices(6)
    usual, split = make_split(corpus, protocol), make_split(corpus, protocol, validation_share=0)
    assert split.test == usual.test and not split.validation
    assert split.train == sorted(usual.train + usual.validation)
    assert split.summary().endswith("; no validation set") and "validation clips" not in split.summary()


def test_a_share_of_0_is_refused_if_the_data_has_a_validation_part():
    corpus = voices(6, splits=["train"] * 8 + ["validation"] * 8 + ["test"] * 8)
    with pytest.raises(DataError, match="its own validation part: leave out --validation_share"):
        make_split(corpus, "predefined", validation_share=0)
    with pytest.raises(DataError, match="iemocap/loso-fold1 has its own validation part"):
        make_split(iemocap(), "loso", validation_share=0)


def test_everything_trains_on_all_clips():
    corpus = voices(6, splits=["train"] * 8 + ["validation"] * 8 + ["test"] * 8)
    split = make_split(corpus, "everything")
    assert (split.name, split.train, split.validation, split.test) == ("mine/everything", list(range(24)), [], [])
    assert split.summary() == "Protocol mine/everything: 24 train clips; no validation set; no test set"
    assert n_folds(corpus, "everything") == 1


def test_everything_may_keep_speakers_for_validation():
    corpus = voices(6)
    split = make_split(corpus, "everything", validation_share=0.3)
    assert sorted(split.train + split.validation) == list(range(24)) and not split.test and split.speaker_disjoint
    assert len(speakers_of(corpus, split.validation)) == 2
    assert speakers_of(corpus, split.train).isdisjoint(speakers_of(corpus, split.validation))
    unknown = make_split(corpus_of([0, 1] * 10), "everything", validation_share=0.3)
    assert len(unknown.validation) == 6 and not unknown.speaker_disjoint


# --- data with a validation split but no test split ---


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [None, "speaker", "loso", "random"])
@pytest.mark.parametrize("n_held", [1, 2])
def test_a_validation_split_is_used_although_the_protocol_chooses_the_test_part(protocol, n_held):
    splits = ["train"] * (8 - n_held) * 4 + ["validation"] * n_held * 4
    corpus = voices(8, splits=splits)
    own = [i for i, split in enumerate(splits) if split == "validation"]
    for fold in range(1, n_folds(corpus, protocol) + 1):
        split = make_split(corpus, protocol, fold)
        assert split.validation == own and split.test
        assert sorted(split.train + split.test) == list(range(len(corpus) - len(own)))
        with pytest.raises(DataError, match="has its own validation part: leave out --validation_share"):
            make_split(corpus, protocol, fold, validation_share=0.2)
    assert make_split(corpus, test_speakers=["s0"]).validation == own
    assert make_split(corpus, "everything").train == list(range(len(corpus)))


def test_a_validation_split_that_shares_a_speaker_is_refused_by_speaker_disjoint_protocols():
    corpus = voices(6, splits=["train", "train", "train", "validation"] * 6)
    with pytest.raises(DataError, match="Speaker s. is both in .* or use --protocol random"):
        make_split(corpus)
    split = make_split(corpus, "random")
    assert split.validation == list(range(3, 24, 4)) and not {*split.test} & {*split.validation}


# --- sentences that were not trained on ---


def texts(n_speakers: int, sentences: list[str], n_classes: int = 2, **kwargs) -> Corpus:
    """Returns a corpus in which every speaker says every sentence in every class."""
    rows = [(c, f"s{k}", text) for k in range(n_speakers) for text in sentences for c in range(n_classes)]
    labels, speakers, spoken = zip(*rows, strict=True)
    return corpus_of(list(labels), list(speakers), sentences=list(spoken), **kwargs)


def sentences_of(corpus: Corpus, indices: list[int]) -> set[str]:
    spoken = corpus.sentences
    return {spoken[i] for i in indices}


@needs_ravdess
def test_the_sentence_folds_of_ravdess_are_emobox_speakers_with_the_other_statement(ravdess):
    assert n_folds(ravdess, "sentence") == 12
    tested = []
    for fold in range(1, 13):
        split, emobox = make_split(ravdess, "sentence", fold), make_split(ravdess, "emobox", (fold - 1) % 6 + 1)
        assert split.name == f"ravdess/sentence-fold{fold}" and split.speaker_disjoint
        assert speakers_of(ravdess, split.test) == speakers_of(ravdess, emobox.test)
        first, second = ("01", "02") if fold <= 6 else ("02", "01")
        assert sentences_of(ravdess, split.train) == sentences_of(ravdess, split.validation) == {first}
        assert sentences_of(ravdess, split.test) == {second} and len(split.test) == 120
        assert len(split.train) + len(split.validation) == 600
        tested += split.test
    assert sorted(tested) == list(range(1440))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corpus", "count", "halves"),
    [
        (texts(6, ["a01", "a02", "b09", "b10", "a07"], name="emodb"), 10, ({"a01", "a07", "b10"}, {"a02", "b09"})),
        (texts(7, ["IEO", "DFA"], n_classes=3, name="cremad"), 10, ({"DFA"}, {"IEO"})),
        (texts(3, ["2", "10", "1"]), 6, ({"1", "10"}, {"2"})),
    ],
)
def test_sentence_tests_each_clip_once_on_speakers_and_sentences_that_are_not_trained_on(corpus, count, halves):
    assert n_folds(corpus, "sentence") == count
    splits = [make_split(corpus, "sentence", fold) for fold in range(1, count + 1)]
    assert sorted(i for split in splits for i in split.test) == list(range(len(corpus)))
    for fold, split in enumerate(splits, 1):
        trained, tested = halves if fold <= count // 2 else halves[::-1]
        assert sentences_of(corpus, split.train) == sentences_of(corpus, split.validation) == trained
        assert sentences_of(corpus, split.test) == tested
        parts = [speakers_of(corpus, indices) for indices in split.parts.values()]
        assert sum(map(len, parts)) == len(set.union(*parts))
        whole = make_split(corpus, "sentence", fold, validation_share=0)
        assert whole.train == sorted(split.train + split.validation)


def test_sentence_needs_sentences_and_speakers():
    with pytest.raises(DataError, match="the sentence of every clip.* 24 of 24 .*0000.wav.*--protocol speaker"):
        make_split(voices(6), "sentence")
    with pytest.raises(DataError, match="for 1 of 4 .such as 0002.wav"):
        make_split(corpus_of([0, 1] * 2, list("aabb"), sentences=["x", "y", None, "y"]), "sentence")
    with pytest.raises(DataError, match="needs two sentences, and all clips of /data/mine are of 'x'"):
        make_split(texts(4, ["x"]), "sentence")
    with pytest.raises(DataError, match="needs the speaker of every clip"):
        make_split(corpus_of([0, 1] * 2, sentences=["x", "y"] * 2), "sentence")


@pytest.mark.parametrize(
    ("name", "file", "sentence"),
    [
        ("ravdess", "Actor_05/03-01-04-02-02-01-05.wav", "02"),
        ("emodb", "wav/08b09Wa.wav", "b09"),
        ("emodb", "16a07Fb.wav", "a07"),
        ("cremad", "AudioWAV/1047_ITH_SAD_XX.wav", "ITH"),
    ],
)
def test_the_sentence_is_read_from_the_file_name(name, file, sentence, tmp_path):
    write_sound(tmp_path / file, seed=1)
    assert [row["sentence"] for row in RECORDS[name].tree(tmp_path)] == [sentence]
    rows = {"path": Path(file).name, "file": file, "emotion": "x", "labels": "x", "speaker_id": "5", "age": None}
    for source in RECORDS[name].hub.values():
        assert source.read(rows | {"gender": "male"})["sentence"] == sentence


# --- any corpus ---


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    n_speakers=st.integers(3, 6),
    n_classes=st.integers(2, 4),
    takes=st.integers(3, 5),
    repeats=st.integers(0, 4),
    seed=st.integers(0, 99),
    protocol=st.sampled_from(["random", "speaker", "loso"]),
)
def test_parts_are_a_partition_without_a_leak(n_speakers, n_classes, takes, repeats, seed, protocol):
    n = n_speakers * n_classes * takes
    seeds = list(range(n))
    for i in range(repeats):  # clips i and i + 1 of one speaker have the same sound
        seeds[2 * i + 1] = seeds[2 * i]
    corpus = voices(n_speakers, n_classes, takes, seeds=seeds)
    split = make_split(corpus, protocol, seed=seed)
    assert sorted(split.train + split.validation + split.test) == list(range(n))
    if protocol == "random":
        assert len(split.test) == -(-n // 5)
    else:
        parts = [speakers_of(corpus, indices) for indices in split.parts.values()]
        assert sum(map(len, parts)) == n_speakers
    sounds = [{seeds[i] for i in indices} for indices in split.parts.values()]
    assert sum(map(len, sounds)) == len(set(seeds))
    again = make_split(corpus, protocol, seed=seed)
    assert again == split


def test_the_seed_changes_random_splits():
    corpus = corpus_of([0, 1] * 20)
    assert make_split(corpus, "random", seed=1).test != make_split(corpus, "random", seed=2).test


# --- splits that are refused ---


def test_a_leaked_speaker_is_named():
    corpus = voices(3)
    split = Split("mine/speaker-fold1", [0, 1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11], speaker_disjoint=True)
    with pytest.raises(DataError, match=r"Speaker s2 is both in validation \(0008.wav\) and in test \(0009.wav\)"):
        check_split(corpus, split)


def test_the_same_recording_in_two_parts_is_named():
    seeds = [*range(12)]
    seeds[9] = seeds[1]
    corpus = voices(3, seeds=seeds)
    with pytest.raises(DataError, match=r"0001.wav \(\w+\) = 0009.wav \(test\).*drop_duplicates"):
        make_split(corpus, "loso", 3)


def test_a_clip_in_two_parts_is_refused():
    with pytest.raises(DataError, match="0003.wav .train. = 0003.wav .test."):
        check_split(voices(2), Split("mine/random", [0, 1, 2, 3], [4, 5], [3, 6, 7], speaker_disjoint=False))


def test_a_class_without_training_clips_is_named():
    corpus = corpus_of([0, 1, 0, 1, 0, 2], ["a", "a", "b", "b", "c", "c"])
    with pytest.raises(DataError, match="training part of mine/loso-fold3 has no clip of class 'class2'"):
        make_split(corpus, "loso", 3)


def test_an_empty_part_is_named():
    with pytest.raises(DataError, match="The test part of mine/random is empty"):
        check_split(voices(2), Split("mine/random", [0, 1, 2, 3], [4, 5], [], speaker_disjoint=False))


def test_a_class_with_a_single_clip_cannot_be_divided():
    with pytest.raises(DataError, match="Class 'class2' has only one clip"):
        make_split(corpus_of([0, 1] * 10 + [2]), "random")
