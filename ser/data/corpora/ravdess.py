"""RAVDESS, the speech clips (Livingstone and Russo 2018)."""

import re
from collections.abc import Sequence
from pathlib import Path

from ser.data.corpora.readers import named_files
from ser.data.corpora.records import Record, Source

RAVDESS_NAME = re.compile(
    r"(?:^|/)\d\d-(?P<channel>\d\d)-0(?P<emotion>[1-8])-(?P<intensity>\d\d)-(?P<statement>\d\d)-\d\d-(?P<actor>\d\d)$"
)
RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")


def _row(file: str | None, emotion: str) -> dict:
    match = RAVDESS_NAME.search(Path(file or "").stem)
    return {"file": file, "label": emotion, **_actor(match["actor"] if match else None), **_manner(file)}


def _actor(number: str | None) -> dict:
    """Returns the speaker and the sex: odd actors are men, even actors women."""
    if number is None:
        return {"speaker": None}
    return {"speaker": f"{int(number):02d}", "sex": "male" if int(number) % 2 else "female"}


def _manner(file: str | None) -> dict:
    """Returns the code of the sentence (01 is "Kids are talking by the door", 02 "Dogs are sitting by the door") and
    the intensity: 1 for normal, as in all neutral clips, 2 for strong."""
    match = RAVDESS_NAME.search(Path(file or "").stem)
    return {"sentence": match["statement"], "dimensions": {"intensity": match["intensity"]}} if match else {}


def _names(match: re.Match[str]) -> dict:
    song = {"drop": "song, not speech"} if match["channel"] != "01" else {}
    label = RAVDESS_EMOTIONS[int(match["emotion"]) - 1]
    return {"label": label, **_manner(match.string), **_actor(match["actor"]), **song}


def _actors(*folds: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{actor:02d}" for actor in fold) for fold in folds)


RECORD = Record(
    labels=RAVDESS_EMOTIONS,
    aliases={name: name for name in RAVDESS_EMOTIONS} | {"fearful": "fear", "surprised": "surprise"},
    hub={
        "narad/ravdess": Source(
            lambda row: (
                {"label": row["labels"], **_actor(row["speaker_id"]), **_manner(row["path"])} | {"file": row["path"]}
            ),
            columns=("labels", "speaker_id"),
            revision="refs/convert/parquet",
        ),
        "AbstractTTS/RAVDESS": Source(
            lambda row: _row(row["file"], row["emotion"]),
            columns=("file", "emotion"),
        ),
        "TwinkStart/RAVDESS": Source(
            lambda row: _row(row["path"], row["emotion"]),
            columns=("emotion",),
            splits=("ravdess_emo",),
        ),
    },
    tree=lambda folder: named_files(folder, RAVDESS_NAME, "a RAVDESS clip", _names),
    dimensions={"intensity": (1, 2)},
    # EmoBox: Ma et al. (2024), "EmoBox: Multilingual Multi-corpus Speech Emotion Recognition Toolkit and Benchmark".
    # Luna-Jimenez et al. (2021), "Multimodal Emotion Recognition on RAVDESS Dataset Using Transfer Learning", which
    # counts its folds from 0.
    folds={
        "emobox": _actors(
            (1, 11, 20, 21), (4, 10, 12, 14), (8, 9, 19, 23), (3, 5, 7, 24), (2, 15, 16, 18), (6, 13, 17, 22)
        ),
        "luna-jimenez": _actors(
            (2, 5, 14, 15, 16), (3, 6, 7, 13, 18), (10, 11, 12, 19, 20), (8, 17, 21, 23, 24), (1, 4, 9, 22)
        ),
    },
    with_speaker="narad/ravdess or a local folder of Actor_NN",
    speech="24 actors act two sentences in North American English; labels are what they were asked to express",
    licence="CC BY-NC-SA 4.0",
    languages=("en",),
    clips=1_440,
    speakers=24,
    citation="Livingstone and Russo (2018), PLoS ONE 13(5), e0196391",
)
