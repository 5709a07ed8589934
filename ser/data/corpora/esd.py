"""ESD, the Emotional Speech Dataset (Zhou et al. 2021): the whole corpus, and its English part.

The tree (hltsingapore.github.io/ESD) is `0011/Angry/0011_000351.wav`. An older archive has one more level of folders,
its published parts, which share the speakers: `0011/Angry/train/0011_000351.wav`, or `evaluation`, or `test`.
Speakers 0001 to 0010 speak Mandarin, 0011 to 0020 English. AbstractTTS/ESD_english has `file`, `emotion`, `gender` and
`transcription`; the speaker is only in the name of the file (according to public readers of it; its card could not be
read). The licence is stated on the page of the data (github.com/HLTSingapore/Emotional-Speech-Data): for research, to
be filled in and sent to the authors. EmoBox's five folds were not found in a form that lists all their speakers, so
`--protocol speaker` makes its own folds. Public lists disagree on the sex of the speakers: it is read from the copy on
the Hub, and left out for the tree.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ser.data.corpora.readers import named_files
from ser.data.corpora.records import Record, Source

ESD_EMOTIONS = ("neutral", "angry", "happy", "sad", "surprise")
ESD_NAME = re.compile(
    r"(?:^|/)(neutral|angry|happy|sad|surprise)/(?:(train|evaluation|test)/)?(\d{4})_\d{6}$", re.IGNORECASE
)
ESD_PARTS = {"train": "train", "evaluation": "validation", "test": "test"}
LAST_MANDARIN = "0010"


def _names(match: re.Match[str]) -> dict:
    language = "zh" if match[3] <= LAST_MANDARIN else "en"
    split = ESD_PARTS[match[2].lower()] if match[2] else None
    return {"label": match[1], "speaker": match[3], "language": language, "split": split}


def _tree(folder: Path) -> Iterator[dict]:
    return named_files(folder, ESD_NAME, "an ESD clip", _names)


def _english(folder: Path) -> Iterator[dict]:
    for row in _tree(folder):
        yield row | ({"drop": "Mandarin"} if row.get("language") == "zh" else {})


def _row(row: dict) -> dict:
    speaker = re.match(r"\d{4}", Path(row["file"] or "").name)
    sex = str(row["gender"]).lower()
    facts = {"sex": sex} if sex in ("female", "male") else {}
    return {"file": row["file"], "label": row["emotion"], "speaker": speaker and speaker[0], **facts}


RECORD = Record(
    labels=ESD_EMOTIONS,
    aliases={name: name for name in ESD_EMOTIONS} | {"surprised": "surprise"},
    hub={},
    tree=_tree,
    with_speaker="a local folder of 0001 to 0020",
    speech="ten speakers of Mandarin and ten of English read sentences; labels are what they were asked to express",
    licence="for research, to be signed",
    languages=("zh", "en"),
    clips=35_000,
    speakers=20,
    citation="Zhou et al. (2021), Seen and Unseen Emotional Style Transfer for Voice Conversion, ICASSP, 920-924",
)
ENGLISH = replace(
    RECORD,
    hub={"AbstractTTS/ESD_english": Source(_row, columns=("file", "emotion", "gender"))},
    tree=_english,
    with_speaker="AbstractTTS/ESD_english or a local folder of 0011 to 0020",
    speech="ten speakers of English read sentences; labels are what they were asked to express",
    languages=("en",),
    clips=17_500,
    speakers=10,
)
