"""Prints the size of the code and the shape of its import graph, for the table in docs/architecture.md.

python docs/size.py [FOLDER]        FOLDER is another copy of the repository (default: this one)
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Graph = dict[str, set[str]]


def modules_of(root: Path) -> dict[str, ast.Module]:
    """Returns the syntax tree of each module at the root of a repository and in its `ser/`, by name."""
    paths = [*root.glob("*.py"), *root.glob("ser/**/*.py")]
    names = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sorted(names.items())}


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes except those under `if TYPE_CHECKING`, which do not run."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from _statements(node)


def imports_of(modules: dict[str, ast.Module]) -> Graph:
    """Returns the modules that each module imports, at its top or within a function."""
    graph: Graph = {name: set() for name in modules}
    for name, tree in modules.items():
        for node in _statements(tree):
            if isinstance(node, ast.Import):
                found = [[alias.name] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [[f"{node.module}.{alias.name}", node.module or ""] for alias in node.names]
            else:
                continue
            for candidates in found:  # a module of a package, or a name of a module
                graph[name] |= {*[each for each in candidates if each in modules][:1]} - {name}
    return graph


def cycles_of(graph: Graph) -> list[set[str]]:
    """Returns the sets of modules that import one another, directly or through others."""
    reached = {name: set(found) for name, found in graph.items()}
    for through in graph:
        for found in reached.values():
            if through in found:
                found |= reached[through]
    rings = {frozenset(other for other in found if name in reached[other]) for name, found in reached.items()}
    return [set(ring) for ring in sorted(rings, key=sorted) if ring]


def depth_of(graph: Graph) -> int:
    """Returns the number of arrows on the longest path through a graph; a cycle counts as one module."""
    ring_of = {name: min(ring) for ring in cycles_of(graph) for name in ring}
    merged: Graph = {ring_of.get(name, name): set() for name in graph}
    for name, found in graph.items():
        own = ring_of.get(name, name)
        merged[own] |= {ring_of.get(other, other) for other in found} - {own}
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = max((1 + depth(other) for other in merged[name]), default=0)
        return depths[name]

    return max(map(depth, merged), default=0)


def private_overrides(modules: dict[str, ast.Module]) -> set[str]:
    """Returns the private methods of transformers' Trainer that classes named `...Trainer` override."""
    package = importlib.util.find_spec("transformers")
    assert package is not None and package.origin is not None
    trainer = ast.parse((Path(package.origin).parent / "trainer.py").read_text(encoding="utf-8"))
    theirs = set(_methods({"transformers.trainer": trainer}))
    return {name for name in _methods(modules) if name in theirs and name[0] == "_" and name[:2] != "__"}


def _methods(modules: dict[str, ast.Module]) -> Iterator[str]:
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"):
                yield from (each.name for each in node.body if isinstance(each, ast.FunctionDef))


def options_of(modules: dict[str, ast.Module]) -> int:
    """Returns the number of fields with a help text, each of which is one option of a command."""
    calls = [node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return sum(
        isinstance(each.value, ast.Call) and ast.unparse(each.value.func) in ("option", "field") for each in calls
    )


def sizes(root: Path) -> dict[str, str]:
    """Returns the rows of the table: title -> numbers."""
    modules = modules_of(root)
    graph = imports_of(modules)
    shipped = {name for name in modules if name.endswith("_maxmvit")}
    rows: dict[str, str] = {}
    for title, paths in (
        ("shipped", root.glob("*_maxmvit.py")),
        ("`ser/`", root.glob("ser/**/*.py")),
        ("`tests/`", root.glob("tests/**/*.py")),
        ("`benchmarks/`", root.glob("benchmarks/**/*.py")),
    ):
        lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
        rows[f"{title}: files, lines"] = f"{len(lines)}, {sum(lines):,}"
    among = {name: found & shipped for name, found in graph.items() if name in shipped}
    for title, part in (("shipped", among), ("shipped and `ser/`", graph)):
        arrows = sum(map(len, part.values()))
        rows[f"imports of {title}: modules, arrows, depth, cycles"] = (
            f"{len(part)}, {arrows}, {depth_of(part)}, {len(cycles_of(part))}"
        )
    raised = sum(isinstance(node, ast.Raise) for tree in modules.values() for node in ast.walk(tree))
    return rows | {
        "`raise` statements": str(raised),
        "options that are fields of dataclasses": str(options_of(modules)),
        "private methods of Trainer overridden": str(len(private_overrides(modules))),
    }


if __name__ == "__main__":
    for row, numbers in sizes(Path(sys.argv[1]) if sys.argv[1:] else ROOT).items():
        print(f"| {row} | {numbers} |")
