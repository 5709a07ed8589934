"""Tests streamed clips: their table, order, memory, resuming, and the same predictions as with a loaded corpus."""

import json
import tracemalloc
from collections import Counter
from datetime import datetime
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from datasets import Audio, ClassLabel, Dataset, Features, List, Value

from audio_maxmvit import AudioError
from ser.cli import parse_arguments
from ser.data.corpora.corpus import sound_facts
from ser.data.corpora.loading import load_corpus
from ser.data.corpora.streamed import FOLDER, Shards, open_streamed
from ser.data.prepare import refuse_unreadable
from ser.training.streaming import (
    ShuffledBatches,
    StreamedBatches,
    buffered_order,
)
from ser.utils import DataError
from tests.helpers.clips import sound, write_parquet
from tests.helpers.commands import read_predictions, run
from tests.helpers.streaming import KEEPING, trainer_of, write_shards
from tests.helpers.tiny import tiny_feature_extractor


def files_of(batches) -> list[list[str]]:
    return [[item["file"] for _, item in batch] for batch in batches]


def shuffled(corpus, batch_size=4, buffer_size=8, seed=3, **sharing) -> ShuffledBatches:
    return ShuffledBatches(corpus.clips, corpus.shards, batch_size, buffer_size=buffer_size, seed=seed, **sharing)


# ---- the table


def test_the_table_equals_that_of_a_loaded_corpus(streamed_corpus, streamed_shards, tmp_path):
    whole = load_corpus(str(streamed_shards), cache_dir=str(tmp_path))
    assert "audio" not in streamed_corpus.clips.column_names and whole.shards is None
    assert streamed_corpus.revision == whole.revision
    assert streamed_corpus.label_names == whole.label_names == ["a", "b"]
    for name in ("file", "label", "speaker", "split"):
        assert streamed_corpus.clips[name][:] == whole.clips[name][:]
    assert streamed_corpus.contents == whole.contents
    read = streamed_corpus.shards.read(streamed_corpus.clips["place"][:])
    assert [audio["bytes"] for audio in read] == [audio["bytes"] for audio in whole.clips["audio"]]


def test_shards_are_read_once_for_the_table_and_nothing_is_converted(tmp_path, monkeypatch):
    folder, cache, read = write_shards(tmp_path / "shards", 12), tmp_path / "cache", []
    monkeypatch.setattr("ser.data.corpora.streamed.sound_facts", lambda name, audio: read.append(name) or (name, 1.0))
    load = partial(load_corpus, str(folder), cache_dir=str(cache), streaming=True)
    first = load()
    tables = list(cache.glob("**/*.arrow"))
    assert len(tables) == 1 and tables[0].is_relative_to(cache / FOLDER)
    assert "audio" not in Dataset.from_file(str(tables[0])).column_names
    assert load().clips[:] == first.clips[:] and len(read) == 12
    write_shards(folder, 12)  # the same content, but written again
    assert load().clips[:] == first.clips[:] and len(read) == 24


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_listing_starts_again(tmp_path, monkeypatch, stopped_by):
    folder, cache, listed = write_shards(tmp_path / "shards", 12), tmp_path / "cache", []

    def stop_at_the_eighth(name, audio):
        listed.append(name)
        if len(listed) == 8:
            raise stopped_by
        return sound_facts(name, audio)

    monkeypatch.setattr("ser.data.corpora.streamed.sound_facts", stop_at_the_eighth)
    load = partial(load_corpus, str(folder), cache_dir=str(cache), streaming=True)
    with pytest.raises(stopped_by):
        load()
    corpus = load()
    assert len(listed) == 8 + 12 and len(corpus) == len({*corpus.contents}) == 12


def test_columns_of_every_type_equal_those_of_the_table(tmp_path):
    audio = [{"bytes": sound(row), "path": f"{row}.wav"} for row in range(5)]
    columns = {
        "label": ([0, 1, -1, 1, 0], ClassLabel(names=["calm", "joy"])),
        "text": (["a", None, "", "ä", "b"], Value("string")),
        "votes": ([[1, 2], [], None, [0, 3], [4, 0]], List(Value("int32"))),
        "when": ([datetime(2024, 1, day) for day in range(1, 6)], Value("timestamp[s]")),
        "age": ([31.5, None, float("inf"), 0.0, -0.0], Value("float32")),
    }
    features = Features({name: kind for name, (_, kind) in columns.items()})
    table = Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=features)
    table.add_column("audio", audio).cast_column("audio", Audio()).to_parquet(tmp_path / "train.parquet")
    splits, _ = open_streamed(str(tmp_path), str(tmp_path / "cache"))
    facts = splits["train"].facts("audio", [*columns])
    assert facts.select([*columns]).to_pydict() == table.with_format("arrow")[:].to_pydict()
    assert facts[":path"].to_pylist() == [entry["path"] for entry in audio]


def test_only_the_requested_groups_are_read(streamed_corpus, monkeypatch):
    opened = []
    group = type(streamed_corpus.shards)._group
    monkeypatch.setattr(type(streamed_corpus.shards), "_group", lambda self, n: opened.append(n) or group(self, n))
    names = [Path(audio["path"]).name for audio in streamed_corpus.shards.read([11, 11, 12, 40, 3])]
    assert names == ["train11.wav", "train11.wav", "train12.wav", "train40.wav", "train3.wav"]
    assert len(opened) == 3


def test_a_split_that_is_not_used_is_not_read(tmp_path):
    write_shards(tmp_path, 7, files=2, split="extra")
    last = sorted(tmp_path.glob("data/extra*"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    write_shards(tmp_path, 6, files=2)
    corpus = load_corpus(str(tmp_path), cache_dir=str(tmp_path / "cache"), streaming=True)
    assert not corpus.dropped and len(corpus) == len(corpus.shards) == 6


def test_clips_of_two_splits_that_cannot_be_decoded_are_not_duplicates(tmp_path):
    for split, label in (("train", "a"), ("test", "b")):
        contents = [b"no sound", sound(0 if split == "train" else 1), sound(2 if split == "train" else 3)]
        audio = [{"bytes": each, "path": f"{split}{i}.wav"} for i, each in enumerate(contents)]
        table = Dataset.from_dict({"audio": audio, "label": [label, "a", "b"]}).cast_column("audio", Audio())
        table.to_parquet(tmp_path / f"{split}.parquet")
    load = partial(load_corpus, str(tmp_path), cache_dir=str(tmp_path / "cache"), streaming=True)
    corpus = load(drop_duplicates=True)
    assert not corpus.dropped and len(corpus) == 6
    with pytest.raises(AudioError, match=r"^train0\.wav: "):
        refuse_unreadable(corpus.clips, corpus.shards, tiny_feature_extractor())


def test_a_copy_of_a_known_corpus_streams_too(tmp_path):
    columns = {"age": [34.0, 31.0, 35.0], "gender": [0, 0, 1], "emotion": [0, 1, 2]}
    classes = {"gender": ["female", "male"], "emotion": ["anger", "boredom", "disgust"]}
    write_parquet(tmp_path, "train", columns, ["a.wav", "b.wav", None], classes)
    load = partial(load_corpus, "emodb", str(tmp_path), cache_dir=str(tmp_path / "cache"), labels=["anger", "disgust"])
    whole, streamed = load(), load(streaming=True)
    assert streamed.clips.remove_columns(["place", "content", "seconds"])[:] == whole.clips.remove_columns("audio")[:]
    assert streamed.dropped == whole.dropped and len(streamed.dropped) == 1
    (audio,) = streamed.shards.read(streamed.clips["place"][1:])
    assert audio == whole.clips[1]["audio"]


def test_shards_on_another_file_system_are_read(streamed_shards, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in streamed_shards.glob("data/*"):
        memory.pipe(f"/corpus/{path.name}", path.read_bytes())
    splits, names = open_streamed("parquet", str(tmp_path), data_files="memory://corpus/train-*.parquet")
    shards = Shards()
    assert len(shards.add(splits["train"], "audio", splits["train"].facts("audio", ["label"]))) == 46
    assert [audio["path"] for audio in shards.read([45, 20])] == ["train45.wav", "train20.wav"]
    assert names.count("memory://") == 3


def test_a_clip_that_cannot_be_decoded_is_named_before_training(tmp_path):
    audio = [{"bytes": contents, "path": f"{i}.wav"} for i, contents in enumerate([sound(0), b"no sound", sound(1)])]
    table = Dataset.from_dict({"audio": audio, "label": ["a", "b", "a"]}).cast_column("audio", Audio())
    table.to_parquet(tmp_path / "train.parquet")
    corpus = load_corpus(str(tmp_path), cache_dir=str(tmp_path / "cache"), streaming=True)
    with pytest.raises(AudioError, match=r"^1\.wav: "):
        refuse_unreadable(corpus.clips, corpus.shards, tiny_feature_extractor())


def test_a_truncated_shard_is_named(tmp_path):
    write_shards(tmp_path, 12)
    last = sorted(tmp_path.glob("data/*"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{last.name} cannot be read: .* Repair or remove it"):
        load_corpus(str(tmp_path), cache_dir=str(tmp_path / "cache"), streaming=True)


# ---- the order


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (20, 1), (20, 6), (20, 50)])
def test_a_buffer_yields_each_item_once_and_never_exceeds_its_size(count, size):
    order = buffered_order(count, size, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(count))
    assert all(place < position + size for position, place in enumerate(order.tolist()))
    assert (order.tolist() == list(range(count))) == (count < 2 or size == 1)


def test_an_epoch_has_every_clip_once_except_those_of_an_incomplete_batch(streamed_corpus):
    batches = shuffled(streamed_corpus)
    epochs = []
    for epoch in (0, 1, 0):
        batches.begin(epoch)
        epochs.append(files_of(batches))
        assert [len(batch) for batch in epochs[-1]] == [4] * 11 == [4] * len(batches)
        assert max(Counter(sum(epochs[-1], [])).values()) == 1
    assert epochs[0] == epochs[2] != epochs[1]
    assert files_of(shuffled(streamed_corpus, seed=4)) != epochs[0]


def test_skipped_batches_are_not_read_and_the_others_do_not_change(streamed_corpus, monkeypatch):
    batches = shuffled(streamed_corpus)
    batches.begin(2)
    whole = files_of(batches)
    requests, read = [], type(streamed_corpus.shards).read
    monkeypatch.setattr(
        type(streamed_corpus.shards), "read", lambda self, places: requests.append(places) or read(self, places)
    )
    batches.begin(2, skipped=9)
    assert files_of(batches) == [[]] * 9 + whole[9:]
    assert [len(places) for places in requests] == [8]
    assert files_of(batches) == whole  # in an epoch without skipped batches


def test_processes_divide_an_epoch(streamed_corpus):
    parts = [files_of(shuffled(streamed_corpus, num_processes=3, process_index=index)) for index in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert max(Counter(name for part in parts for batch in part for name in batch).values()) == 1
    tested = [StreamedBatches(streamed_corpus.clips, streamed_corpus.shards, 4, 3, index) for index in range(3)]
    turns = [name for turn in zip(*map(files_of, tested), strict=True) for batch in turn for name in batch]
    assert turns[:46] == streamed_corpus.files and len(turns) == 48 and {len(each) for each in tested} == {4}


def test_the_test_set_keeps_its_order(streamed_corpus):
    part = streamed_corpus.clips.select([40, 3, 4, 20, 41])
    assert files_of(StreamedBatches(part, streamed_corpus.shards, 2)) == [
        ["train40.wav", "train3.wav"], ["train4.wav", "train20.wav"], ["train41.wav"],
    ]  # fmt: skip


# ---- training


@pytest.mark.slow
def test_batches_do_not_depend_on_workers(streamed_corpus, tmp_path):
    epochs = [list(trainer_of(streamed_corpus, tmp_path, workers).get_train_dataloader()) for workers in (0, 2)]
    assert len(epochs[0]) == len(epochs[1]) == 5
    for one, other in zip(*epochs, strict=True):
        assert torch.equal(one["labels"], other["labels"]) and one["labels"].shape == (4, 2)
        assert all(torch.equal(one["images"][name], other["images"][name]) for name in one["images"])


@pytest.mark.slow
def test_a_resumed_run_ends_with_exactly_the_same_weights(streamed_corpus, tmp_path):
    settings = {**KEEPING, "save_steps": 4, "num_train_epochs": 3, "train": 14}  # three steps per epoch
    whole = trainer_of(streamed_corpus, tmp_path / "whole", **settings)
    whole.train()
    resumed = trainer_of(streamed_corpus, tmp_path / "resumed", workers=2, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert whole.state.global_step == resumed.state.global_step == 9
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.slow
def test_predictions_equal_those_with_a_loaded_corpus(streamed_corpus, streamed_shards, tmp_path):
    whole = load_corpus(str(streamed_shards), cache_dir=str(tmp_path))
    streamed, read = trainer_of(streamed_corpus, tmp_path), trainer_of(whole, tmp_path, streaming=False)
    for rows in (range(22, 31), [40, 3, 4, 20, 41]):
        outputs = [one.predict(each.clips.select(rows)) for one, each in ((streamed, streamed_corpus), (read, whole))]
        assert np.array_equal(outputs[0].predictions, outputs[1].predictions)
        assert outputs[0].label_ids.tolist() == outputs[1].label_ids.tolist()
    assert streamed.evaluate()["eval_loss"] == read.evaluate()["eval_loss"]


# ---- memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    peaks, seconds, buffer_size = [], 0.5, 20
    for clips in (100, 600):
        folder = write_shards(tmp_path / f"{clips}", clips, seconds=seconds)
        batches = shuffled(load_corpus(str(folder), cache_dir=str(tmp_path), streaming=True), buffer_size=buffer_size)
        tracemalloc.start()
        assert sum(len(batch) for batch in batches) == clips
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    clip = seconds * 16_000 * 2
    assert buffer_size * clip < peaks[0] < 2 * buffer_size * clip
    assert (peaks[1] - peaks[0]) / (600 - 100) < 0.02 * clip


# ---- the command


def test_options_that_do_not_work_with_streaming_are_refused(tmp_path, streamed_shards, caplog):
    def refuse(reason, *flags):
        with pytest.raises(ValueError, match=reason):
            parse_arguments(["--output_dir", str(tmp_path), *flags])

    refuse("--on_bad_audio skip needs", "--streaming", "--on_bad_audio", "skip")
    refuse("--waveform_copies needs cached spectrograms", "--streaming", "--waveform_copies", "2")
    refuse("--test_window needs cached spectrograms", "--streaming", "--test_window", "3")
    refuse("reads one corpus", "--streaming", "--dataset_name", "demo", "ravdess")
    refuse("reads one corpus", "--streaming", "--label_map", "default")
    refuse("--train_sampling_strategy has no effect", "--streaming", "--train_sampling_strategy", "sequential")
    refuse("--accelerator_config has no effect", "--streaming", "--accelerator_config", '{"split_batches": true}')
    refuse("--shuffle_buffer_size 0 does not work: .* at least 1", "--streaming", "--shuffle_buffer_size", "0")
    _, data_args, args = parse_arguments(["--output_dir", str(tmp_path), "--shuffle_buffer_size", "10"])
    assert data_args.shuffle_buffer_size == 1000 and "no effect without --streaming" in caplog.text
    cached = ["--cache_features", "true", "--feature_cache_gib", "3"]
    _, data_args, args = parse_arguments(["--output_dir", str(tmp_path), "--streaming", *cached])
    assert "--feature_cache_gib has no effect without --cache_features" in caplog.text
    assert not data_args.cache_features and args.dataloader_num_workers == 1


def test_data_without_shards_is_refused(tmp_path):
    (tmp_path / "tree" / "happy").mkdir(parents=True)
    (tmp_path / "tree" / "happy" / "a.wav").write_bytes(sound(1))
    with pytest.raises(DataError, match="has none: leave it out; --no_cache_features"):
        load_corpus(str(tmp_path / "tree"), streaming=True)
    Dataset.from_dict({"label": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="no column 'audio'"):
        load_corpus(str(tmp_path / "saved"), streaming=True)


def test_json_lines_are_loaded_as_a_list_but_not_streamed(tmp_path):
    rows = [{"audio": f"{i}.wav", "label": "ab"[i % 2]} for i in range(4)]
    for i, row in enumerate(rows):
        (tmp_path / row["audio"]).write_bytes(sound(i))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path))
    assert [Path(file).name for file in corpus.files] == [row["audio"] for row in rows]
    with pytest.raises(DataError, match="--streaming reads shards.*rows.jsonl has none"):
        load_corpus(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path), streaming=True)


@pytest.mark.slow
def test_the_command_streams_from_split_to_report(streamed_shards, tmp_path, capsys):
    flags = ["--dataset_name", streamed_shards, "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "out"]
    flags += [
        "--streaming",
        "--shuffle_buffer_size",
        "10",
        "--per_device_train_batch_size",
        "4",
        "--shuffle_training_labels",
    ]
    run(*flags)
    rows, metrics = read_predictions(tmp_path / "out"), json.loads((tmp_path / "out" / "metrics.json").read_text())
    parts = json.loads((tmp_path / "out" / "splits.json").read_text())["clips"]
    assert [row["file"] for row in rows] == [clip["file"] for clip in parts if clip["part"] == "test"]
    assert metrics["n_clips"] == len(rows) > 10 and metrics["data_arguments"]["streaming"]
    (table,) = tmp_path.glob("cache/**/*.arrow")
    assert FOLDER in table.parts and not list(tmp_path.glob("cache/maxmvit_spectrograms/**"))
    run(*flags)
    assert "holds a finished run" in capsys.readouterr().out
