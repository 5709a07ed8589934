"""Reads tables of recordings: CSV and TSV (comma, semicolon or tab between the cells) and JSON Lines."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from pipeline_maxmvit import SILENCE, TOO_SHORT, UNCERTAIN, UNFAMILIAR
from ser.utils import DataError

LIST_SUFFIXES = {".csv", ".tsv", ".jsonl"}
FILE_COLUMNS = ("file", "file_name", "audio")  # the last two are the names in `datasets`
# Columns of tables of predictions, and predictions that are not a class; no class may have one of these names.
RESERVED = {
    *("file", "label", "speaker", "prediction", "start", "end", "windows", "familiarity"),
    *("segment", "rows", "text", "only"),
    *(SILENCE, TOO_SHORT, UNCERTAIN, UNFAMILIAR),
}
MISSING = {"", "nan", "<na>"}  # cells without a value, as written by spreadsheets, numpy and pandas


@dataclass
class ListedRows:
    """The rows of a table with the requested columns.

    Args:
        path: the file.
        names: all columns of the file, in its spelling.
        columns: the requested columns that the file has.
        rows: (line in the file, column -> text) for each row that is not blank.
    """

    path: Path
    names: list[str]
    columns: set[str]
    rows: list[tuple[int, dict[str, str]]]

    def require(self, *columns: str) -> None:
        """Raises `DataError` if the table lacks one of the columns."""
        if missing := [column for column in columns if column not in self.columns]:
            raise DataError(
                f"{self.path} has no column {', '.join(map(repr, missing))}; it has {', '.join(self.names) or 'none'}."
            )

    def file_column(self) -> str:
        """Returns the column with the names of the recordings, one of `FILE_COLUMNS`."""
        found = next((name for name in FILE_COLUMNS if name in self.columns), None)
        self.require(found or FILE_COLUMNS[0])
        return found or FILE_COLUMNS[0]


def is_list(path: Path) -> bool:
    """Returns whether a file is a table of recordings, judged by its name."""
    return path.suffix.lower() in LIST_SUFFIXES


def text_of(value: Any) -> str | None:
    """Returns a cell's text without surrounding spaces, "" if it is missing; None if it is not text or a number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # integers become floats if other cells of the column are missing
    text = str(value).strip(" \t") if isinstance(value, str | Real) else None
    return "" if text is not None and text.casefold() in MISSING else text


def read_list(path: Path, columns: Sequence[str]) -> ListedRows:
    """Reads a table. Column names are matched without regard to case and surrounding spaces.

    Args:
        path: a .csv, .tsv or .jsonl file, UTF-8. The first line of a CSV or TSV names the columns; each line of a
            .jsonl file is an object. Blank lines and columns without a name are left out.
        columns: columns to read.

    Raises:
        DataError: the file cannot be read, a row has more or fewer cells than there are columns, a column occurs
            twice, or a cell is neither text nor a number; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    wanted = {_folded(column): column for column in columns}
    if path.suffix.lower() == ".jsonl":
        return _from_json_lines(path, text, wanted)
    return _from_csv(path, text, wanted)


def _folded(name: str) -> str:
    return name.strip().casefold()


def _chosen(names: Iterable[str], wanted: dict[str, str], where: str) -> dict[str, str]:
    """Returns the wanted columns that a table has: column -> its name there."""
    found: dict[str, str] = {}
    for name in names:
        column = wanted.get(_folded(name))
        if column in found:
            raise DataError(f"{where} has the column {column!r} twice ({found[column]!r} and {name!r}): rename one.")
        if column is not None:
            found[column] = name
    return found


def _from_csv(path: Path, text: str, wanted: dict[str, str]) -> ListedRows:
    rows: list[tuple[int, dict[str, str]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
    try:
        names = next(reader, [])
        places = {column: names.index(name) for column, name in _chosen(names, wanted, str(path)).items()}
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells for the {len(names)} columns "
                    f"{', '.join(names)}. Put text that holds a separator in double quotes."
                )
            if torn := [cell for cell in cells if cell.endswith('"') and cell.count('"') % 2]:
                raise DataError(
                    f"{path}, line {reader.line_num}: {torn[0]:.80} ends with a double quote but does not begin with "
                    "one. Put the whole text in double quotes, or leave them out."
                )
            row = {column: text_of(cells[place]) or "" for column, place in places.items()}
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num or 1}: {error}.") from error
    return ListedRows(path, [name.strip() for name in names if name.strip()], {*places}, rows)


def _delimiter(path: Path, text: str) -> str:
    """Returns the delimiter that divides the first line into the most names."""
    try:
        return max(",;\t", key=lambda mark: len(next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), [])))
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}.") from error


def _from_json_lines(path: Path, text: str, wanted: dict[str, str]) -> ListedRows:
    rows: list[tuple[int, dict[str, str]]] = []
    names: dict[str, None] = {}
    columns: set[str] = set()
    for line, content in enumerate(text.split("\n"), start=1):  # other line breaks may be part of a name
        if not content.strip():
            continue
        where = f"{path}, line {line}"
        try:
            row = json.loads(content, object_pairs_hook=lambda pairs: pairs)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {error}.") from error
        if not content.lstrip().startswith("{"):
            raise DataError(f'{where} is not an object, such as {{"file": "a.wav", "label": "happy"}}.')
        found = _chosen([name for name, _ in row], wanted, where)
        values = dict(row)
        cells = {column: None if isinstance(values[name], bool) else text_of(values[name])
                 for column, name in found.items()}  # fmt: skip
        if odd := [column for column, cell in cells.items() if cell is None]:
            raise DataError(f"{where}: {odd[0]!r} is neither text nor a number, but {values[found[odd[0]]]!r:.80}.")
        names |= dict.fromkeys(values)
        columns |= {*found}
        rows.append((line, {column: cell or "" for column, cell in cells.items()}))
    return ListedRows(path, list(names), columns, [(line, dict.fromkeys(columns, "") | row) for line, row in rows])
