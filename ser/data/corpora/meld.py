"""MELD (Poria et al. 2019): dialogues of the series Friends.

The tree is `MELD.Raw` (github.com/declare-lab/MELD, its archives unpacked in place): `train_sent_emo.csv`,
`dev_sent_emo.csv` and `test_sent_emo.csv` (Utterance, Speaker, Emotion, Dialogue_ID, Utterance_ID and others), in the
folder or beside their films `train/train_splits/dia0_utt0.mp4`, `dev/dev_splits_complete/...` and
`test/output_repeated_splits_test/...`. Films are not read: each needs a sound file (wav, flac, ...) of the same name
beside it. A few utterances have no readable film, such as dia125_utt3 of train. TwinkStart/MELD contains only the test
part, with the columns of the CSV. Speakers are characters of the series; the main ones are in all three parts.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from ser.data.corpora.readers import audio_files, visible_files
from ser.data.corpora.records import Record, Source

MELD_PARTS = {
    "train": ("train", "train_splits"),
    "dev": ("validation", "dev_splits_complete"),
    "test": ("test", "output_repeated_splits_test"),
}
MELD_EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
FILMS = {".mp4", ".mkv", ".mov", ".webm"}
NO_SOUND = "no sound file of this utterance (such as dia0_utt0.wav, extracted from its film by ffmpeg)"


def _tree(folder: Path) -> Iterator[dict]:
    sounds = {(path.parent.name, path.stem): path for path in audio_files(folder) if path.suffix not in FILMS}
    for name, (split, films) in MELD_PARTS.items():
        for table in visible_files(folder, f"**/{name}_sent_emo.csv")[:1]:
            with open(table, newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    stem = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
                    sound = sounds.get((films, stem))
                    facts = {
                        "file": f"{name}/{stem}",
                        "label": row["Emotion"],
                        "speaker": row["Speaker"],
                        "split": split,
                    }
                    yield facts | ({"audio": sound} if sound else {"audio": folder, "drop": NO_SOUND})


def _row(row: dict) -> dict:
    file = f"test/dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
    return {"file": file, "label": row["Emotion"], "speaker": row["Speaker"], "split": "test"}


RECORD = Record(
    labels=MELD_EMOTIONS,
    aliases={name: name for name in MELD_EMOTIONS},
    hub={"TwinkStart/MELD": Source(_row, columns=("Emotion", "Speaker", "Dialogue_ID", "Utterance_ID"))},
    tree=_tree,
    has_parts=True,
    with_speaker="a local MELD.Raw",
    speech="actors of a television comedy in English, with its laughter; labels are what annotators saw and heard",
    licence="GPL-3.0",
    languages=("en",),
    clips=13_708,
    speakers=304,
    citation="Poria et al. (2019), MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations",
)
