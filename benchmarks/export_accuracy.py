"""A checkpoint's ONNX files beside its pipeline: how large, how far away, and where the time goes.

    python -m benchmarks.export_accuracy MODEL RAVDESS [--clips 100] [--lengths 0.5 10] [--forms float32 fp16 int8]

Of each form, with front end, for waveforms of any length: its size, the largest difference of a probability over real
clips of so many seconds, and how many labels differ. Then the shares of the first form's time in onnxruntime by
operator, one thread. Needs requirements-export.txt.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from audio_maxmvit import read_audio
from benchmarks.results import add_json, write_results
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.export.onnx import Form, build, save
from ser.models import load_pipeline

LENGTHS_S = (0.5, 10.0)  # of the shortest and the longest stretch
SHORTEST_CLIP_S = 2.9  # of RAVDESS
MOST_OPERATORS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder, or its name on the Hugging Face Hub")
    parser.add_argument("ravdess", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--lengths", type=float, nargs=2, default=LENGTHS_S, help="seconds, shortest and longest")
    parser.add_argument("--forms", nargs="+", choices=("float32", "fp16", "int8"), default=["float32", "fp16", "int8"])
    add_json(parser)
    args = parser.parse_args()
    classify = load_pipeline(args.model, "cpu")
    clips = stretches_of_speech(args.ravdess, args.clips, classify.feature_extractor.sampling_rate, args.lengths)
    expected = np.stack([answer(classify, clip) for clip in clips])
    start = time.perf_counter()
    _, graph = build(classify, Form(window_s=None, front_end=True, quantize=None, opset=20))
    seconds = time.perf_counter() - start
    print(f"built in {seconds:.0f} s; {len(clips)} clips, {len(set(expected.argmax(1)))} labels among the answers")
    print("| form | MiB | largest difference | other labels |\n|---|---|---|---|")
    figures: dict[str, dict[str, float]] = {}
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in args.forms:
            path = Path(folder, f"{form}.onnx")
            save(graph, path, None if form == "float32" else form)
            own, took = answers_of(path, clips, Path(folder, form))
            shares = shares or took
            figures[form] = {
                "size_mib": path.stat().st_size / 2**20,
                "largest_difference": float(np.abs(own - expected).max()),
                "other_labels": int((own.argmax(1) != expected.argmax(1)).sum()),
            }
            size, difference, others = figures[form].values()
            print(f"| {form} | {size:.1f} | {difference:.1e} | {others:.0f} |", flush=True)
    print(f"\ntime of {args.forms[0]} in onnxruntime by operator:")
    print(", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:MOST_OPERATORS]))
    write_results(args.json, {"build_s": seconds, "forms": figures, "shares_of_time": shares})


def stretches_of_speech(
    ravdess: Path, count: int, sampling_rate: int, lengths_s: Sequence[float] = LENGTHS_S
) -> list[np.ndarray]:
    """Real clips strung together and cut to lengths from the first to the second, each from another place."""
    files = sorted(ravdess.glob("Actor_*/*"))
    strung = 2 + int(lengths_s[1] / SHORTEST_CLIP_S)  # one more, since a stretch may begin 0.6 s after the first
    found = []
    for number, seconds in enumerate(np.linspace(lengths_s[0], lengths_s[1], count)):
        some = [files[(14 * number + further) % len(files)] for further in range(strung)]
        speech = np.concatenate([read_audio(path, sampling_rate) for path in some])
        start = sampling_rate // 10 * (number % 7)
        found.append(speech[start : start + round(seconds * sampling_rate)])
    return found


def answer(classify: MaxMViTAudioClassificationPipeline, clip: np.ndarray) -> np.ndarray:
    """`(labels,)`: the pipeline's scores of a clip taken as one, in the order of the model's labels."""
    rate = classify.feature_extractor.sampling_rate
    rows = classify(clip, sampling_rate=rate, window_s=None, silence_db=None, top_k=None)
    scores = {row["label"]: row["score"] for row in rows}
    return np.array([scores[label] for label in classify.model.config.id2label.values()])


def answers_of(path: Path, clips: list[np.ndarray], profile: Path) -> tuple[np.ndarray, dict[str, float]]:
    """`(clips, labels)` probabilities of a file, and the share of time of each operator, the largest first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = True, str(profile)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    own = np.concatenate([session.run(["probabilities"], {"waveform": clip[None]})[0] for clip in clips])
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return own, {name: microseconds / spent.total() for name, microseconds in spent.most_common()}


if __name__ == "__main__":
    main()
