"""TESS, the Toronto emotional speech set (Dupuis and Pichora-Fuller 2010).

The tree (tspace.library.utoronto.ca/handle/1807/24487, and Kaggle's archive, which contains it twice) is a folder per
actress and emotion of `OAF_back_angry.wav`: the older (OAF) or younger (YAF) actress says "Say the word back"; "ps"
is pleasant surprise, and one file is spelt `OA_bite_neutral.wav`. AbstractTTS/TESS has `file` and `emotion` (as on the
card of windcrossroad/TESS, which is derived from it). EmoBox's one fold shares both actresses between training and
test, so it is not offered; `--protocol loso --validation_share 0` tests a speaker that is not trained on.
"""

import re
from pathlib import Path

from ser.data.corpora.readers import named_files
from ser.data.corpora.records import Record, Source

TESS_NAME = re.compile(r"(?:^|/)(OAF?|YAF)_\w+_(angry|disgust|fear|happy|neutral|ps|sad)$", re.IGNORECASE)
TESS_EMOTIONS = ("anger", "disgust", "fear", "happiness", "surprise", "sadness", "neutral")


def _names(match: re.Match[str]) -> dict:
    return {"label": match[2], "speaker": match[1][0].upper() + "AF", "sex": "female"}


def _row(row: dict) -> dict:
    match = TESS_NAME.search(Path(row["file"] or "").stem)
    return {"file": row["file"], "sex": "female", **(_names(match) if match else {}), "label": row["emotion"]}


RECORD = Record(
    labels=TESS_EMOTIONS,
    aliases={name: name for name in TESS_EMOTIONS}
    | {"angry": "anger", "happy": "happiness", "sad": "sadness"}
    | dict.fromkeys(("ps", "pleasant surprise", "pleasant_surprise", "surprised"), "surprise"),
    hub={"AbstractTTS/TESS": Source(_row, columns=("file", "emotion"))},
    tree=lambda folder: named_files(folder, TESS_NAME, "a TESS clip", _names),
    with_speaker="AbstractTTS/TESS or a local folder of OAF_back_angry.wav names",
    speech="two actresses say 200 words in Canadian English; labels are what they were asked to express",
    licence="CC BY-NC-ND 4.0",
    languages=("en",),
    clips=2_800,
    speakers=2,
    citation="Dupuis and Pichora-Fuller (2010), Toronto emotional speech set (TESS), University of Toronto",
)
