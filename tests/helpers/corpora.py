"""Writes small copies of real corpora in the format of the Hugging Face Hub."""

from ser.data.corpora.emodb import EMODB_SPEAKERS
from ser.data.corpora.ravdess import RAVDESS_EMOTIONS
from tests.helpers.clips import write_parquet


def write_iemocap(folder):
    names = [f"Ses0{k}{a}_impro01_{b}{i:03d}.wav" for k in range(1, 6) for a in "FM" for b in "FM" for i in range(4)]
    emotions = ["neutral", "happy", "angry", "sad"] * 20
    write_parquet(folder, "train", {"file": names, "major_emotion": emotions}, names)
    return "iemocap/sessions-fold1", 16


def write_ravdess(folder):
    columns = {"labels": list(range(8)) * 24, "speaker_id": [str(actor) for actor in range(1, 25) for _ in range(8)]}
    write_parquet(folder, "train", columns, [None] * 192, {"labels": list(RAVDESS_EMOTIONS)})
    return "ravdess/emobox-fold1", 32


def write_emodb(folder):
    people = [person for person in EMODB_SPEAKERS for _ in range(7)]
    columns = {
        "age": [float(age) for age, _ in people],
        "gender": [["female", "male"].index(gender) for _, gender in people],
        "emotion": list(range(7)) * 10,
    }
    emotions = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]
    write_parquet(folder, "train", columns, [None] * 70, {"gender": ["female", "male"], "emotion": emotions})
    return "emodb/loso-fold1", 7
