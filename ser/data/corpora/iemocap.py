"""IEMOCAP (Busso et al. 2008).

The tree is `Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav`, and for each dialogue a file of notes,
`Session1/dialog/EmoEvaluation/Ses01F_impro01.txt`: for every turn a line with its name and the majority emotion
(`xxx`: none) and its mean valence, arousal and dominance, `[2.5, 3.0, 2.5]`, then a line for each evaluator with one
or more emotions, `C-E2:`, a tab, `Neutral; Sadness;`, a tab and a remark. `C-F1:` and `C-M1:` are the actors' own
evaluations, and are not counted. AbstractTTS/IEMOCAP has a column of votes for each emotion, Zahra99/IEMOCAP_Audio
only the four classes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ser.data.corpora.readers import visible_files
from ser.data.corpora.records import VOTES_TIE, Record, Source

IEMOCAP_VOTES = ("frustrated", "angry", "sad", "disgust", "excited", "fear", "neutral", "surprise", "happy")
WORDS = {
    **dict.fromkeys(("frustration", "frustrated"), "frustrated"),
    "anger": "angry",
    "sadness": "sad",
    "disgust": "disgust",
    "excited": "excited",
    "fear": "fear",
    **dict.fromkeys(("neutral", "neutral state"), "neutral"),
    "surprise": "surprise",
    "happiness": "happy",
}  # what evaluators could choose, except "other"
SEXES = {"F": "female", "M": "male"}
ZAHRA_SESSIONS = {f"session{k}": f"Ses0{k}" for k in range(1, 6)}


def _names(file: str) -> dict:
    """Returns session and speaker of `Ses01F_impro01_M000`: the letter in the first token is the speaker with the
    motion-capture markers, the one in the last token the speaker of the turn."""
    match = re.match(r"(Ses0\d)[FM]_.+_([FM])\w+$", Path(file).stem)
    return {"session": match[1], "speaker": match[1] + match[2], "sex": SEXES[match[2]]} if match else {}


def _zahra_row(row: dict) -> dict:
    session = ZAHRA_SESSIONS.get(row["split"])
    return {"file": row["path"], "label": row["label"], "session": session} | _names(row["path"] or "")


def _tree(folder: Path) -> Iterator[dict]:
    number = r"\s*([\d.]+)\s*"
    turn = re.compile(rf"^\[.+?\]\t(?P<utterance>\S+)\t(?P<emotion>\w+)\t(?:\[{number},{number},{number}\])?")
    evaluation = re.compile(r"^C-E\d+:\s*(?P<emotions>[^\t(]*)")
    for notes in visible_files(folder, "Session[1-5]/dialog/EmoEvaluation/*.txt"):
        rows: list[dict] = []
        for line in notes.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := turn.match(line):
                name, label = match["utterance"], match["emotion"]
                audio = notes.parents[2] / "sentences" / "wav" / notes.stem / f"{name}.wav"
                rows.append({"file": audio.name, "audio": audio, "label": label, **_names(name)})
                rows[-1] |= {"no_class": VOTES_TIE if label == "xxx" else None, "votes": [0] * len(IEMOCAP_VOTES)}
                valence, arousal, dominance = match.groups()[2:]
                rows[-1]["dimensions"] = {"arousal": arousal, "valence": valence, "dominance": dominance}
            elif rows and (match := evaluation.match(line)):
                for word in match["emotions"].split(";"):
                    if emotion := WORDS.get(word.strip().lower()):
                        rows[-1]["votes"][IEMOCAP_VOTES.index(emotion)] += 1
        yield from rows


RECORD = Record(
    labels=("neutral", "happy", "angry", "sad"),
    aliases={name: name for name in (*IEMOCAP_VOTES, "other")}
    | {"neu": "neutral", "hap": "happy", "exc": "excited", "ang": "angry", "fru": "frustrated"}
    | {"fea": "fear", "sur": "surprise", "dis": "disgust", "oth": "other"},
    hub={
        "AbstractTTS/IEMOCAP": Source(
            lambda row: {"file": row["file"], "label": row["major_emotion"], **_names(row["file"] or "")},
            columns=("file", "major_emotion"),
            votes=IEMOCAP_VOTES,
            dimensions={"arousal": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"},
        ),
        "Zahra99/IEMOCAP_Audio": Source(
            _zahra_row,
            columns=("label",),
            splits=tuple(ZAHRA_SESSIONS),
        ),
    },
    tree=_tree,
    votes=IEMOCAP_VOTES,
    dimensions=dict.fromkeys(("arousal", "valence", "dominance"), (1, 5)),
    # As in SUPERB (Yang et al. 2021), EmoBox and emotion2vec.
    folds={"sessions": tuple((session,) for session in ZAHRA_SESSIONS.values())},
    with_speaker="AbstractTTS/IEMOCAP or a local IEMOCAP_full_release",
    speech="ten actors in English dialogues, scripted and improvised; labels are what annotators heard",
    licence="to be signed with its authors",
    languages=("en",),
    clips=10_039,
    speakers=10,
    citation="Busso et al. (2008), Language Resources and Evaluation 42(4), 335-359",
)
