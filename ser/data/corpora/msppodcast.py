"""MSP-Podcast (Lotfian and Busso 2019), a local release.

The tree is `Labels/labels_consensus.csv` (FileName, EmoClass, EmoAct, EmoVal, EmoDom, SpkrID, Gender, Split_Set;
called `labels_concensus.csv` in old releases) beside `Audios/MSP-PODCAST_0001_0008.wav`. EmoClass is A, S, H, U, F, D,
C, N, O (other) or X (no agreement); Split_Set is Train, Development (old: Validation), Test1, Test2 or Test3, whose
labels are withheld. EmoAct, EmoVal and EmoDom are rated from 1 to 7. This follows the readers of nkululeko
(github.com/felixbur/nkululeko, data/msp-podcast) and ser-standardizer (github.com/ViniciusSuaiden/ser-standardizer).
Test1 is the test part here, and Test2 that of `msp-podcast-test2`; speakers may be "Unknown".
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ser.data.corpora.readers import visible_files
from ser.data.corpora.records import Record

MSP_CODES = {
    "A": "anger",
    "S": "sadness",
    "H": "happiness",
    "U": "surprise",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
    "O": "other",
}
DIMENSION_COLUMNS = {"arousal": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"}


def _tree(folder: Path, test: str = "Test1") -> Iterator[dict]:
    splits = {"Train": "train", "Development": "validation", "Validation": "validation", test: "test"}
    for table in visible_files(folder, "Labels/labels_con[sc]ensus.csv")[:1]:
        with open(table, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                part, emotion = row["Split_Set"].strip(), row["EmoClass"].strip()
                yield {
                    "file": row["FileName"],
                    "audio": folder / "Audios" / row["FileName"],
                    "label": MSP_CODES.get(emotion, emotion),
                    "speaker": None if row["SpkrID"].strip() in ("Unknown", "") else row["SpkrID"].strip(),
                    "sex": {"Female": "female", "Male": "male"}.get(row["Gender"].strip()),
                    "split": splits.get(part),
                    "drop": None if part in splits else f"in {part}, not {test}",
                    "no_class": "annotators do not agree (X)" if emotion == "X" else None,
                    "dimensions": {name: row.get(column) for name, column in DIMENSION_COLUMNS.items()},
                }


RECORD = Record(
    labels=tuple(MSP_CODES.values())[:8],
    aliases={name: name for name in MSP_CODES.values()},
    hub={},
    tree=_tree,
    dimensions=dict.fromkeys(DIMENSION_COLUMNS, (1, 7)),
    has_parts=True,
    with_speaker="a local release",
    speech="spontaneous English of podcasts; labels are what annotators heard",
    licence="to be signed with its authors",
    languages=("en",),
    citation="Lotfian and Busso (2019), IEEE Transactions on Affective Computing 10(4), 471-483",
)
TEST2 = replace(RECORD, tree=partial(_tree, test="Test2"))
