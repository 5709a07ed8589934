"""Fuzz cases: damaged custom datasets and copies of known corpora."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from audio_maxmvit import AudioError
from ser.data.corpora import load_corpus
from ser.data.features import read_clip
from ser.utils import DataError
from tests.fuzz.kinds import Case, csv_of, refused
from tests.fuzz.mutations import audio_file, broken, valid_files
from tests.helpers.tiny import tiny_feature_extractor

AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# the values that each column should contain
COLUMNS = {
    "own": {"label": ["up", "down"], "speaker": ["anna", "ben"]},
    "AbstractTTS/IEMOCAP": {
        "file": ["Ses01F_impro01_F000.wav", "Ses02M_impro01_M001.wav"], "major_emotion": ["sad", "angry"],
        "angry": [0.0, 3.0], "sad": [2.0, 1.0],
    },
    "Zahra99/IEMOCAP_Audio": {"label": ["sad", "ang"]},
    "narad/ravdess": {"labels": ["sad", "calm"], "speaker_id": ["1", "2"]},
    "AbstractTTS/RAVDESS": {"file": ["03-01-01-01-01-01-01.wav", "x.wav"], "emotion": ["sad", "calm"]},
    "renumics/emodb": {"age": [31.0, 34.0], "gender": ["male", "female"], "emotion": ["anger", "fear"]},
}  # fmt: skip
LABELS = {  # the classes that occur in COLUMNS
    "AbstractTTS/IEMOCAP": ["sad", "angry"],
    "Zahra99/IEMOCAP_Audio": ["sad", "angry"],
    "narad/ravdess": ["sad", "calm"],
    "AbstractTTS/RAVDESS": ["sad", "calm"],
    "renumics/emodb": ["anger", "fear"],
}
OPTIONS = {
    "labels": (["up", "down"], ["sad"], ["up", "up"], [], ["nothing"], [""]),
    "merge_labels": (["up=down"], ["excited=happy"], ["="], ["a=b=c"], ["up"], [""], ["up=new"]),
    "unique_vote": (True,),
    "drop_duplicates": (True,),
    "label_column_name": ("label", "speaker", "audio", "file", "path", "split", "drop", "", "no such"),
    "speaker_column_name": ("speaker", "label", "audio", "", "no such"),
    "audio_column_name": ("audio", "label", "", "no such"),
    "test_split_name": ("test", "train", "", "no such"),
}


def make(rng: random.Random) -> Case:
    form = rng.choice(("folders", "csv", "tables", "tables", "jsonl"))
    files, options = (
        {},
        {name: rng.choice(OPTIONS[name]) for name in rng.sample(sorted(OPTIONS), rng.choice((0, 0, 0, 0, 1, 2)))},
    )
    name = "data"
    if form == "folders":
        for index in range(rng.randrange(6)):
            audio, content = audio_file(rng)
            folder = rng.choice(
                ("up", "down", "train/up", "test/down", "", "deep/er/up", "\u00fc", "a" * 200, "-x", "%")
            )
            files[f"data/{folder}/{index}{audio}"] = content
        files["data/up/note.txt"] = b"x"
    elif form == "csv":
        name = rng.choice(("data/list.csv", "data/list.tsv", "data"))
        rows = [
            ["file", "label", "speaker", "split"],
            ["a.wav", "up", "anna", "train"],
            ["b.wav", "down", "ben", "test"],
        ]
        content = csv_of(rows, rng)
        files[name if name != "data" else "data/metadata.csv"] = (
            broken(content, rng) if rng.random() < 0.7 else content
        )
        files |= {"data/a.wav": audio_file(rng)[1], "data/b.wav": valid_files()["wav-pcm_16-1"]}
    else:
        copy = rng.choice(list(COLUMNS))
        table = _table(COLUMNS[copy], rng)
        file = io.BytesIO()
        if form == "tables":
            pq.write_table(table, file)
        else:
            rows = table.drop_columns([name for name in ("audio",) if name in table.column_names]).to_pylist()
            file.write("".join(json.dumps(row, default=repr) + "\n" for row in rows).encode())
        content = file.getvalue()
        suffix = "parquet" if form == "tables" else "jsonl"
        split = rng.choice(("train", "session1", "ravdess_emo", "x"))
        files[f"data/data/{split}-00000-of-00001.{suffix}"] = broken(content, rng) if rng.random() < 0.3 else content
        if copy != "own":
            options = {"labels": LABELS[copy], **options, "data_dir": "data"}
            name = copy
    return Case("corpus", files, {"name": name, **options})


def _table(columns: dict[str, list], rng: random.Random) -> pa.Table:
    """Returns a table of audio and the columns, of which one sometimes has another type or gaps, or is missing."""
    audio = [{"bytes": audio_file(rng)[1], "path": f"{index}.wav"} for index in range(2)]
    values: dict[str, Any] = {"audio": pa.array(audio, AUDIO), **{name: pa.array(v) for name, v in columns.items()}}
    if rng.random() < 0.5:
        odd = (
            pa.array([None, None]), pa.array([1, None]), pa.array([1.5, float("nan")]), pa.array([True, False]),
            pa.array([[1], [2, 3]]), pa.array([{"a": 1}, None]), pa.array([b"\xff", b""]), pa.array(["", "\0"]),
            pa.array([2**62, -1]), pa.array(["x" * 100_000, "y"]), pa.array(["1", "2"]).dictionary_encode(),
            pa.array([None, {"bytes": None, "path": None}], AUDIO),
            pa.array([{"bytes": b"", "path": ""}, None], AUDIO),
            pa.array([{"bytes": None, "path": "/dev/zero"}, {"bytes": None, "path": "."}], AUDIO),
            pa.array(["no.wav", None]), pa.array([0, 0], pa.timestamp("s")),
        )  # fmt: skip
        values[rng.choice([*values, "audio", "extra"])] = rng.choice(odd)
    if rng.random() < 0.15:
        values.pop(rng.choice(list(values)))
    return pa.table(values) if values else pa.table({"nothing": [1]})


def run(case: Case, folder: Path) -> str:
    options = dict(case.options)
    name = options.pop("name")
    if name.startswith("data"):
        name = str(folder / name)
    if "data_dir" in options:
        options["data_dir"] = str(folder / options["data_dir"])
    try:
        corpus = load_corpus(name, **options, cache_dir=str(folder / "cache"))
        assert len(corpus) == len(corpus.contents) > 0
    except DataError as error:
        given = [value for option in options.values() for value in (option if isinstance(option, list) else [option])]
        classes = [f"class {part!r}" for value in given if isinstance(value, str) for part in value.split("=")]
        return refused(error, [str(folder), name, *options, *classes])
    ends = set()
    for clip in corpus.clips:
        try:
            assert len(read_clip(clip, tiny_feature_extractor()))
            ends.add("accepted")
        except AudioError as error:
            ends.add(refused(error, [clip["file"]]))
    return " and ".join(sorted(ends))
