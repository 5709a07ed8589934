"""SUBESCO, the SUST Bangla Emotional Speech Corpus (Sultana et al. 2021).

The tree (zenodo.org/records/4526477) is a folder of `F_01_OISHI_S_10_ANGRY_1.wav`: sex, number and name of the
speaker, sentence 10, angry, first take. sajid73/SUBESCO-audio-dataset has `label`, `speaker_id` and `speaker_gender`
(its card); sustcsenlp/bn_emotion_speech_corpus is a script, which `datasets` no longer runs. Numbers count women and
men separately. EmoBox's five folds (data/subesco) test whole speakers, but not all of them could be determined.
"""

import re
from pathlib import Path

from ser.data.corpora.readers import named_files
from ser.data.corpora.records import Record, Source

SUBESCO_NAME = re.compile(r"(?:^|/)([FM])_(\d\d)_[A-Z]+_S_\d+_([A-Z]+)_\d$")
SUBESCO_CODES = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprise": "surprise",
}
SEXES = {"F": "female", "M": "male"}


def _names(match: re.Match[str]) -> dict:
    return {"label": match[3], "speaker": f"{match[1]}_{match[2]}", "sex": SEXES[match[1]]}


def _row(row: dict) -> dict:
    letter = row["speaker_gender"].strip()[0].upper()
    facts = {"speaker": f"{letter}_{int(row['speaker_id']):02d}", "sex": SEXES.get(letter)}
    match = SUBESCO_NAME.search(Path(row["path"] or "").stem)
    return {"file": row["path"], **facts, **(_names(match) if match else {}), "label": row["label"]}


RECORD = Record(
    labels=tuple(SUBESCO_CODES.values()),
    aliases=SUBESCO_CODES | {name: name for name in SUBESCO_CODES.values()},
    hub={"sajid73/SUBESCO-audio-dataset": Source(_row, columns=("label", "speaker_id", "speaker_gender"))},
    tree=lambda folder: named_files(folder, SUBESCO_NAME, "a SUBESCO clip", _names),
    with_speaker="sajid73/SUBESCO-audio-dataset or a local folder of F_01_OISHI_S_10_ANGRY_1.wav names",
    speech="ten women and ten men act ten sentences in Bangla; labels are what they were asked to express",
    licence="CC BY 4.0",
    languages=("bn",),
    clips=7_000,
    speakers=20,
    citation="Sultana et al. (2021), SUST Bangla Emotional Speech Corpus (SUBESCO), PLoS ONE 16(4), e0250173",
)
