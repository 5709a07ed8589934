"""SAVEE, Surrey Audio-Visual Expressed Emotion (Haq and Jackson 2010).

The tree is `AudioData/DC/a01.wav` (kahlan.eps.surrey.ac.uk/savee, after registration) or, in Kaggle's archive,
`ALL/DC_a01.wav`: one of four men, then the letters of the emotion and the sentence. AbstractTTS/SAVEE has `file`
(which starts with the speaker) and `emotion`. The folds are EmoBox's (data/savee/fold_1 to fold_4), one speaker each.
"""

import re
from pathlib import Path

from ser.data.corpora.readers import named_files
from ser.data.corpora.records import Record, Source

SAVEE_NAME = re.compile(r"(?:^|/)(DC|JE|JK|KL)[/_](a|d|f|h|n|sa|su)\d\d$")
SAVEE_CODES = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "sa": "sadness",
    "su": "surprise",
    "n": "neutral",
}


def _names(match: re.Match[str]) -> dict:
    key = match[0].strip("/").replace("/", "_")
    return {"label": SAVEE_CODES[match[2]], "speaker": match[1], "sex": "male", "key": key}


def _row(row: dict) -> dict:
    speaker = re.match("DC|JE|JK|KL", Path(row["file"] or "").name)
    return {"file": row["file"], "label": row["emotion"], "speaker": speaker and speaker[0], "sex": "male"}


RECORD = Record(
    labels=tuple(SAVEE_CODES.values()),
    aliases={name: name for name in SAVEE_CODES.values()}
    | {"angry": "anger", "happy": "happiness", "sad": "sadness", "surprised": "surprise"},
    hub={"AbstractTTS/SAVEE": Source(_row, columns=("file", "emotion"))},
    tree=lambda folder: named_files(folder, SAVEE_NAME, "a SAVEE clip", _names),
    folds={"emobox": (("JE",), ("KL",), ("DC",), ("JK",))},
    with_speaker="AbstractTTS/SAVEE or a local AudioData",
    speech="four men say TIMIT sentences in British English; labels are what they were asked to express",
    licence="for research, after registration",
    languages=("en",),
    clips=480,
    speakers=4,
    citation="Haq and Jackson (2010), Multimodal Emotion Recognition, in Machine Audition, 398-423",
)
