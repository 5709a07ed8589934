"""Several corpora in one run: joined for training and testing, or one as the test set of the others."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ser.arguments import DataArguments
from ser.cli import command_parser, parse_arguments
from ser.commands import evaluate as evaluate_ser
from ser.commands.train import main
from ser.data.corpora import RECORDS, load_corpora, load_corpus
from ser.data.corpora.combine import balanced_rows
from ser.data.corpora.demo import write_demo_corpus
from ser.data.corpora.label_map import DEFAULT, LabelMap, format_label_map, read_label_map
from ser.data.protocols import make_split, n_folds, resolve_protocol
from ser.evaluation.class_mapping import SharedClasses, shared_classes
from ser.utils import DataError
from tests.helpers.clips import write_sound
from tests.helpers.originals import TINY, recomputed, write_emodb, write_ravdess

HARMONISED = ["neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise"]


@pytest.fixture(scope="module")
def ravdess(tmp_path_factory) -> str:
    return write_ravdess(tmp_path_factory.mktemp("ravdess"))


@pytest.fixture(scope="module")
def emodb(tmp_path_factory) -> str:
    return write_emodb(tmp_path_factory.mktemp("emodb"))


def write_map(folder: Path, text: str) -> str:
    path = folder / "map.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- one table ---


def test_a_single_corpus_is_read_unchanged(ravdess):
    alone, one = load_corpus("ravdess", ravdess), load_corpora(["ravdess"], [ravdess])
    assert one.clips[:] == alone.clips[:] and one.clips.features == alone.clips.features
    assert {**vars(one), "clips": None} == {**vars(alone), "clips": None}
    assert "corpus" not in one.clips.column_names


def test_two_corpora_are_one_table_of_harmonised_classes(ravdess, emodb):
    corpus = load_corpora(["ravdess", "emodb"], [ravdess, emodb])
    assert (corpus.name, corpus.label_names) == ("ravdess+emodb", [*HARMONISED, "boredom"])
    both = Counter(zip(corpus.clips["corpus"][:], (corpus.label_names[label] for label in corpus.labels), strict=True))
    assert both == {
        **{("ravdess", name): 6 for name in HARMONISED},
        **{("emodb", n): 3 for n in ("neutral", "happy", "sad", "angry", "fear", "disgust", "boredom")},
    }
    assert corpus.speakers[0] == "ravdess/01" and corpus.speakers[-1] == "emodb/09"
    assert corpus.files[0] == "ravdess/Actor_01/03-01-01-01-01-01-01.wav"
    assert Path(corpus.clips[0]["audio"]["path"]).name == "03-01-01-01-01-01-01.wav"
    assert Counter(corpus.clips["language"][:]) == {"en": 48, "de": 21}
    split = make_split(corpus)
    assert split.name == "ravdess+emodb/speaker-fold1" and split.speaker_disjoint
    kept = corpus.options["label_map"]
    assert kept["from"] == "the default map" and kept["classes"]["emodb"]["happiness"] == "happy"
    assert "Class happy: happy (ravdess), happiness (emodb)" in format_label_map(kept["classes"], corpus.label_names)


def test_classes_are_kept_by_their_harmonised_names_in_the_order_given(ravdess, emodb):
    corpus = load_corpora(["ravdess", "emodb"], [ravdess, emodb], labels=["happy", "angry"])
    assert corpus.label_names == ["happy", "angry"] and len(corpus) == 18
    assert corpus.dropped["class 'boredom' not among those kept"] == 3
    with pytest.raises(DataError, match="no class 'happiness' under the default map; the classes are neutral, calm"):
        load_corpora(["ravdess", "emodb"], [ravdess, emodb], labels=["happiness"])


def test_a_map_may_merge_and_leave_out_classes(ravdess, emodb, tmp_path):
    text = """
    neutral: [neutral, calm]
    happy: [happy, happiness]
    angry: [angry, anger]
    sad: [sad, sadness]
    null: [fear, disgust, surprise, boredom]
    """
    corpus = load_corpora(["ravdess", "emodb"], [ravdess, emodb], label_map=write_map(tmp_path, text))
    counts = Counter(corpus.label_names[label] for label in corpus.labels)
    assert counts == {"neutral": 15, "happy": 9, "angry": 9, "sad": 9}
    assert corpus.dropped["class 'fear' not among those kept"] == 9
    alone = load_corpora(["emodb"], [emodb], label_map=DEFAULT)
    assert alone.label_names[:2] == ["neutral", "happy"] and alone.speakers[0] == "03" and alone.name == "emodb"
    assert resolve_protocol(alone, "speaker") == "loso"


def test_a_given_map_may_use_classes_that_the_record_leaves_out(tmp_path):
    for actor in (1, 2):
        for emotion in range(1, 12):
            name = f"03-01-{emotion:02d}-01-01-{actor:02d}-02-02-01.wav"
            write_sound(tmp_path / "asvp" / name, seed=100 * actor + emotion)
    text = "glad: [happy, excited]\nlow: [sad, boredom]\nnull: [neutral, angry, fear, disgust, surprise, pleasure]"
    corpus = load_corpora(["asvpesd"], [str(tmp_path / "asvp")], label_map=write_map(tmp_path, text))
    assert Counter(corpus.label_names[label] for label in corpus.labels) == {"glad": 4, "low": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("happy: [happy, joy]\nneutral: [calm, happy]", "maps 'happy' to both 'happy' and 'neutral'"),
        ("happy: happy\nhappy: happiness", "names the class 'happy' twice: give its spellings in one list"),
        ("happy: [happy, happiness]", "lacks the class 'neutral' of ravdess: map it to a class, or to null to leave"),
        ("happy: []", "maps nothing to 'happy': leave it out"),
        ("[happy, sad]", "is not a map of classes to lists of spellings"),
        ("happy: {a: b}", "is not a map of classes to lists of spellings"),
        ("happy: [happy", "cannot be read: while parsing"),
        ("", "is not a map of classes to lists of spellings"),
    ],
)  # fmt: skip
def test_an_invalid_map_is_refused(ravdess, emodb, tmp_path, text, message):
    with pytest.raises(DataError, match=f"map.yaml {message}"):
        load_corpora(["ravdess", "emodb"], [ravdess, emodb], label_map=write_map(tmp_path, text))


def test_a_missing_map_or_one_with_an_unknown_class_is_refused(ravdess, tmp_path):
    text = "all: [neutral, calm, happy, sad, angry, fear, disgust, surprise, hapy]"
    with pytest.raises(DataError, match=r"map.yaml has 'hapy', which is not a class of ravdess; they have angry, "):
        load_corpora(["ravdess"], [ravdess], label_map=write_map(tmp_path, text))
    with pytest.raises(DataError, match="nowhere.yaml cannot be read"):
        read_label_map("nowhere.yaml")


def test_the_default_map_contains_every_class_of_every_record():
    mapping = read_label_map(None)
    for name, record in RECORDS.items():
        assert {*mapping.of(name, record.labels).values()} <= {*mapping.names}
        assert None not in mapping.of(name, {*record.aliases.values()}).values()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_dir": ["a"]}, "names 1 folder.s. for 2 corpora: give one for each, in the same order, and none for a"),
        ({"merge_labels": ["calm=neutral"]}, "--merge_labels is for a single corpus: leave it out, and map"),
        ({"dataset_name": ["demo", "DEMO"]}, "The corpus demo is named twice"),
    ],
)
def test_options_that_do_not_apply_to_several_corpora_are_refused(flags, message):
    with pytest.raises(DataError, match=message):
        load_corpora(**{"dataset_name": ["ravdess", "emodb"], **flags})


def test_a_corpus_without_a_folder_can_be_joined_with_one_in_a_folder(ravdess, tmp_path, monkeypatch):
    import ser.data.corpora.demo

    monkeypatch.setattr(
        ser.data.corpora.demo,
        "write_demo_corpus",
        lambda folder: write_demo_corpus(folder, n_voices=2, clips_per_emotion=1),
    )
    corpus = load_corpora(["demo", "ravdess"], ["none", ravdess], cache_dir=str(tmp_path))
    assert Counter(corpus.clips["corpus"][:]) == {"demo": 8, "ravdess": 48}


def test_the_same_recording_in_two_corpora_is_found(ravdess, emodb, tmp_path):
    (tmp_path / "03a01Fa.wav").write_bytes((Path(ravdess) / "Actor_01" / "03-01-03-01-01-01-01.wav").read_bytes())
    for code in "WLEANT":
        write_sound(tmp_path / f"08a01{code}a.wav", seed=ord(code))
    write_sound(tmp_path / "08a01Fa.wav", seed=1)
    places = {
        "dataset_name": ["ravdess"],
        "data_dir": [ravdess],
        "test_dataset_name": ["emodb"],
        "test_data_dir": [str(tmp_path)],
    }
    with pytest.raises(
        DataError, match="the same recording in two parts, 1 time.*ravdess/Actor_01/03-01-03.* = emodb/03a01Fa.wav"
    ):
        make_split(load_corpora(**places), validation_share=0)
    corpus = load_corpora(**places, drop_duplicates=True)
    assert "emodb/03a01Fa.wav" in corpus.files and len(corpus) == 47 + 7
    assert corpus.dropped["equal sound as another clip"] == 1


def test_balanced_rows_use_every_corpus_equally_often():
    corpora = ["a"] * 7 + ["b"] * 3 + ["c"]
    rows = balanced_rows(corpora, seed=0)
    assert Counter(corpora[row] for row in rows) == {"a": 7, "b": 7, "c": 7}
    times = Counter(rows)
    assert {times[row] for row in range(7)} == {1} and {times[row] for row in (7, 8, 9)} == {2, 3}
    assert rows == balanced_rows(corpora, seed=0)
    assert balanced_rows(["a", "b"] * 4, seed=0) == list(range(8))


# --- a test on another corpus ---


@pytest.fixture
def crossed(ravdess, emodb):
    return load_corpora(["ravdess"], [ravdess], test_dataset_name=["emodb"], test_data_dir=[emodb])


def test_a_test_on_another_corpus_uses_the_shared_classes(crossed):
    assert (crossed.name, crossed.label_names) == ("ravdess->emodb", HARMONISED)
    assert crossed.shared_labels == ["neutral", "happy", "sad", "angry", "fear", "disgust"]
    assert crossed.dropped == {"class 'boredom' not among those trained on": 3}
    assert (resolve_protocol(crossed), n_folds(crossed)) == ("shared-6", 1)
    split = make_split(crossed)
    assert split.name == "ravdess->emodb/shared-6" and split.speaker_disjoint
    assert [len(part) for part in split.parts.values()] == [40, 8, 18]
    assert {crossed.clips["corpus"][i] for i in split.test} == {"emodb"}
    with pytest.raises(DataError, match="is tested on another corpus, not by a protocol"):
        make_split(crossed, "emobox")


def test_corpora_without_shared_classes_are_refused(ravdess, tmp_path):
    for name, seed in (("pain", 1), ("breath", 2)):
        write_sound(tmp_path / "own" / name / "a.wav", seed)
    with pytest.raises(
        DataError, match="ravdess and own share 0 class.es. under the default map, and a test needs two"
    ):
        load_corpora(["ravdess"], [ravdess], test_dataset_name=[str(tmp_path / "own")])


def test_options_of_cross_corpus_tests_that_contradict_each_other_or_have_no_effect(caplog):
    with pytest.raises(ValueError, match="determines the test part: leave out --protocol"):
        DataArguments(test_dataset_name=["emodb"], protocol="loso")
    data_args = parse_arguments(["--output_dir", "out", "--test_data_dir", "a", "--corpus_sampling", "balanced"])[1]
    assert (data_args.test_data_dir, data_args.corpus_sampling) == (None, "natural")
    assert "--test_data_dir has no effect without --test_dataset_name" in caplog.text
    assert "--corpus_sampling has no effect without several corpora" in caplog.text


def test_probabilities_of_merged_classes_are_added_before_the_maximum():
    logits = np.log(np.array([[0.4, 0.3, 0.25, 0.05], [0.1, 0.2, 0.1, 0.6]]))
    shared = shared_classes(["happy", "low"], {"happy": "happy", "sad": "low", "calm": "low", "fear": None})
    assert shared == SharedClasses(["happy", "low"], [[0], [1, 2]])
    sums = shared.of_probabilities(np.exp(logits))
    assert sums == pytest.approx(np.array([[0.4, 0.55], [0.1, 0.3]]), abs=1e-12)
    assert np.exp(shared.of_logits(logits + 7)) == pytest.approx(sums, abs=1e-12)
    assert np.exp(logits).argmax(1).tolist() == [0, 3] and sums.argmax(1).tolist() == [1, 1]


def test_a_map_on_the_command_line_is_not_read_as_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("fold: 2")
    recipe_values, line = command_parser(False).read([str(recipe), "--label_map", "map.yaml", "--fold", "3"])
    assert (recipe_values, line) == ({"fold": "2"}, {"label_map": "map.yaml", "fold": "3"})


# --- from the command to the report ---


def read(folder: Path) -> tuple[dict, list[dict]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return json.loads((folder / "metrics.json").read_text()), list(csv.DictReader(file))


def assert_scores(found: dict, rows: list[dict]) -> None:
    for name, value in recomputed(rows).items():
        if value is not None:
            assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    write_demo_corpus(folder, n_voices=4, clips_per_emotion=1)
    return str(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def both(ravdess, demo, cache, tmp_path_factory) -> Path:
    """Trains on both corpora, sampled equally often, and returns the folder of the run."""
    folder = tmp_path_factory.mktemp("both")
    main(["--dataset_name", "ravdess", "demo", "--data_dir", ravdess, demo, "--corpus_sampling", "balanced",
          "--cache_dir", cache, "--output_dir", str(folder), *TINY])  # fmt: skip
    return folder


@pytest.mark.slow
def test_each_corpus_of_a_run_gets_its_own_scores(both):
    metrics, rows = read(both)
    assert metrics["protocol"] == "ravdess+demo/speaker-fold1"
    assert metrics["corpus"]["options"]["label_map"]["classes"]["ravdess"]["calm"] == "calm"
    assert metrics["corpus"]["options"]["corpora"].keys() == {"ravdess", "demo"}
    assert_scores(metrics, rows)
    groups = metrics["groups"]["corpus"]
    assert groups.keys() == {"ravdess", "demo"}
    for name, group in groups.items():
        assert_scores(group, [row for row in rows if row["file"].startswith(f"{name}/")])
    assert sum(metrics["corpus"]["rows_used"].values()) == 48 + 16
    splits = json.loads((both / "splits.json").read_text())
    assert splits["corpora"] == ["demo", "ravdess"]
    card = (both / "README.md").read_text()
    assert "ravdess: CC BY-NC-SA 4.0; demo: MIT" in card and "2 corpora" in card
    assert not any(str(part) in (both / "metrics.json").read_text() for part in ("/tmp/", "pytest-of"))


@pytest.mark.slow
def test_a_finished_run_of_two_corpora_is_recognized_and_refused_with_another_map(
    both, ravdess, demo, cache, tmp_path, capsys
):
    flags = ["--dataset_name", "ravdess", "demo", "--data_dir", ravdess, demo, "--corpus_sampling", "balanced"]
    flags += ["--cache_dir", cache, "--output_dir", str(both), *TINY]
    main(flags)
    assert "holds a finished run" in capsys.readouterr().out
    text = "neutral: [neutral, calm]\n" + "\n".join(f"{name}: {name}" for name in HARMONISED[2:])
    with pytest.raises(DataError, match="holds a run with other settings: options"):
        main([*flags, "--label_map", write_map(tmp_path, text)])


@pytest.mark.slow
def test_training_speakers_of_a_run_of_two_corpora_are_not_tested_in_one_of_them(
    both, ravdess, emodb, cache, tmp_path
):
    splits = json.loads((both / "splits.json").read_text())["clips"]
    trained_on = sorted(
        clip["speaker"][8:] for clip in splits if clip["part"] == "train" and clip["speaker"].startswith("ravdess/")
    )
    tested = sorted(
        {clip["speaker"][8:] for clip in splits if clip["part"] == "test" and clip["speaker"].startswith("ravdess/")}
    )
    flags = [str(both), "--dataset_name", "ravdess", "--data_dir", ravdess, "--cache_dir", cache]
    with pytest.raises(
        DataError, match=f"was trained or validated on 1 of the speakers to be tested, such as {trained_on[0]}"
    ):
        evaluate_ser.main([*flags, "--test_speakers", trained_on[0], "--output_dir", str(tmp_path / "trained_on")])
    evaluate_ser.main([*flags, "--test_speakers", *tested, "--output_dir", str(tmp_path / "untrained_on")])
    _, rows = read(tmp_path / "untrained_on")
    before = {row["file"]: row["prediction"] for row in read(both)[1]}
    assert {f"ravdess/{row['file']}": row["prediction"] for row in rows}.items() <= before.items()


@pytest.mark.slow
def test_a_cross_corpus_run_scores_the_shared_classes(ravdess, emodb, cache, tmp_path, capsys):
    main(["--dataset_name", "ravdess", "--data_dir", ravdess, "--test_dataset_name", "emodb", "--test_data_dir", emodb,
          "--test_window", "1", "--cache_dir", cache, "--output_dir", str(tmp_path), *TINY])  # fmt: skip
    stdout = capsys.readouterr().out
    assert "Class happy: happy (ravdess), happiness (emodb)" in stdout and "No class: boredom (emodb)" in stdout
    metrics, rows = read(tmp_path)
    assert metrics["protocol"] == "ravdess->emodb/shared-6" and metrics["speaker_disjoint"]
    assert {key[2:] for key in rows[0] if key.startswith("p_")} == {
        "neutral",
        "happy",
        "sad",
        "angry",
        "fear",
        "disgust",
    }
    assert metrics["label_names"] == HARMONISED and metrics["per_class"].keys() == {
        key[2:] for key in rows[0] if key.startswith("p_")
    }
    assert len(rows) == 18 and {row["speaker"] for row in rows} == {"emodb/03", "emodb/08", "emodb/09"}
    assert all(
        sum(float(value) for key, value in row.items() if key.startswith("p_")) == pytest.approx(1) for row in rows
    )
    assert_scores(metrics, rows)
    assert metrics["groups"].keys() == {"sex"}  # the test corpus is one, in one language
    for sex, speakers in {"male": {"emodb/03"}, "female": {"emodb/08", "emodb/09"}}.items():
        assert_scores(metrics["groups"]["sex"][sex], [row for row in rows if row["speaker"] in speakers])
    # One window is the whole clip of 10 ms, so the predictions are equal.
    assert metrics["test_windows"]["WA"] == pytest.approx(metrics["WA"], abs=1e-9)
    with open(tmp_path / "validation_predictions.csv", newline="") as file:
        assert {key[2:] for key in next(csv.DictReader(file)) if key.startswith("p_")} == {*HARMONISED}


@pytest.mark.slow
def test_a_checkpoint_is_scored_on_the_classes_it_shares_with_another_corpus(ravdess, emodb, cache, tmp_path):
    main(["--dataset_name", "ravdess", "--data_dir", ravdess, "--test_speakers", "1", "--cache_dir", cache,
          "--output_dir", str(tmp_path / "m"), *TINY])  # fmt: skip
    text = """
    neutral: [neutral, calm]
    happy: [happy, happiness]
    angry: [angry, anger]
    sad: [sad, sadness]
    fear: fear
    null: [disgust, surprise, boredom]
    """
    flags = [str(tmp_path / "m"), "--dataset_name", "emodb", "--data_dir", emodb, "--cache_dir", cache]
    evaluate_ser.main([*flags, "--labels", "happiness", "anger", "--merge_labels", "happiness=happy", "anger=angry",
                       "--labels", "happy", "angry", "--output_dir", str(tmp_path / "all")])  # fmt: skip
    evaluate_ser.main([*flags, "--label_map", write_map(tmp_path, text), "--output_dir", str(tmp_path / "shared")])
    whole, fine = read(tmp_path / "all")
    metrics, rows = read(tmp_path / "shared")
    assert whole["protocol"] == "emodb/all" and metrics["protocol"] == "ravdess->emodb/shared-5"
    assert metrics["corpus"]["rows_left_out"] == {
        "class 'boredom' not among those kept": 3, "class 'disgust' not among those kept": 3,
    }  # fmt: skip
    assert_scores(metrics, rows)
    merged = {row["file"]: row for row in rows}
    for row in fine:
        kept = {name: float(row[f"p_{name}"]) for name in ("neutral", "calm", "happy", "angry", "sad", "fear")}
        expected = (kept["neutral"] + kept["calm"]) / sum(kept.values())
        assert float(merged[row["file"]]["p_neutral"]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(DataError, match="lacks the class 'calm' of the model: map it to a class, or to null"):
        evaluate_ser.main([*flags, "--label_map", write_map(tmp_path, text.replace(", calm", "")), "--output_dir",
                           str(tmp_path / "lost")])  # fmt: skip


def test_the_formatted_map_lists_labels_without_a_class():
    mapping = LabelMap("x", {"a": "one", "b": "one", "c": None})
    assert format_label_map({"p": mapping.of("p", ["a", "c"]), "q": mapping.of("q", ["b"])}, ["one"]) == (
        "Class one: a (p), b (q)\nNo class: c (p)"
    )


@pytest.mark.parametrize("others", [["train", "dev"], ["train", "test"], [None]])
def test_a_validation_split_without_a_test_split_is_kept_with_other_corpora(tmp_path, others):
    for name, splits in (("one", ["train", "valid"]), ("two", others)):
        lines = ["file,label,speaker,split"]
        for i in range(12):
            write_sound(tmp_path / name / f"{i}.wav", seed=1000 * (name == "two") + i)
            split = splits[i // 3 % len(splits)] or ""
            lines.append(f"{i}.wav,{('happy', 'sad')[i % 2]},s{i // 3},{split}")
        (tmp_path / name / f"{name}.csv").write_text("\n".join(lines) + "\n")
    corpus = load_corpora([str(tmp_path / f"{name}/{name}.csv") for name in ("one", "two")])
    split = make_split(corpus, "speaker")
    held = {("one", speaker) for speaker in ("s1", "s3")} | (
        {("two", "s1"), ("two", "s3")} if "dev" in others else set()
    )
    speakers = corpus.speakers
    assert {tuple(speakers[i].split("/")) for i in split.validation} == held
    assert len(split.train) + len(split.test) == 24 - len(split.validation)
