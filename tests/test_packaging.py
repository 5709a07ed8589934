"""What `pip install` makes of this folder: all that is imported is declared, and all that is here is installed."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import soundfile
import yaml
from packaging.requirements import Requirement

from tests.tiny import tiny_feature_extractor, tiny_model, voice

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
DECLARED = {
    "requirements": PROJECT["dependencies"],
    "requirements-app": PROJECT["optional-dependencies"]["app"],
    "requirements-export": PROJECT["optional-dependencies"]["export"],
    "requirements-dev": PROJECT["optional-dependencies"]["dev"],
}
IMPORTED_AS = {
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "nnaudio": "nnAudio",
}
SHIPPED = [*ROOT.glob("*.py"), *(ROOT / "ser").rglob("*.py")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(part: str) -> dict[str, Requirement]:
    return {normal(requirement.name): requirement for requirement in map(Requirement, DECLARED[part])}


def module_names(part: str) -> set[str]:
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared(part)}


def imports(files: list[Path]) -> dict[str, str]:
    """Top-level module -> a file that imports it, anywhere in it; of this project's own and Python's none."""
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0]: file.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = file.name
    own = {path.stem for path in ROOT.glob("*.py")} | {"ser", "tests", "benchmarks", "web"}
    return {name: file for name, file in found.items() if name not in own | sys.stdlib_module_names}


def test_what_is_imported_is_declared():
    known = module_names("requirements")
    undeclared = {name: file for name, file in imports(SHIPPED).items() if name not in known}
    # They have extras of their own.
    exporting = module_names("requirements-export")
    assert undeclared == {"gradio": "app.py", "peft": "trainable.py"} | dict.fromkeys(exporting, "export.py")
    assert "gradio" in module_names("requirements-app") and PROJECT["optional-dependencies"]["lora"] == ["peft>=0.18"]


def test_what_is_declared_is_imported():
    """timm imports torchvision, and Trainer tensorboard."""
    assert module_names("requirements") - set(imports(SHIPPED)) == {"torchvision", "tensorboard"}


def test_what_tests_and_benchmarks_import_is_declared():
    files = [path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")]
    known = set.union(*map(module_names, DECLARED)) | {
        "gradio_client",
        "httpx",
        "fsspec",
    }  # come with gradio, and with datasets
    assert {name: file for name, file in imports(files).items() if name not in known} == {}


@pytest.mark.parametrize("part", DECLARED)
def test_the_pinned_set_is_one_that_is_declared(part):
    lines = [line for line in (ROOT / f"{part}.txt").read_text().splitlines() if line and line[0] not in "#-"]
    pins = dict(line.split("==") for line in lines)
    wanted = declared(part)
    assert {normal(name) for name in pins} == set(wanted)
    for name, version in pins.items():
        assert version in wanted[normal(name)].specifier, name


def test_every_module_and_package_is_installed():
    assert set(SETUPTOOLS["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ser").rglob("*.py")}
    assert set(SETUPTOOLS["packages"]) == packages | {"ser.recipes", "ser.weights"}


def test_every_command_has_its_name():
    commands = {path.stem for path in ROOT.glob("*.py") if "def command() -> int" in path.read_text()}
    assert {target.removesuffix(":command") for target in PROJECT["scripts"].values()} == commands


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="pip install -r requirements-dev.txt")
    source, installed, elsewhere = (tmp_path / name for name in ("source", "installed", "elsewhere"))
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, source)
    for name in ("ser", "configs"):
        shutil.copytree(ROOT / name, source / name)
    model = tiny_model()
    model.save_pretrained(source / "weights" / "ravdess_small")
    tiny_feature_extractor().save_pretrained(source / "weights" / "ravdess_small")
    elsewhere.mkdir()
    soundfile.write(elsewhere / "voice.wav", voice(0.5), 44_100)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", installed, source], check=True)

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, installed / "bin" / command, *arguments],
            cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
        )  # fmt: skip

    helped = run("ser-predict", "--help")
    assert helped.returncode == 0 and "ser-predict" in helped.stdout, helped.stderr
    answered = run("ser-predict", "voice.wav")
    assert answered.stdout.splitlines()[0] == f"file,prediction,{','.join(model.config.id2label.values())}"
    assert answered.stdout.splitlines()[1].startswith("voice.wav,") and answered.returncode == 0, answered.stderr
    shutil.rmtree(installed / "ser" / "weights" / "ravdess_small")
    without = run("ser-predict", "voice.wav")
    assert without.returncode == 2 and without.stderr.startswith("error: no model is named"), without.stderr
    read = run("ser-train", "configs/demo.yaml", "--image_size", "large")
    assert read.returncode == 2 and "invalid int value: 'large'" in read.stderr, read.stderr


def test_one_version_is_stated_everywhere():
    stated = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert PROJECT["version"] == stated == changes[1]


def test_the_layout_that_readme_draws_is_the_tree():
    drawn = (ROOT / "README.md").read_text().partition("\n## The code\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+\.py|corpora/)`", drawn))
    there = {path.name for path in [*ROOT.glob("*.py"), *(ROOT / "ser").glob("*.py")]}
    assert named == there | {"corpora/"}
