"""Tests that the files of a checkpoint are self-contained, that the folders of ser/ import one another in order, and
the figures of docs/size.py."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*_maxmvit.py"))}


def relative_imports(text: str) -> set[str]:
    """Returns the siblings that transformers copies with a file. Before 5.12, it does not search those for others."""
    return set(re.findall(r"^\s*from\s+\.(\w+)\s+import", text, re.MULTILINE))


def needed(name: str) -> set[str]:
    found, todo = set(), [name]
    while todo:
        for sibling in relative_imports(SHIPPED[todo.pop()]) - found:
            found.add(sibling)
            todo.append(sibling)
    return found - {name}


@pytest.mark.parametrize("name", SHIPPED)
def test_each_file_imports_directly_every_file_that_it_needs(name):
    assert relative_imports(SHIPPED[name]) == needed(name)


def test_a_model_carries_every_file():
    assert needed("modeling_maxmvit") | {"modeling_maxmvit"} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_files_have_no_circular_imports(name):
    assert not any(name in needed(other) for other in needed(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_relative_and_absolute_imports_are_the_same(name):
    for node in ast.walk(ast.parse(SHIPPED[name])):
        if isinstance(node, ast.Try) and any(isinstance(each, ast.ImportFrom) and each.level for each in node.body):
            relative = [ast.unparse(each).replace("from .", "from ") for each in node.body]
            assert relative == [ast.unparse(each) for each in node.handlers[0].body[1:]]


@pytest.mark.parametrize("name", SHIPPED)
def test_no_file_imports_the_training_package(name):
    tree = ast.walk(ast.parse(SHIPPED[name]))
    modules = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.partition(".")[0] in ("ser", "tests")]


@pytest.mark.slow
def test_reading_a_configuration_imports_neither_timm_nor_audio_libraries(tmp_path):
    code = (
        "import sys; from configuration_maxmvit import MaxMViTConfig\n"
        "MaxMViTConfig(cqt_backbone='convnet', mel_backbone='convnet').save_pretrained(sys.argv[1])\n"
        "MaxMViTConfig.from_pretrained(sys.argv[1])\n"
        "print([name for name in ('timm', 'librosa', 'soxr', 'spectrograms_maxmvit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# --- the training package ---

# In the order of docs/architecture.md: a module imports only modules of its own layer and of earlier layers.
LAYERS = [
    ["configuration_maxmvit", "spectrograms_maxmvit", "audio_maxmvit", "feature_extraction_maxmvit",
     "modeling_maxmvit", "pipeline_maxmvit"],
    ["ser.utils", "ser.files", "ser.distributed", "ser.arguments", "ser.models"],
    ["ser.data"],
    ["ser.evaluation"],
    ["ser.inference"],
    ["ser.export"],
    ["ser.training"],
    ["ser.cli"],
    ["ser.training.run", "ser.evaluation.evaluate"],
    ["ser.commands"],
    ["run_ser", "predict_ser", "evaluate_ser", "export_ser", "onnx_ser", "app"],
]  # fmt: skip


def layer_of(module: str) -> int:
    """Returns the layer that lists a module, or else its innermost package that is listed."""
    places = [
        (len(name), layer)
        for layer, names in enumerate(LAYERS)
        for name in names
        if f"{module}.".startswith(f"{name}.")
    ]
    return max(places)[1] if places else -1  # -1: the empty package ser


def backward(graph: dict[str, set[str]]) -> list[str]:
    return [f"{one} -> {other}" for one, found in graph.items() for other in found if layer_of(other) > layer_of(one)]


@pytest.fixture(scope="module")
def size():
    spec = importlib.util.spec_from_file_location("size", ROOT / "docs" / "size.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def modules(size):
    return size.modules_of(ROOT)


def test_imports_follow_the_layers_and_have_no_cycles(size, modules):
    graph = size.imports_of(modules)
    assert backward(graph) == [] and size.cycles_of(graph) == []
    assert [module for module in graph if layer_of(module) < 0] == ["ser"]
    assert graph["ser.training.run"] >= {"ser.training.trainer", "ser.data.protocols", "ser.evaluation.report"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, line, arrow",
    [
        ("ser.data.protocols", "from ser.evaluation.metrics import SCORES", "ser.evaluation.metrics"),
        ("ser.evaluation.metrics", "def late():\n    import ser.training.trainer", "ser.training.trainer"),
        ("spectrograms_maxmvit", "from ser import utils", "ser.utils"),
        ("ser.training.trainer", "from ser.training.run import train_and_test", "ser.training.run"),
    ],
)
def test_an_import_from_a_later_layer_is_found(size, modules, module, line, arrow):
    longer = ast.Module([*modules[module].body, *ast.parse(line).body], [])
    assert backward(size.imports_of(modules | {module: longer})) == [f"{module} -> {arrow}"]


def test_cycles_and_depth_of_a_graph(size):
    assert size.depth_of({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 2
    assert size.cycles_of({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    ring = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": set(), "f": {"g"}, "g": {"f"}}
    assert size.cycles_of(ring) == [{"b", "c"}, {"f", "g"}] and size.depth_of(ring) == 3


def test_imports_for_type_checkers_do_not_count(size):
    modules = {
        "a": ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b\nimport c.d"),
        "b": ast.parse("try:\n    from .c import d\nexcept ImportError:\n    from c import d"),
        "c": ast.parse("x = 1"),
        "c.d": ast.parse("from c import x"),
    }
    assert size.imports_of(modules) == {"a": {"c.d"}, "b": {"c.d"}, "c": set(), "c.d": {"c"}}


@pytest.mark.slow
def test_the_figures_in_the_architecture_page_are_current(size):
    page, rows = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), size.sizes(ROOT)
    for row in ("imports of shipped: modules, arrows, depth, cycles", "private methods of Trainer overridden"):
        assert re.search(rf"^\| {row} \|.*\| {rows[row]} \|$", page, re.MULTILINE), rows[row]
