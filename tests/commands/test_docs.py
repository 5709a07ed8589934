"""The code in README.md and docs/: command lines parse, imports exist, and outputs are as printed."""

import ast
import importlib
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from ser.cli import parse_arguments
from ser.commands import export, predict
from ser.evaluation import evaluate

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDERS = {"RECIPE": "configs/ravdess_small.yaml", "[MODEL...]": "MODEL"}
OWN = re.compile(r"\w+_maxmvit$|ser(\.|$)")


def blocks(language: str) -> list[tuple[str, str]]:
    """Returns (page, code) for each block of code in `language`."""
    found = []
    for page in PAGES:
        for code in re.findall(
            rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            found.append((page.relative_to(ROOT).as_posix(), code))
    return found


def command_lines(script: str) -> list[tuple[str, list[str]]]:
    """Returns (page, arguments) for each command line that runs `script`."""
    found = []
    for page, code in blocks("bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
            for start in [i for i, word in enumerate(words) if word == script]:
                rest = words[start + 1 :]
                ends = [i for i, word in enumerate(rest) if word in ("&&", ">", "|")]
                found.append((page, rest[: min(ends, default=len(rest))]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page, arguments", command_lines("run_ser.py"))
def test_command_lines_of_run_ser_parse(page, arguments, monkeypatch, tmp_path):
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
    monkeypatch.chdir(tmp_path)
    _, data_args, args = parse_arguments([*arguments, "--report_to", "none", "--use_cpu"])
    assert data_args.dataset_name and args.output_dir


@pytest.mark.parametrize("page, arguments", command_lines("predict_ser.py"))
def test_command_lines_of_predict_ser_parse(page, arguments):
    args = predict.parse_arguments(arguments)
    assert args.inputs or args.enroll


@pytest.mark.parametrize("page, arguments", command_lines("evaluate_ser.py"))
def test_command_lines_of_evaluate_ser_parse(page, arguments):
    checkpoint, clip_args, args = evaluate.parse_arguments(arguments, "")
    assert checkpoint.startswith("out/") and clip_args.dataset_name and args.output_dir


@pytest.mark.parametrize("page, arguments", command_lines("export_ser.py"))
def test_command_lines_of_export_ser_parse(page, arguments):
    assert export.parse_arguments(arguments)


def test_modules_that_command_lines_run_exist():
    started = [(page, module) for page, code in blocks("bash") for module in re.findall(r"python -m ([\w.]+)", code)]
    known = {"pytest", "venv", "http.server"}
    missing = [
        (page, module)
        for page, module in started
        if module not in known and not (ROOT / f"{module.replace('.', '/')}.py").is_file()
    ]
    assert started and not missing


@pytest.mark.parametrize("page, code", blocks("python"))
def test_python_blocks_are_valid_and_their_imports_exist(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and OWN.match(node.module or ""):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), f"{page}: {node.module}"


def run(code: str) -> tuple[dict, list]:
    """Runs a block of code; returns its variables and the values of its expressions."""
    variables: dict = {}
    values = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Expr):
            values.append(eval(compile(ast.Expression(node.value), "block", "eval"), variables))
        else:
            exec(compile(ast.Module([node], []), "block", "exec"), variables)
    return variables, values


@pytest.mark.slow
@pytest.mark.skipif("SER_RAVDESS_DIR" not in os.environ, reason="SER_RAVDESS_DIR is not set")
def test_the_pipeline_returns_what_the_readme_prints(tmp_path, monkeypatch):
    clip = "03-01-05-02-01-01-01.flac"
    (tmp_path / clip).symlink_to(next(Path(os.environ["SER_RAVDESS_DIR"]).rglob(clip)))
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    code = next(code for page, code in blocks("python") if page == "README.md" and "pipeline(" in code)
    _, (best, along) = run(code)
    printed = ast.literal_eval(re.search(r"^# (\[\{'label'.*\]\n)", code, re.MULTILINE)[1])
    assert [row["label"] for row in best] == [row["label"] for row in printed]
    assert [row["score"] for row in best] == pytest.approx([row["score"] for row in printed], abs=6e-4)
    labels = re.findall(r"'end': \d.0, 'label': '(\w+)'", code)
    assert len(labels) > 1 and [row["label"] for row in along[: len(labels)]] == labels


def test_the_learnable_filters_of_the_guide_can_be_read():
    code = next(code for page, code in blocks("python") if page.endswith("learnable_filters.md"))
    small = code.replace("num_labels=8", 'num_labels=8, cqt_backbone=None, mel_backbone="convnet"')
    variables, (filters,) = run(small)
    assert filters.shape == (variables["extractor"].n_mels, variables["extractor"].mel_n_fft // 2 + 1)
    assert torch.isfinite(filters).all()
