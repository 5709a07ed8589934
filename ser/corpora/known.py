"""All corpora that are known by name."""

from ser.corpora import (
    asvpesd,
    cremad,
    demo,
    emodb,
    esd,
    iemocap,
    meld,
    msppodcast,
    ravdess,
    savee,
    subesco,
    tess,
)
from ser.corpora.records import Record

RECORDS: dict[str, Record] = {
    "iemocap": iemocap.RECORD,
    "ravdess": ravdess.RECORD,
    "emodb": emodb.RECORD,
    "cremad": cremad.INTENDED,
    "cremad-perceived": cremad.PERCEIVED,
    "tess": tess.RECORD,
    "savee": savee.RECORD,
    "meld": meld.RECORD,
    "esd": esd.RECORD,
    "esd-english": esd.ENGLISH,
    "asvpesd": asvpesd.RECORD,
    "msp-podcast": msppodcast.RECORD,
    "msp-podcast-test2": msppodcast.TEST2,
    "subesco": subesco.RECORD,
    "demo": demo.RECORD,
}
