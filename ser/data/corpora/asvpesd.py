"""ASVP-ESD (Landry, He and Wei 2020), the clips that are speech.

The tree (zenodo.org/records/7132783) is `ASVP-ESD-Update/Audio/actor_12/03-01-06-01-02-12-02-01-01-16.wav`: modality,
vocal channel (01 speech, 02 other sounds, which are left out and counted), emotion, intensity, number, actor, age,
source, language. Odd actors are women, even actors men (zenodo.org/records/3782416). Public readers (nkululeko,
data/asvp-esd; EmoBox, data/asvpesd/label_map.json) agree on the emotions but not on the numbers of the languages, so
the language of a clip is left out. Emotions 09 to 13 are excited, pleasure, pain, disappointment and breath, mostly
sounds other than speech; `--labels` includes them. EmoBox's one fold was found without its speakers.
"""

import re

from ser.data.corpora.readers import named_files
from ser.data.corpora.records import Record

ASVP_NAME = re.compile(r"(?:^|/)\d\d-(\d\d)-(\d\d)-\d\d-\d+-(\d+)(?:-\d+)*$")
ASVP_EMOTIONS = (
    *("boredom", "neutral", "happy", "sad", "angry", "fear", "disgust", "surprise"),
    *("excited", "pleasure", "pain", "disappointment", "breath"),
)


def _names(match: re.Match[str]) -> dict:
    number, speaker = int(match[2]), f"{int(match[3]):03d}"
    row = {
        "label": ASVP_EMOTIONS[number - 1] if 1 <= number <= len(ASVP_EMOTIONS) else f"emotion {match[2]}",
        "speaker": speaker,
        "sex": "female" if int(speaker) % 2 else "male",
    }
    return row if match[1] == "01" else row | {"drop": "no speech"}


RECORD = Record(
    labels=ASVP_EMOTIONS[:8],
    aliases={name: name for name in ASVP_EMOTIONS},
    hub={},
    tree=lambda folder: named_files(folder, ASVP_NAME, "an ASVP-ESD clip", _names),
    with_speaker="a local ASVP-ESD-Update",
    speech="voices of films, television and the web in several languages; labels are what annotators heard",
    licence="as zenodo.org/records/7132783 says",
    languages=("zh", "en", "fr", "ru"),
    clips=13_964,
    speakers=131,
    citation="Landry et al. (2020), ASVP-ESD: A dataset and its benchmark for emotion recognition using both speech "
    "and non-speech utterances",
)
