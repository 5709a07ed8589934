"""EMO-DB (Burkhardt et al. 2005)."""

import re
from collections.abc import Iterator
from pathlib import Path

from ser.corpora.readers import audio_files
from ser.corpora.records import Record, Source

EMODB_LETTERS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "N": "neutral",
    "T": "sadness",
}


EMODB_SPEAKERS = {
    (31, "male"): "03",
    (34, "female"): "08",
    (21, "female"): "09",
    (32, "male"): "10",
    (26, "male"): "11",
    (30, "male"): "12",
    (32, "female"): "13",
    (35, "female"): "14",
    (25, "male"): "15",
    (31, "female"): "16",
}


def _tree(folder: Path) -> Iterator[dict]:
    for audio in audio_files(folder):
        match = re.match(r"(\d\d)[ab]\d\d([A-Z])[a-z]?$", audio.stem)
        row = {"file": audio.relative_to(folder).as_posix(), "audio": audio, "key": audio.stem}
        if match and match[2] in EMODB_LETTERS:
            yield row | {"label": EMODB_LETTERS[match[2]], "speaker": match[1]}
        else:
            yield row | {"drop": "not named as an EMO-DB clip"}


def _row(row: dict) -> dict:
    speaker = None if row["age"] is None else EMODB_SPEAKERS.get((int(row["age"]), row["gender"]))
    return {"file": row["path"], "label": row["emotion"], "speaker": speaker}


RECORD = Record(
    labels=tuple(sorted(EMODB_LETTERS.values())),
    aliases={name: name for name in EMODB_LETTERS.values()},
    hub={"renumics/emodb": Source(_row, columns=("age", "gender", "emotion"))},
    tree=_tree,
    with_speaker="renumics/emodb or a local folder of 03a01Fa.wav names",
    speech="ten actors act ten sentences in German; labels are what they were asked to express",
    licence="terms of its own",
)
