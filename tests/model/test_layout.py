"""The files that a checkpoint carries: flat, alone, and each with all that it needs beside it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*_maxmvit.py"))}


def relative_imports(text: str) -> set[str]:
    """The siblings that transformers copies along with a file: it searches the text, and no deeper before 5.12."""
    return set(re.findall(r"^\s*from\s+\.(\w+)\s+import", text, re.MULTILINE))


def needed(name: str) -> set[str]:
    found, todo = set(), [name]
    while todo:
        for sibling in relative_imports(SHIPPED[todo.pop()]) - found:
            found.add(sibling)
            todo.append(sibling)
    return found - {name}


@pytest.mark.parametrize("name", SHIPPED)
def test_each_file_imports_directly_all_that_it_needs(name):
    assert relative_imports(SHIPPED[name]) == needed(name)


def test_a_model_carries_every_file():
    assert needed("modeling_maxmvit") | {"modeling_maxmvit"} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_file_needs_one_that_needs_it(name):
    assert not any(name in needed(other) for other in needed(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_relative_and_absolute_imports_are_the_same(name):
    for node in ast.walk(ast.parse(SHIPPED[name])):
        if isinstance(node, ast.Try) and any(isinstance(each, ast.ImportFrom) and each.level for each in node.body):
            relative = [ast.unparse(each).replace("from .", "from ") for each in node.body]
            assert relative == [ast.unparse(each) for each in node.handlers[0].body[1:]]


@pytest.mark.parametrize("name", SHIPPED)
def test_no_file_knows_of_the_training_package(name):
    tree = ast.walk(ast.parse(SHIPPED[name]))
    modules = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.partition(".")[0] in ("ser", "tests")]


def test_a_configuration_is_read_without_timm_and_what_computes_spectrograms(tmp_path):
    code = (
        "import sys; from configuration_maxmvit import MaxMViTConfig\n"
        "MaxMViTConfig(cqt_backbone='convnet', mel_backbone='convnet').save_pretrained(sys.argv[1])\n"
        "MaxMViTConfig.from_pretrained(sys.argv[1])\n"
        "print([name for name in ('timm', 'librosa', 'soxr', 'spectrograms_maxmvit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
