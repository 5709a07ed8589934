"""Registry of the known corpora, and the table of them that --list_corpora prints."""

from ser.data.corpora import (
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
from ser.data.corpora.records import Record

# ---- Known corpora ----

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


# ---- The table of known corpora ----

HEADER = ("name", "clips", "classes", "speakers", "languages", "licence", "published protocols", "sources")
TREE = "a local folder"
FOOTNOTE = (
    "Every corpus has the protocols random and everything, speaker and loso if the source states the speakers, and\n"
    "sentence if it also states the text. Clips are counted in the whole corpus, before classes are chosen;\n"
    "- means that the number depends on the release."
)


def list_corpora() -> str:
    """Returns the table of corpora: name, clips, classes, speakers, languages, licence, protocols and sources."""
    rows = [HEADER, *(_row(name, record) for name, record in RECORDS.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    right = {HEADER.index(name) for name in ("clips", "classes", "speakers")}
    rows.insert(1, tuple("-" * width for width in widths))
    align = [str.rjust if column in right else str.ljust for column in range(len(HEADER))]
    lines = ["  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)) for row in rows]
    return "\n".join([*(line.rstrip() for line in lines), "", FOOTNOTE])


def _row(name: str, record: Record) -> tuple[str, ...]:
    protocols = [f"{folds} ({len(groups)})" for folds, groups in record.folds.items()]
    return (
        name,
        f"{record.clips:,}" if record.clips else "-",
        str(len(record.labels)),
        f"{record.speakers:,}" if record.speakers else "-",
        ", ".join(record.languages) or "-",
        record.licence,
        ", ".join([*(["predefined"] if record.has_parts else []), *protocols]) or "-",
        ", ".join(["synthesised" if name == "demo" else TREE, *record.hub]),
    )
