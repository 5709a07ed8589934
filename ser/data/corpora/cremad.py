"""CREMA-D (Cao et al. 2014), as two corpora: with the emotions that actors intended, and with those that listeners
perceived. The same predictions have different scores on the two.

The tree is github.com/CheyneyComputerScience/CREMA-D, with git-lfs: `AudioWAV/1001_DFA_ANG_XX.wav` is actor 1001,
sentence DFA, angry, at no stated intensity (its README). `VideoDemographics.csv` (ActorID, Age, Sex, Race, Ethnicity)
has the sex. `processedResults/tabulatedVotes.csv` counts votes in the columns A, D, F, H, N, S of a `fileName`; its
first column is 100000 * queryType + clip, and queryType 1 is the voice alone (tabulateVotesV2.r). AbstractTTS/CREMA-D
has `file`, `gender`, `major_emotion` and six columns of votes (its card, which does not state their queryType).
The split by speakers is that of TensorFlow Datasets 4.9 (tensorflow_datasets/audio/crema_d.py: the sorted actors are
shuffled by RandomState(0) and cut at 70 and 80 %), whose catalogue has the same sizes, 1,556 and 738 clips. EmoBox's
fold shares its actors between training and test.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ser.data.corpora.readers import audio_files, named_files
from ser.data.corpora.records import VOTES_TIE, Record, Source
from ser.utils import DataError

CREMAD_NAME = re.compile(r"(?:^|/)(\d{4})_([A-Z]{3})_([A-Z]{3})_[A-Z]{2}$")
CREMAD_CODES = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
TFDS_TEST = (
    *("1010", "1013", "1022", "1026", "1037", "1038", "1040", "1045", "1047", "1048"),
    *("1059", "1065", "1066", "1068", "1071", "1073", "1084", "1086", "1088"),
)
TFDS_VALIDATION = ("1015", "1020", "1021", "1030", "1050", "1070", "1079", "1089", "1090")
HUB_VOTES = ("angry", "disgust", "fear", "happy", "neutral", "sad")


def _beside(folder: Path, name: str) -> list[dict[str, str]]:
    """Returns the rows of a table in the tree, of which `folder` may be a part."""
    found = next((path for place in (folder, folder.parent) if (path := place / name).is_file()), None)
    if found is None:
        return []
    with open(found, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _intended(folder: Path) -> Iterator[dict]:
    sexes = {row["ActorID"]: row["Sex"].strip().lower() for row in _beside(folder, "VideoDemographics.csv")}
    return named_files(folder, CREMAD_NAME, "a CREMA-D clip", lambda name: {**_facts(name), "sex": sexes.get(name[1])})


def _facts(name: re.Match[str]) -> dict:
    return {"label": CREMAD_CODES.get(name[3], name[3]), "speaker": name[1], "sentence": name[2]}


def _perceived_emotion(votes: Sequence[float]) -> dict:
    """Returns the emotion with the most votes of listeners as the label."""
    if votes.count(max(votes)) > 1:
        return {"no_class": VOTES_TIE, "votes": votes}
    return {"label": tuple(CREMAD_CODES.values())[votes.index(max(votes))], "votes": votes}


def _perceived(folder: Path) -> Iterator[dict]:
    table = _beside(folder, "processedResults/tabulatedVotes.csv")
    votes = {row["fileName"]: [int(row[letter]) for letter in "ADFHNS"] for row in table if row[""].startswith("1")}
    if not votes and audio_files(folder):
        raise DataError(
            f"{folder} and the folder above it have no processedResults/tabulatedVotes.csv with the votes of "
            "listeners: give the whole of CREMA-D with --data_dir, or train on the intended emotions with "
            "--dataset_name cremad."
        )
    for row in _intended(folder):
        perceived = _perceived_emotion(votes[row["key"]]) if row["key"] in votes else {"drop": "no votes"}
        yield row if row.get("drop") else row | perceived


def _hub_names(row: Mapping) -> dict:
    name = CREMAD_NAME.search(Path(row["file"] or "").stem)
    facts = _facts(name) if name else {"label": None}
    return {"file": row["file"], "sex": str(row["gender"]).lower(), **facts}


INTENDED = Record(
    labels=tuple(CREMAD_CODES.values()),
    aliases={name: name for name in CREMAD_CODES.values()},
    hub={"AbstractTTS/CREMA-D": Source(_hub_names, columns=("file", "gender"))},
    tree=_intended,
    folds={"tfds": (TFDS_TEST,)},
    validated={"tfds": (TFDS_VALIDATION,)},
    with_speaker="AbstractTTS/CREMA-D or a local folder of 1001_DFA_ANG_XX.wav names",
    speech="91 actors say twelve sentences in English; labels are what they were asked to express",
    licence="ODbL 1.0",
    languages=("en",),
    clips=7_442,
    speakers=91,
    citation="Cao et al. (2014), IEEE Transactions on Affective Computing 5(4), 377-390",
)
PERCEIVED = replace(
    INTENDED,
    hub={
        "AbstractTTS/CREMA-D": Source(
            lambda row: _hub_names(row) | _perceived_emotion([row[name] for name in HUB_VOTES]),
            columns=("file", "gender", *HUB_VOTES),
            votes=HUB_VOTES,
        )
    },
    tree=_perceived,
    votes=tuple(CREMAD_CODES.values()),
    speech="91 actors say twelve sentences in English; labels are what most listeners heard in the voice alone",
)
