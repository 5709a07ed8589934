"""The files of a Hugging Face Space, made as in docs/space.md: the page starts alone and classifies a clip."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import yaml
from packaging.requirements import Requirement

from ser.data.corpora.demo import SAMPLING_RATE, synthesize_clip
from ser.models import load_pipeline

pytest.importorskip("gradio", reason="gradio is not installed (pip install -r requirements-app.txt)")
from gradio_client import Client, handle_file  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "space.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    """Makes the folder of the Space by the first block of commands, with the README.md of docs/space.md."""
    clone = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if not path.name.startswith((".", "out")):
            (clone / path.name).symlink_to(path)
    make, *_ = blocks("bash")
    subprocess.run(["bash", "-euc", make], cwd=clone, check=True)
    (readme,) = blocks("markdown")
    (clone / "space" / "README.md").write_text(readme, encoding="utf-8")
    return clone / "space"


def test_the_front_matter_names_the_page_and_its_gradio(space):
    metadata = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert metadata["sdk"] == "gradio" and (space / metadata["app_file"]).is_file()
    pinned = [Requirement(line) for line in (space / "requirements.txt").read_text().splitlines()]
    required = {line.strip() for name in ("requirements", "requirements-app")
             for line in (ROOT / f"{name}.txt").read_text().splitlines() if line[0] not in "#-"}  # fmt: skip
    assert len(pinned) == len(required) and {str(Requirement(line)) for line in required} == {*map(str, pinned)}
    assert f"gradio=={metadata['sdk_version']}" in required
    (oldest,) = re.findall(r"requires-python = \">=([\d.]+)\"", (ROOT / "pyproject.toml").read_text())
    assert tuple(map(int, metadata["python_version"].split("."))) >= tuple(map(int, oldest.split(".")))
    assert not any(path.is_symlink() for path in space.rglob("*"))


def clip(folder: Path) -> Path:
    if "SER_RAVDESS_DIR" in os.environ:
        return sorted(Path(os.environ["SER_RAVDESS_DIR"]).glob("Actor_*/*"))[700]
    soundfile.write(folder / "clip.wav", synthesize_clip("angry", 3, 0), SAMPLING_RATE)
    return folder / "clip.wav"


def test_the_space_starts_alone_and_classifies_a_clip(space, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": port, "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SER_MODEL")}
    address, path = f"http://127.0.0.1:{port}", clip(tmp_path)
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(
            [sys.executable, "-u", "app.py"],
            cwd=space,
            env=environment | server,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            shown = _client(address, process, tmp_path / "log").predict(handle_file(path), 3.0, 3.0, api_name="/show")
        finally:
            process.kill()
    scores = {each["label"]: each["confidence"] for each in shown[1]["confidences"]}
    expected = {row["label"]: row["score"] for row in load_pipeline(None, "cpu")(str(path))}
    assert scores == pytest.approx(expected, abs=1e-3)


def _client(address: str, process: subprocess.Popen, log: Path) -> Client:
    deadline = time.monotonic() + 120
    while address not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return Client(address, verbose=False, download_files=False)
