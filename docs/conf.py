"""Settings of the documentation: `python -m sphinx -W -b html docs docs/_build`."""

import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "MaxMViT-MLP"
author = "MaxMViT-MLP developers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"

myst_heading_anchors = 4
smartquotes = False  # they would turn --option into a dash
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
default_role = "literal"  # docstrings are Markdown: single backticks are code
napoleon_google_docstring = True
napoleon_numpy_docstring = False

TABLE_HEAD = ("| option | default | effect |", "|---|---|---|")
OPTIONS = "<!-- the options -->"  # placeholder in docs/reference/options.md


def option_tables() -> str:
    """Returns a Markdown table for each group of training options: name, default and help from the dataclasses."""
    from ser.arguments import DataArguments, ModelArguments, TrainingOptions

    lines: list[str] = []
    for kind in (DataArguments, ModelArguments, TrainingOptions):
        groups = [base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base) and base is not kind]
        listed: set[str] = set()
        for group in [*groups, kind]:
            own = [each for each in dataclasses.fields(group) if each.name not in listed and "help" in each.metadata]
            listed |= {each.name for each in own}
            if own:
                title = str(group.__doc__).splitlines()[0].rstrip(".")
                lines += ["", f"## {title}", "", *TABLE_HEAD, *map(option_row, own)]
    return "\n".join(lines)


def option_row(option: dataclasses.Field) -> str:
    """Returns the row of an option."""
    default = option.default_factory() if callable(option.default_factory) else option.default
    text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    shown = "" if default is None or not text else f"`{text.lower() if isinstance(default, bool) else text}`"
    names = [f"`--{option.name}`", *(f"`{name}`" for name in option.metadata.get("aliases", ()))]
    cells = (", ".join(names), shown, str(option.metadata["help"]).replace("%%", "%"))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def insert_options(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx handler: inserts the tables of options when their page is read."""
    if docname == "reference/options":
        source[0] = source[0].replace(OPTIONS, option_tables())


def markdown_to_rest(lines: Iterable[str]) -> list[str]:
    """Converts the Markdown of a docstring to reStructuredText: fenced code and tables become literal blocks."""
    converted: list[str] = []
    inside = fenced = in_list = False
    for line in lines:
        text = line.strip()
        is_fence, is_row = text.startswith("```"), text.startswith("|")
        if (is_fence and not fenced) or (is_row and not inside and not fenced):
            indent = line[: len(line) - len(line.lstrip())]
            converted += ["", f"{indent}::", ""]
            inside = True
        elif inside and not fenced and not is_row:
            inside = False
            converted.append("")
        if is_fence:
            fenced = not fenced
            inside = fenced
            if not fenced:
                converted.append("")
        else:
            if text.startswith("- ") and not inside and not in_list:
                converted.append("")
            in_list = bool(text) and (in_list or text.startswith("- "))
            converted.append(f"    {line}" if inside else plain_line(line))
    return converted


def plain_line(line: str) -> str:
    """Removes the brackets of links to code from a line, and escapes `|` outside code."""
    pieces = re.sub(r"\[(`[^`]+`)\]", r"\1", line).split("`")
    return "`".join(piece if i % 2 else piece.replace("|", r"\|") for i, piece in enumerate(pieces))


def convert_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Autodoc handler: converts the Markdown of a docstring before napoleon reads its sections."""
    lines[:] = markdown_to_rest(lines)


def setup(app: Any) -> None:
    """Registers the handlers with Sphinx."""
    app.connect("source-read", insert_options)
    app.connect("autodoc-process-docstring", convert_docstring, priority=100)
