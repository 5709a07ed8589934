"""Fuzz cases: lists of recordings in many dialects, some damaged, refused or read as the undamaged list."""

import csv
import io
import json
import random
from pathlib import Path

from ser.data.corpora import load_corpus
from ser.inference.predictions import find_items
from ser.inference.references import read_segments
from ser.utils import DataError, UsageError
from tests.fuzz.kinds import Case, refused
from tests.fuzz.mutations import valid_files

LABELS = ["angry, or cross", "happy"]
CLIPS = [
    {"file": "a.wav", "label": "happy", "speaker": "anna", "split": "train"},
    {"file": "deep/b\u2028c.wav", "label": "angry, or cross", "speaker": 'ben; son of "X"', "split": "test"},
    {"file": "d\x85.wav", "label": "happy", "speaker": "", "split": "dev"},
    {"file": "e\rf.wav", "label": "angry, or cross", "speaker": "1\t2", "split": "train"},
]
SEGMENTS = [
    {"file": name, "start": start, "end": end, "label": label}
    for name in ("a.wav", "e\rf.wav")
    for start, end, label in (("0", "1.5", "happy"), ("2", "3e0", "angry, or cross"))
]
DAMAGES = (
    *("none", "none", "a cell more", "a cell less", "two columns of one name", "an open quote", "a name lost"),
    *("a column lost", "not UTF-8", "a list for a cell", "other separator below", "no header"),
)


def make(rng: random.Random) -> Case:
    use = rng.choice(("corpus", "items", "segments"))
    rows = [dict(row) for row in (SEGMENTS if use == "segments" else CLIPS)]
    columns = list(rows[0])
    rng.shuffle(columns)
    spelt = {name: _spelt(name, rng) for name in columns}
    if rng.random() < 0.3:
        spelt["file"] = _spelt("file_name", rng)
    damage, suffix = rng.choice(DAMAGES), rng.choice((".csv", ".csv", ".tsv", ".CSV", ".jsonl"))
    if suffix == ".jsonl":
        content = _json_lines(rows, columns, spelt, damage, rng)
    else:
        content = _csv(rows, columns, spelt, damage, rng)
    sound = list(valid_files().values())
    files = {f"data/{row['file']}": sound[index] for index, row in enumerate(CLIPS)}
    return Case("tables", {f"data/list{suffix}": content, **files}, {"use": use, "list": f"data/list{suffix}"})


def _spelt(name: str, rng: random.Random) -> str:
    return rng.choice(("", " ", "\t ")) + rng.choice((str, str.upper, str.title))(name) + rng.choice(("", " "))


def _csv(rows: list[dict], columns: list[str], spelt: dict, damage: str, rng: random.Random) -> bytes:
    mark = rng.choice(",;\t")
    lines = [[spelt[name] for name in columns], *([row[name] for name in columns] for row in rows)]
    if rng.random() < 0.3:  # the index that pandas writes
        lines = [["" if index == 0 else str(index), *line] for index, line in enumerate(lines)]
    victim = rng.choice(lines[1:])
    if damage == "a cell more":
        victim.insert(rng.randrange(len(victim) + 1), rng.choice(("", "x")))
    elif damage == "a cell less":
        victim.pop(rng.randrange(len(victim)))
    elif damage == "two columns of one name":
        for line, cell in zip(lines, (_spelt("label", rng), *["sad"] * len(rows)), strict=True):
            line.insert(rng.randrange(2), cell)
    elif damage == "a name lost":
        lines[0].pop(rng.randrange(len(lines[0])))
    elif damage == "no header":
        lines = lines[1:]
    elif damage == "a column lost":
        lost = next(index for index, name in enumerate(lines[0]) if name.strip().lower() in ("file", "file_name"))
        lines = [line[:lost] + line[lost + 1 :] for line in lines]
    file = io.StringIO()
    end = rng.choice(("\n", "\r\n"))
    style = rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
    for index, line in enumerate(lines):
        other = next(each for each in ",;\t" if each != mark)
        odd = damage == "other separator below" and line is victim
        own = io.StringIO()
        # with "\r\n", every version of Python quotes a name with either character
        csv.writer(own, delimiter=other if odd else mark, lineterminator="\r\n", quoting=style).writerow(line)
        file.write(own.getvalue().removesuffix("\r\n") + (rng.choice(("", end)) if index == 2 else "") + end)
    text = file.getvalue()
    if damage == "an open quote":
        head, _, rest = text.partition(end)
        text = f'{head}{end}"{rest}' if rest[0] != '"' else f"{head}{end}{rest[1:]}"
    content = text.encode("utf-8-sig" if rng.random() < 0.3 else "utf-8")
    return content + b"\xff" if damage == "not UTF-8" else content


def _json_lines(rows: list[dict], columns: list[str], spelt: dict, damage: str, rng: random.Random) -> bytes:
    victim = rng.choice(rows)
    lines = []
    for row in rows:
        pairs = [(spelt[name], row[name] or rng.choice(("", None))) for name in columns]
        text = json.dumps(dict(pairs), ensure_ascii=rng.random() < 0.5)
        if row is victim and damage == "two columns of one name":
            text = text[:-1] + ', "LABEL": "sad"}'
        elif row is victim and damage == "an open quote":
            text = text[:-2]
        elif row is victim and damage == "a list for a cell":
            text = json.dumps({**dict(pairs), spelt["label"]: [row["label"]]})
        elif row is victim and damage in ("a name lost", "no header"):
            text = json.dumps(list(row.values()))
        elif damage == "a column lost":
            text = json.dumps({name: value for name, value in pairs if name != spelt["file"]})
        lines.append(text + rng.choice(("", " ", "\r")) + "\n")
    return "".join(lines).encode() + (b"\xff" if damage == "not UTF-8" else b"")


def run(case: Case, folder: Path) -> str:
    path = folder / case.options["list"]
    try:
        found = _read(case.options["use"], path)
    except (DataError, UsageError) as error:
        return refused(error, [str(path)])
    assert found == _expected(case.options["use"], path.parent), f"another result: {found}"
    return "accepted"


def _read(use: str, path: Path) -> list[tuple]:
    if use == "items":
        return [(item.file, item.label) for item in find_items([str(path)], LABELS)]
    if use == "segments":
        found = read_segments(path)
        return [(file, each.start, each.end, each.label) for file, segments in found.items() for each in segments]
    clips = load_corpus(str(path), cache_dir=str(path.parent / "cache")).clips
    return [
        (clip["file"], LABELS[clip["label"]], clip["speaker"], clip["split"])
        for clip in clips.select_columns(["file", "label", "speaker", "split"])
    ]


def _expected(use: str, base: Path) -> list[tuple]:
    if use == "items":
        return [(str(base / row["file"]), row["label"]) for row in CLIPS]
    if use == "segments":
        return [(row["file"], float(row["start"]), float(row["end"]), row["label"]) for row in SEGMENTS]
    parts = {"dev": "validation"}
    return [
        (row["file"], row["label"], row["speaker"] or None, parts.get(row["split"], row["split"])) for row in CLIPS
    ]
