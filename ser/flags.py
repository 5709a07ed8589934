"""What is known of the training command's flags without torch, which takes seconds to import: their names and help,
read from the text of the dataclasses; and recipes, which are flags in a file."""

import ast
import difflib
import importlib.util
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

OWN = [Path(__file__).with_name(name) for name in ("data_arguments.py", "arguments.py")]
PARENT = "TrainingArguments"
RECIPE_SUFFIXES = (".yaml", ".yml")
DEEPEST = 10  # lists and mappings in one another, of a recipe
SHOW_ALL = "--help_all"
LIST_CORPORA = "--list_corpora"
LABEL_MAP = "--label_map"  # whose file is YAML too, and no recipe
COLUMN = 34


@dataclass(frozen=True)
class Flag:
    """One field of a dataclass: its name, the text of its type and of its default, its help."""

    name: str
    kind: str
    default: str
    help: str

    @property
    def switch_off(self) -> str | None:
        """What turns off what is on by default."""
        return f"no_{self.name}" if self.default == "True" and self.kind.startswith("bool") else None

    def lines(self, width: int) -> str:
        """The flag and its help, as `--help` shows them."""
        values = f" {{{', '.join(re.findall('[a-z]+', self.kind[8:]))}}}" if self.kind.startswith("Literal[") else ""
        values = " ..." if self.kind.startswith("list[") else values
        default = "" if self.default in ("None", "False", "") else f" (default: {_shown(self.default)})"
        text = " ".join(f"{self.help}{default}".split()).replace("%%", "%")
        name = f"  --{self.name}{values}"
        first, start = ([name], " " * COLUMN) if len(name) > COLUMN - 2 else ([], name.ljust(COLUMN))
        rest = textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * COLUMN)
        return "\n".join([*first, *(rest or [start])])


def _shown(default: str) -> str:
    value = ast.literal_eval(default)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def read_groups(path: Path, only: str | None = None) -> dict[str, list[Flag]]:
    """The fields of the dataclasses in a file of code, by the first line of the class's docstring, in their order."""
    groups = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and (only is None or node.name == only):
            flags = [_flag(line) for line in node.body if isinstance(line, ast.AnnAssign)]
            title = (ast.get_docstring(node) or node.name).partition("\n")[0]
            if flags:
                groups[title] = [flag for flag in flags if flag]
    return groups


def _flag(line: ast.AnnAssign) -> Flag | None:
    call = line.value
    if not isinstance(call, ast.Call) or not isinstance(line.target, ast.Name):
        return None
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    default, metadata = given.get("default"), given.get("metadata")
    if isinstance(factory := given.get("default_factory"), ast.Lambda):
        default = factory.body
    shown = ast.unparse(default) if isinstance(default, ast.Constant | ast.UnaryOp | ast.List) else ""
    help_text = ""
    if isinstance(metadata, ast.Dict):
        help_text = next(_text(v) for k, v in zip(metadata.keys, metadata.values, strict=True) if _text(k) == "help")
    return Flag(line.target.id, ast.unparse(line.annotation), shown, help_text)


def _text(node: ast.AST | None) -> str:
    """A literal text; of one with values in it, the text around them."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "..."


def own_groups() -> dict[str, list[Flag]]:
    return {title: flags for path in OWN for title, flags in read_groups(path).items()}


def inherited_flags() -> list[Flag]:
    """Those of transformers' `TrainingArguments` which the project does not speak of."""
    package = importlib.util.find_spec("transformers")  # is found, and not imported
    if package is None or package.origin is None:
        raise ImportError("transformers is not installed: pip install -r requirements.txt")
    own = {flag.name for flags in own_groups().values() for flag in flags}
    found = read_groups(Path(package.origin).with_name("training_args.py"), only=PARENT)
    return [flag for flags in found.values() for flag in flags if flag.name not in own]


def as_flags(arguments: Sequence[str]) -> list[str]:
    """A command line with the settings of its recipes in front, as flags: what follows goes over them. What ends in
    .yaml or .yml is a recipe, wherever it stands."""
    flags = [
        flag
        for recipe in _recipes(arguments)
        for name, values in read_recipe(recipe)
        for flag in (f"--{name}", *values)
    ]
    return [*flags, *(argument for place, argument in enumerate(arguments) if not _is_recipe(arguments, place))]


def _recipes(arguments: Sequence[str]) -> list[str]:
    return [argument for place, argument in enumerate(arguments) if _is_recipe(arguments, place)]


def _is_recipe(arguments: Sequence[str], place: int) -> bool:
    argument, before = arguments[place], arguments[place - 1] if place else ""
    return argument.endswith(RECIPE_SUFFIXES) and not argument.startswith("--") and before != LABEL_MAP


def read_recipe(path: str) -> Iterator[tuple[str, list[str]]]:
    """The settings of a YAML file, each with its values as a command line holds them."""
    try:
        settings = _parse(find_recipe(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, a number or a day that is none
        refuse(f"recipe {path} cannot be read: {error}")
    if not isinstance(settings, dict):
        refuse(f"recipe {path} is not a list of `flag: value` lines.")
    for name, value in settings.items():
        if isinstance(value, dict):
            try:
                value = json.dumps(value)
            except (TypeError, ValueError) as error:
                refuse(f"recipe {path}: {name} cannot be written as JSON: {error}.")
        if value is not None:
            yield str(name), [str(each) for each in (value if isinstance(value, list) else [value])]


def _parse(text: str) -> object:
    """What YAML holds, unless a few lines of it could cost minutes or gigabytes."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise yaml.YAMLError(f"it nests over {DEEPEST} lists and mappings")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it repeats a value by *{event.anchor}; write it out")
    return yaml.safe_load(text)


def find_recipe(name: str) -> Path:
    """The file of that name or, where there is none and it is named as in the project's root (`configs/demo.yaml`),
    the recipe that is installed beside this code."""
    path, root = Path(name), Path(__file__).parents[1]
    if path.parent != Path("configs") or path.exists():
        return path
    return next((p for p in (root / path, root / "ser" / "recipes" / path.name) if p.is_file()), path)


def refuse(message: str) -> NoReturn:
    """Ends the command as `argparse` does."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_flags(arguments: Sequence[str], description: str) -> None:
    """
    Answers `--help`, `--help_all` and `--list_corpora`, and names what is no flag with the nearest one that is.

    Args:
        arguments: The command line, recipes included.
        description: What `--help` says first.

    Raises:
        SystemExit: 0 after help or the table of corpora, 2 after an error.
    """
    if LIST_CORPORA in arguments:
        from ser.corpora.listing import list_corpora  # which takes a second to import

        print(list_corpora())
        raise SystemExit(0)
    groups, rest = own_groups(), inherited_flags()
    if {"-h", "--help", SHOW_ALL} & {*arguments}:
        more = {f"All else that transformers.{PARENT} has": rest} if SHOW_ALL in arguments else {}
        print(help_text(description, groups | more))
        raise SystemExit(0)
    flags = [flag for group in (*groups.values(), rest) for flag in group]
    known = {name for flag in flags for name in (flag.name, flag.switch_off) if name}
    for recipe in _recipes(arguments):
        for name, _ in read_recipe(recipe):
            _check(name, known, f"{name} in {recipe}")
    for argument in arguments:
        if argument.startswith("--"):
            written = argument.partition("=")[0]
            _check(written[2:].replace("-", "_"), known, written)


def _check(name: str, known: set[str], written: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean --{near[0]}?" if near else "."
        refuse(f"{written} is no flag{hint} --help lists the flags, {SHOW_ALL} all of them.")


def help_text(description: str, groups: dict[str, list[Flag]]) -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    parts = [description.strip()]
    parts += ["\n".join([f"{title}:", *(flag.lines(width) for flag in flags)]) for title, flags in groups.items()]
    more = f"{SHOW_ALL} lists the rest of transformers.{PARENT}, all of which are flags too."
    return "\n\n".join([*parts, f"{more} {LIST_CORPORA} lists the corpora that are known by name."])
