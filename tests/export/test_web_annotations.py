"""The page without a server writes the same annotation files as app.py, byte for byte. Needs node and
requirements-app.txt."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import parselmouth
import pytest

from pipeline_maxmvit import SILENCE

pytest.importorskip("gradio", reason="gradio is not installed (pip install -r requirements-app.txt)")
from ser.commands.app import FORMATS, write_files  # noqa: E402

WEB = Path(__file__).parents[2] / "web"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed (apt-get install nodejs)")

SCRIPT = """
import { toCsv, toSrt, toTextGrid } from "MODULE";
const { rows, labels } = JSON.parse(await new Response(process.stdin).text());
const files = { TextGrid: toTextGrid(rows, labels), SRT: toSrt(rows, labels), CSV: toCsv(rows, labels) };
process.stdout.write(JSON.stringify(files));
"""


def by_javascript(rows: list[dict], labels: list[str]) -> dict[str, str]:
    script = SCRIPT.replace("MODULE", (WEB / "annotations.js").as_uri())
    given = json.dumps({"rows": rows, "labels": labels})
    command = [str(NODE), "--input-type=module", "--eval", script]
    run = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", check=True)
    return json.loads(run.stdout)


def by_python(rows: list[dict], labels: list[str], folder: Path) -> dict[str, str]:
    timeline = []
    for row in rows:
        scores = dict(zip(labels, row["scores"] or (), strict=bool(row["scores"])))
        label = max(scores, key=scores.__getitem__) if scores else SILENCE
        times = {name: round(row[name], 3) for name in ("start", "end")}
        timeline.append(times | {"label": label, "scores": scores})
    paths = write_files(timeline, folder, "talk.wav")
    return {name: Path(path).read_bytes().decode() for name, path in zip(FORMATS, paths, strict=True)}


def random_rows(seed: int, rate: int, labels: list[str]) -> list[dict]:
    """Returns windows as the page makes them: the last ends with the recording, which has any number of samples."""
    rng = random.Random(seed)
    size, samples = rng.randrange(rate // 2, 4 * rate), rng.randrange(5 * rate, 4000 * rate)
    hop = max(rng.randrange(size // 4, size), (samples - size) // 60)
    starts = [*range(0, samples - size, hop), samples - size]
    rows = []
    for start in starts:
        scores = [rng.random() ** 4 for _ in labels]
        scores = [score / sum(scores) for score in scores]
        if rng.random() < 0.5 and rows:
            scores = rows[-1]["scores"]  # the label continues
        rows.append({"start": start / rate, "end": (start + size) / rate, "scores": scores})
        if rng.random() < 0.15:
            rows[-1]["scores"] = None
    rows[len(rows) // 2]["scores"] = [1.0] + [0.0] * (len(labels) - 1)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("labels", [["angry", "happy", "neutral"], ['a "quoted" one', "traurig, größer", "sad"]])
def test_files_are_those_of_the_page_with_a_server(labels, rate, tmp_path):
    for seed in range(3):
        rows = random_rows(seed, rate, labels)
        assert by_javascript(rows, labels) == by_python(rows, labels, tmp_path)


def test_values_halfway_between_two_are_rounded_as_in_python(tmp_path):
    labels = ["happy", "sad"]
    scores = [[0.0625, 0.9375], [0.8125, 0.1875], [0.9921875, 0.0078125], None, [0.3125, 0.6875], [0.0, 1.0]]
    rows = [{"start": k + 0.0625, "end": k + 2.1875, "scores": each} for k, each in enumerate(scores)]
    found = by_javascript(rows, labels)
    assert found == by_python(rows, labels, tmp_path)
    assert "0.062,2.188,sad,0.062500,0.937500" in found["CSV"] and "0.992188,0.007812" in found["CSV"]
    assert 'text = "0.938"' in found["TextGrid"] and "00:00:00,062 --> " in found["SRT"]


def test_praat_opens_the_textgrid(tmp_path):
    labels = ['a "quoted" one', "sad"]
    rows = [{"start": 2.0 * k, "end": 2.0 * k + 2, "scores": [0.9, 0.1] if k < 3 else [0.25, 0.75]} for k in range(5)]
    path = tmp_path / "talk.TextGrid"
    path.write_text(by_javascript(rows, labels)["TextGrid"], encoding="utf-8")
    grid = parselmouth.read(str(path))
    intervals = [[parselmouth.praat.call(grid, "Get label of interval", tier, k) for k in (1, 2)] for tier in (1, 2)]
    assert intervals == [labels, ["0.900", "0.750"]]
    assert parselmouth.praat.call(grid, "Get end time of interval", 1, 1) == 6
