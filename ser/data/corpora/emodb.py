"""EMO-DB (Burkhardt et al. 2005)."""

import re
from pathlib import Path

from ser.data.corpora.readers import named_files
from ser.data.corpora.records import Record, Source

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


EMODB_SEXES = {speaker: sex for (_, sex), speaker in EMODB_SPEAKERS.items()}
EMODB_NAME = re.compile(rf"(?:^|/)(\d\d)([ab]\d\d)([{''.join(EMODB_LETTERS)}])[a-z]?$")


def _names(match: re.Match[str]) -> dict:
    facts = {"label": EMODB_LETTERS[match[3]], "speaker": match[1], "sex": EMODB_SEXES.get(match[1])}
    return facts | {"sentence": match[2]}


def _row(row: dict) -> dict:
    speaker = None if row["age"] is None else EMODB_SPEAKERS.get((int(row["age"]), row["gender"]))
    match = EMODB_NAME.search(Path(row["path"] or "").stem)
    facts = {"file": row["path"], "label": row["emotion"], "speaker": speaker, "sex": row["gender"]}
    return facts | {"sentence": match[2] if match else None}


RECORD = Record(
    labels=tuple(sorted(EMODB_LETTERS.values())),
    aliases={name: name for name in EMODB_LETTERS.values()},
    hub={"renumics/emodb": Source(_row, columns=("age", "gender", "emotion"))},
    tree=lambda folder: named_files(folder, EMODB_NAME, "an EMO-DB clip", _names),
    with_speaker="renumics/emodb or a local folder of 03a01Fa.wav names",
    speech="ten actors act ten sentences in German; labels are what they were asked to express",
    licence="terms of its own",
    languages=("de",),
    clips=535,
    speakers=10,
    citation="Burkhardt et al. (2005), A Database of German Emotional Speech, Interspeech, 1517-1520",
)
