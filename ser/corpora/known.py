"""All corpora that are known by name."""

from ser.corpora import demo, emodb, iemocap, ravdess
from ser.corpora.records import Record

RECORDS: dict[str, Record] = {
    "iemocap": iemocap.RECORD,
    "ravdess": ravdess.RECORD,
    "emodb": emodb.RECORD,
    "demo": demo.RECORD,
}
