"""Packaging: all imports are declared, the admitted versions work together, and both distributions are complete."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
import torch
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.helpers.tiny import voice

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = {
    "requirements": PROJECT["dependencies"] + EXTRAS["torchaudio"],
    "requirements-app": EXTRAS["app"],
    "requirements-export": EXTRAS["export"],
    "requirements-dev": EXTRAS["dev"],
}
IMPORTED_AS = {
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "nnaudio": "nnAudio",
    "pympi-ling": "pympi",
    "praat-parselmouth": "parselmouth",
}
# Combinations that were tried: torch -> the torchvision and torchaudio that work with it. torchvision 0.29.2 declares
# torch>=2.14 and torchaudio 2.11 torch>=2.11, so pip accepts most combinations that fail.
WORKING = {
    "2.13.0": ({"0.28.0"}, {"2.11.1"}),
    "2.14.0": ({"0.29.0", "0.29.2"}, {"2.11.1"}),
    "2.14.1": ({"0.29.2"}, {"2.11.1"}),
    "2.15.0": ({"0.29.1", "0.29.2"}, {"2.11.1"}),
}
# Neighbouring releases, with the torch that each of them declares; the last of each package does not exist yet.
TORCH = ("2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.14.1", "2.15.0", "2.16.0")
TORCHVISION = {
    **{"0.26.0": "==2.11.0", "0.27.0": "==2.12.0", "0.28.0": "==2.13.0", "0.29.0": "==2.14.0", "0.29.1": "==2.15.0"},
    **{"0.29.2": ">=2.14.0", "0.30.0": ">=2.14.0"},
}
TORCHAUDIO = {"2.11.0": "", "2.11.1": ">=2.11", "2.12.0": ">=2.11"}
LICENCES = ("ravdess/LICENSE", "ravdess/LICENSE-whisper", "ravdess_small/LICENSE")  # of weights
SHIPPED = [*ROOT.glob("*.py"), *(ROOT / "ser").rglob("*.py")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(part: str) -> dict[str, Requirement]:
    found = {normal(requirement.name): requirement for requirement in map(Requirement, DECLARED[part])}
    found.pop(PROJECT["name"], None)  # its extra `dev` names the extra `torchaudio`
    return found


def pins(part: str) -> list[Requirement]:
    lines = (ROOT / f"{part}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and line[0] not in "#-"]


def admitted(torch_range: SpecifierSet, vision_range: SpecifierSet, audio_range: SpecifierSet) -> set[tuple[str, ...]]:
    """Returns the (torch, torchvision, torchaudio) that these ranges and the packages' metadata let pip install."""
    return {
        (torch, vision, audio)
        for torch in torch_range.filter(TORCH)
        for vision in vision_range.filter(TORCHVISION)
        for audio in audio_range.filter(TORCHAUDIO)
        if torch in SpecifierSet(TORCHVISION[vision]) and torch in SpecifierSet(TORCHAUDIO[audio])
    }


def module_names(part: str) -> set[str]:
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared(part)}


def imports(files: list[Path]) -> dict[str, str]:
    """Returns {top-level module: a file that imports it}, without this project's modules and the standard library."""
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0]: file.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = file.name
    own = {path.stem for path in ROOT.glob("*.py")} | {"ser", "tests", "benchmarks", "examples", "web"}
    return {name: file for name, file in found.items() if name not in own | sys.stdlib_module_names}


def test_all_imports_are_declared():
    known = module_names("requirements")
    undeclared = {name: file for name, file in imports(SHIPPED).items() if name not in known}
    # Imports that an extra declares.
    exporting = module_names("requirements-export")
    extras = {"gradio": "app.py", "peft": "finetuning.py", "av": "audio_maxmvit.py"}
    extras |= dict.fromkeys(("praatio", "pympi", "pysubs2"), "annotations.py") | dict.fromkeys(exporting, "onnx.py")
    extras |= dict.fromkeys(("mlflow", "trackio", "wandb"), "tracking.py")  # chosen with --report_to
    assert undeclared.keys() == extras.keys()
    assert {name: file for name, file in undeclared.items() if name != "praatio"}.items() <= extras.items()
    assert "gradio" in module_names("requirements-app") and EXTRAS["lora"] == ["peft>=0.18"]


@pytest.mark.slow
def test_all_declared_packages_are_imported():
    """Except those that timm (torchvision), Trainer (tensorboard) and transformers (torchaudio) import."""
    assert module_names("requirements") - set(imports(SHIPPED)) == {"torchvision", "tensorboard", "torchaudio"}


def test_imports_of_tests_and_benchmarks_are_declared():
    files = [path for folder in ("tests", "benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.py")]
    known = set.union(*map(module_names, DECLARED)) | {
        "gradio_client",
        "httpx",
        "fsspec",
        "pandas",
        "sounddevice",
    }  # installed by gradio and datasets; sounddevice is only for examples/live.py
    assert {name: file for name, file in imports(files).items() if name not in known} == {}


@pytest.mark.parametrize("part", DECLARED)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pinned_versions_are_within_the_declared_ranges(part, python):
    """For each Python version, since pins may depend on it."""
    wanted = declared(part)
    chosen = [pin for pin in pins(part) if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    assert sorted(normal(pin.name) for pin in chosen) == sorted(wanted)
    for pin in chosen:
        (exact,) = pin.specifier
        assert exact.operator == "==" and exact.version in wanted[normal(pin.name)].specifier, pin


def test_the_ranges_admit_only_versions_of_torch_that_work_together():
    ranges = declared("requirements")
    found = admitted(*(ranges[name].specifier for name in ("torch", "torchvision", "torchaudio")))
    assert found == {
        (torch, vision, audio)
        for torch, (visions, audios) in WORKING.items()
        for vision in visions
        for audio in audios
    }


def test_the_pinned_versions_of_torch_work_together():
    pinned = {pin.name: pin.specifier for pin in pins("requirements")}
    ((torch, vision, audio),) = admitted(*(pinned[name] for name in ("torch", "torchvision", "torchaudio")))
    assert vision in WORKING[torch][0] and audio in WORKING[torch][1]


@pytest.mark.parametrize(
    ("torch", "vision", "audio"),
    [
        (">=2.11,<2.12", ">=0.26,<0.27", ">=2.11,<2.12"),  # torchaudio 2.11.1 does not work with it
        (">=2.12,<2.16", ">=0.27,<0.30", ">=2.11.1,<2.12"),
        (">=2.13", ">=0.28", ">=2.11.1"),
    ],
)
def test_other_ranges_would_admit_versions_that_fail_together(torch, vision, audio):
    found = admitted(*map(SpecifierSet, (torch, vision, audio)))
    assert any(torch not in WORKING or audio not in WORKING[torch][1] for torch, _, audio in found)


def test_the_installed_torch_torchvision_and_torchaudio_work_together():
    """In one process, as transformers imports them. A torchaudio or torchvision built for another torch fails when its
    compiled code is loaded or one of its operators is looked up."""
    torchvision = pytest.importorskip("torchvision")
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    import transformers.audio_utils  # noqa: F401

    try:
        importlib.metadata.version("torchaudio")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchaudio is not installed")
    import torchaudio

    tone = torch.sin(torch.arange(4410) / 10)
    filtered = torchaudio.functional.lowpass_biquad(tone, 44_100, 8_000)  # runs compiled code
    assert torchaudio.functional.resample(filtered, 44_100, 16_000).shape == (1600,)


def test_every_module_and_package_is_installed():
    assert set(SETUPTOOLS["py-modules"]) == {path.stem for path in ROOT.glob("*_maxmvit.py")}
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ser").rglob("*.py")}
    assert set(SETUPTOOLS["packages"]) == packages | {"ser.recipes", "ser.weights"}


def test_every_command_has_a_script():
    modules = (ROOT / "ser" / "commands").glob("*.py")
    commands = {f"ser.commands.{path.stem}" for path in modules if "def command() -> int" in path.read_text()}
    assert {target.removesuffix(":command") for target in PROJECT["scripts"].values()} == commands


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(distributions, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    soundfile.write(elsewhere / "voice.wav", voice(0.5), 44_100)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--quiet"]
    subprocess.run([*pip, "--target", installed, distributions.wheel], check=True)

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, installed / "bin" / command, *arguments],
            cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
        )  # fmt: skip

    answered = run("ser-predict", "voice.wav")
    labels = json.loads((ROOT / "weights" / "ravdess" / "config.json").read_text())["id2label"]
    assert answered.stdout.splitlines()[0] == f"file,prediction,{','.join(labels.values())}", answered.stderr
    assert answered.stdout.splitlines()[1].startswith("voice.wav,") and answered.returncode == 0, answered.stderr
    # A missing recipe is reported before a misspelt option.
    for recipe, message in (("demo", "unknown option --learning-rat"), ("nothing", "configs/nothing.yaml")):
        refused = run("ser-train", f"configs/{recipe}.yaml", "--learning-rat", "3")
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


class Distributions(NamedTuple):
    tracked: set[str]
    """Files that git tracks."""
    packed: set[str]
    """Files of the source distribution."""
    wheel: Path
    """The wheel built from the source distribution."""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Distributions:
    pytest.importorskip("setuptools", minversion="77", reason="pip install -r requirements-dev.txt")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    folder = tmp_path_factory.mktemp("distributions")
    for name in tracked:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)

    def build(kind: str, source: Path) -> Path:
        code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
        built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        return folder / built.stdout.splitlines()[-1]

    with tarfile.open(build("sdist", folder / "source")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    packed = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    return Distributions(tracked, packed, build("wheel", unpacked))


@pytest.mark.slow
def test_the_source_distribution_holds_the_tracked_files(distributions):
    tracked, packed = distributions.tracked, distributions.packed
    assert tracked - packed == set()
    generated = {"PKG-INFO", "setup.cfg", *(name for name in packed if name.startswith("maxmvit_mlp.egg-info/"))}
    assert packed - tracked == generated


@pytest.mark.slow
def test_the_metadata_of_the_wheel_names_authors_keywords_and_licences(distributions):
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {"docs/streaming.md", "tests/helpers/tiny.py", "benchmarks/features.py"}.isdisjoint(names)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    lines = metadata.splitlines()
    for line in (
        "Author: MaxMViT-MLP developers",
        f"Keywords: {','.join(PROJECT['keywords'])}",
        "License-Expression: MIT AND CC-BY-NC-SA-4.0",
        "License-File: LICENSE",
        *(f"License-File: weights/{name}" for name in LICENCES),
        "Description-Content-Type: text/markdown",
        f"Project-URL: Paper, https://doi.org/{cited['preferred-citation']['doi']}",
    ):
        assert line in lines
    assert cited["keywords"] == PROJECT["keywords"]
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert (ROOT / "README.md").read_text().splitlines()[0] in lines
    for name in ("licenses/LICENSE", *(f"licenses/weights/{name}" for name in LICENCES)):
        assert f"maxmvit_mlp-{PROJECT['version']}.dist-info/{name}" in names


def test_the_licence_texts_are_those_of_the_licence_expression():
    texts = {"MIT": "LICENSE", "CC-BY-NC-SA-4.0": "weights/ravdess_small/LICENSE"}
    assert PROJECT["license"].split(" AND ") == list(texts)
    first = {name: (ROOT / path).read_text().splitlines()[0] for name, path in texts.items()}
    assert first == {
        "MIT": "MIT License",
        "CC-BY-NC-SA-4.0": "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International",
    }


def test_the_supported_pythons_are_those_that_are_tested():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    stated = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert tested == stated
    assert f">={min(stated, key=Version)}" == PROJECT["requires-python"]


def test_one_version_is_stated_everywhere():
    stated = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert PROJECT["version"] == stated == changes[1]


def test_the_layout_in_the_readme_matches_the_tree():
    drawn = (ROOT / "README.md").read_text().partition("\n## The code\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", drawn)) - {"ser/", "ser/data/corpora/"}
    there = {path.name for path in ROOT.glob("*.py")}
    there |= {f"ser/{path.name}" for path in (ROOT / "ser").glob("*.py") if path.name != "__init__.py"}
    there |= {f"ser/{path.parent.name}/" for path in (ROOT / "ser").glob("*/__init__.py")}
    assert named == there
