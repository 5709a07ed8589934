"""Models in PyTorch and as ONNX files: their speed and memory on a CPU, and the accuracy of the files.

    python -m benchmarks.export speed MODEL [--batches 1 8] [--threads 1 2] [--rounds 5] [--seconds 3]
    python -m benchmarks.export speed MODEL --calibration CLIPS --test CLIPS
    python -m benchmarks.export accuracy MODEL RAVDESS [--clips 100] [--lengths 0.5 10] [--forms float32 fp16 int8]

Both need onnxruntime (requirements-dev.txt or requirements-export.txt).
"""

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

# Heavy modules are imported where they are used: each side of `speed` is a process that imports this file, and only
# what the side needs may count in its memory and in the time to its first prediction.

ALONE = ("eager", "channels_last", "bfloat16", "torch.compile")
PADDED = "padded to 30 s"
WHOLE = ("pipeline", "onnxruntime", PADDED)
FORMS = ("float32", "fp16", "int8")
LENGTHS_S = (0.5, 10.0)  # of the shortest and the longest crop
MOST_OPERATORS = 8
SPEED = """Measures speed and memory of a model on a CPU: PyTorch in several settings, and onnxruntime.

The first table is of the model alone, on prepared images. The second is from waveforms of --seconds to predictions; it
adds the speed of one core relative to real time, and the seconds to the first prediction of a process that has
imported nothing. A model with a speech encoder has the second table only, for one clip at a time; with a Whisper
encoder, `padded to 30 s` is the pipeline with every clip padded as in transformers, instead of the encoder on the
length of the clip. Each side runs in a separate process, so that its peak memory can be measured, and takes turns with
the others. Figures are medians over rounds: milliseconds per clip of wall-clock time and of core time, which other
work on the machine changes less. --calibration (training clips: files, a folder, or a .csv list of files) adds a side
with static int8; --test (clips with labels, in folders named after them or in a list) adds the UA of every side."""
ACCURACY = """Compares a checkpoint's ONNX files with its pipeline: size, predictions, and the time of each operator.

For each form, with front end and for waveforms of any length, the command prints the size, the largest difference of a
probability over real clips (of 0.5 to 10 s, see --lengths), and how many labels differ; then the share of each
operator in the time of the first form in onnxruntime, with one thread."""
Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], np.ndarray]


@dataclass
class Work:
    """Input of every side: the checkpoint, the files of onnxruntime's sides, and labelled images."""

    model: str
    files: dict[str, Path]
    test: list[tuple[Inputs, int]]


def main() -> None:
    from benchmarks.results import add_command, parser_of, run

    parser, commands = parser_of(__doc__)
    speed = add_command(commands, "speed", measure_speed, SPEED)
    accuracy = add_command(commands, "accuracy", measure_accuracy, ACCURACY)
    for each in (speed, accuracy):
        each.add_argument("model", help="checkpoint folder, or its name on the Hugging Face Hub")
    speed.add_argument("--sides", nargs="+", help="names of the sides to measure, as in the tables (default: all)")
    speed.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    speed.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    speed.add_argument("--rounds", type=int, default=5)
    speed.add_argument("--seconds", type=float, default=3.0, help="length of each waveform (default 3)")
    speed.add_argument("--calibration", help="clips that calibrate static int8")
    speed.add_argument("--test", help="clips with labels, for UA")
    accuracy.add_argument("ravdess", type=Path)
    accuracy.add_argument("--clips", type=int, default=100)
    accuracy.add_argument("--lengths", type=float, nargs=2, default=LENGTHS_S, help="seconds, shortest and longest")
    accuracy.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    run(parser)


# --- speed and memory ---


def measure_speed(args: argparse.Namespace) -> dict[str, object]:
    import torch

    from ser.models import load_pipeline

    classify = load_pipeline(args.model, "cpu")
    figures: dict[str, Any] = {}
    encoder = classify.model.config.speech_encoder_config
    if encoder is not None:
        args.batches = [1]
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(classify, Path(folder), args)
        alone = [] if encoder is not None else [*ALONE, *(name for name in files if name != WHOLE[1])]
        whole = [side for side in WHOLE if side != PADDED or encoder and encoder["model_type"] == "whisper"]
        if alone and not torch.cpu._is_avx512_bf16_supported():
            print("bfloat16 is left out: this processor has no instructions for it.")
            alone.remove("bfloat16")
        work = Work(args.model, files, [] if args.test is None else labelled_images(classify, args.test))
        noise = np.random.default_rng(0)
        shape = (1, 3, *np.broadcast_to(classify.feature_extractor.image_size, 2))
        images = {name: noise.normal(size=shape).astype(np.float32) for name in names_of(classify)}
        samples = round(args.seconds * classify.feature_extractor.sampling_rate)
        waveform = noise.normal(scale=0.1, size=(1, samples)).astype(np.float32)
        for title, sides, inputs in (
            ("the model alone, on images", alone, images),
            (f"from waveforms of {args.seconds:g} s", whole, {"waveform": waveform}),
        ):
            wanted = [side for side in sides if is_wanted(side, args)]
            if wanted:
                figures[title] = time_sides(wanted, work, inputs, args)
                if "waveform" in inputs:
                    add_speed(figures[title], args)
                print(f"\n{title}, ms a clip and of core time")
                print_table(figures[title])
    return {"load_before": os.getloadavg()[0], **figures}


def write_files(classify: Any, folder: Path, args: argparse.Namespace) -> dict[str, Path]:
    """Writes the file of each side of onnxruntime, the model in each number format and the model with its front end;
    returns {side: path}."""
    from ser.export.onnx import Form, build, save

    kinds = {f"onnxruntime {name}": name for name in FORMS}
    if args.calibration is not None:
        kinds["onnxruntime static int8"] = "static"
    has_speech = classify.model.config.speech_encoder is not None
    kinds = {side: kind for side, kind in kinds.items() if is_wanted(side, args) and not has_speech}
    files = {side: folder / f"{kind}.onnx" for side, kind in kinds.items()}
    if kinds:
        _, graph = build(classify, Form(window_s=None, front_end=False, quantize=None, opset=20))
        for kind, path in zip(kinds.values(), files.values(), strict=True):
            if kind == "static":
                save(graph, folder / "calibrated.onnx", None)
                quantize_statically(folder / "calibrated.onnx", path, classify, args.calibration)
            else:
                save(graph, path, None if kind == "float32" else kind)
    if is_wanted(WHOLE[1], args):
        files[WHOLE[1]] = folder / "whole.onnx"
        _, graph = build(classify, Form(window_s=None, front_end=True, quantize=None, opset=20))
        save(graph, files[WHOLE[1]], None)
    return files


def add_speed(found: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    """Adds the seconds of audio that one core classifies per second, with the first batch size."""
    for row in found.values():
        for threads in args.threads:
            milliseconds = row[f"core, {threads} thr., batch {args.batches[0]}"]
            row[f"x real time, {threads} thr."] = 1e3 * args.seconds / milliseconds


def is_wanted(side: str, args: argparse.Namespace) -> bool:
    return args.sides is None or side in args.sides


def quantize_statically(source: Path, path: Path, classify: Any, calibration: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    from ser.inference.predictions import find_items

    images = [images_of(classify, item.file) for item in find_items([calibration], labels_of(classify))]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> Inputs | None:
            return next(self.left, None)

    # Without VNNI, sums of products of 8-bit numbers overflow unless the weights have 7 bits.
    quantize_static(source, path, Reader(), per_channel=True, reduce_range=True)


def labelled_images(classify: Any, source: str) -> list[tuple[Inputs, int]]:
    from ser.inference.predictions import find_items

    labels = labels_of(classify)
    items = find_items([source], labels)
    return [(images_of(classify, item.file), labels.index(item.label)) for item in items if item.label]


def images_of(classify: Any, path: str) -> Inputs:
    """Returns the images of a clip, `(1, 3, height, width)` for each branch."""
    from audio_maxmvit import read_audio

    extractor = classify.feature_extractor
    waveform = read_audio(path, extractor.sampling_rate)
    images = extractor(waveform, sampling_rate=extractor.sampling_rate)
    return {name: images[name] for name in names_of(classify)}


def labels_of(classify: Any) -> list[str]:
    return [classify.model.config.id2label[index] for index in range(classify.model.config.num_labels)]


def names_of(classify: Any) -> list[str]:
    return [f"{name}_values" for name in classify.model.branches()]


def time_sides(
    sides: Sequence[str], work: Work, inputs: Inputs, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Returns, by side, the milliseconds per clip for each number of threads and batch size, the peak memory, and the
    UA if there are labelled images."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for side in sides:
        here, there = context.Pipe()
        process = context.Process(target=work_on, args=(there, side, work, inputs), daemon=True)
        process.start()
        workers[side] = (process, here)
        here.recv()  # the model is loaded
    found: dict[str, dict[str, float]] = {side: {} for side in sides}
    for threads in args.threads:
        for batch in args.batches:
            times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
            for _ in range(args.rounds + 1):  # the first warms up
                for side, (_, connection) in workers.items():
                    connection.send((threads, batch))
                    times[side].append(connection.recv())
            for side, taken in times.items():
                wall, busy = np.median(taken[1:], axis=0) / batch
                found[side][f"{threads} thr., batch {batch}"] = 1e3 * float(wall)
                found[side][f"core, {threads} thr., batch {batch}"] = 1e3 * float(busy)
    for side, (process, connection) in workers.items():
        connection.send(None)
        found[side] |= connection.recv()
        process.join()
    return found


def work_on(connection: Connection, side: str, work: Work, inputs: Inputs) -> None:
    """Runs a side in its process: sends "ready", then the seconds of each requested batch, and at the end its peak
    memory and UA."""
    begin = time.perf_counter()
    make = of_file(work.files[side]) if side in work.files else of_torch(side, work.model)
    first = time.perf_counter() - begin
    connection.send("ready")
    run, made_for, has_predicted = None, 0, False
    while (requested := connection.recv()) is not None:
        begin = time.perf_counter()
        if run is None or requested[0] != made_for:
            run, made_for = make(requested[0]), requested[0]
        batch = {name: values.repeat(requested[1], axis=0) for name, values in inputs.items()}
        start, busy = time.perf_counter(), time.process_time()
        run(batch)
        end, busy = time.perf_counter(), time.process_time() - busy
        if not has_predicted:
            first, has_predicted = first + end - begin, True
        connection.send((end - start, busy))
    figures = {"peak, MiB": peak_mib()}
    if "waveform" in inputs:
        figures["first answer, s"] = first
    if run is not None and work.test and side not in WHOLE:
        from ser.evaluation.metrics import confusion_matrix, scores_from_confusion

        truth = [label for _, label in work.test]
        scores = [run(images)[0] for images, _ in work.test]
        matrix = confusion_matrix(truth, np.argmax(scores, axis=1).tolist(), len(scores[0]))
        figures["UA"] = float(scores_from_confusion(matrix)["UA"])
    connection.send(figures)


def peak_mib() -> float:
    """Returns the peak memory of this process (that of `getrusage` includes its parent's), or NaN without /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), math.nan)


def of_file(path: Path) -> Callable[[int], Run]:
    """Returns a function from a number of threads to a function that runs a file in onnxruntime."""
    import onnxruntime

    def make(threads: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(["logits"], inputs)[0]

    return make


def of_torch(side: str, checkpoint: str) -> Callable[[int], Run]:
    """Returns a function from a number of threads to a function that runs a checkpoint in PyTorch."""
    import torch

    from ser.models import load_pipeline

    classify = load_pipeline(checkpoint, "cpu")
    rate, model = classify.feature_extractor.sampling_rate, classify.model
    prepare_side(classify, side)
    if side == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    elif side == "bfloat16":
        model = model.bfloat16()
    elif side == "torch.compile":
        model = torch.compile(model)

    @torch.no_grad()
    def run(inputs: Inputs) -> np.ndarray:
        if side in WHOLE:
            predictions = classify(list(inputs["waveform"]), sampling_rate=rate, window_s=None)
            return np.array([[row["score"] for row in rows] for rows in predictions])
        return model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits.float().numpy()

    def make(threads: int) -> Run:
        torch.set_num_threads(threads)
        return run

    return make


def prepare_side(classify: Any, side: str) -> None:
    """Changes the pipeline to compute as the side does; sides of the model alone do not change it."""
    if side == PADDED:
        classify.feature_extractor.waveform_inputs = partial(padded_to_30_s, classify.feature_extractor)


def padded_to_30_s(extractor: Any, spectrograms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns a Whisper encoder's inputs as transformers computes them: padded to 30 s, without a mask of padding."""
    import torch

    from feature_extraction_maxmvit import WAVEFORM, make_processor

    processor = make_processor(extractor.speech_processor)
    waveforms = [extractor.trim(clip)[WAVEFORM].numpy() for clip in spectrograms]
    values = processor(waveforms, sampling_rate=processor.sampling_rate, return_tensors="pt")["input_features"]
    return {"input_values": values, "attention_mask": torch.ones(len(values), values.shape[-1], dtype=torch.long)}


def print_table(found: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(found.values())))
    print(f"{'':24}", *(f"{column:>22}" for column in columns))
    for side, row in found.items():
        print(f"{side:24}", *(f"{row[column]:22.4g}" for column in columns), flush=True)


# --- accuracy of the files ---


def measure_accuracy(args: argparse.Namespace) -> dict[str, object]:
    from ser.export.onnx import Form, build, save
    from ser.models import load_pipeline

    classify = load_pipeline(args.model, "cpu")
    clips = crops_of_speech(args.ravdess, args.clips, classify.feature_extractor.sampling_rate, args.lengths)
    expected = np.stack([pipeline_scores(classify, clip) for clip in clips])
    start = time.perf_counter()
    _, graph = build(classify, Form(window_s=None, front_end=True, quantize=None, opset=20))
    seconds = time.perf_counter() - start
    print(f"built in {seconds:.0f} s; {len(clips)} clips, {len(set(expected.argmax(1)))} labels among the predictions")
    print("| form | MiB | largest difference | other labels |\n|---|---|---|---|")
    figures: dict[str, dict[str, float]] = {}
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in args.forms:
            path = Path(folder, f"{form}.onnx")
            save(graph, path, None if form == "float32" else form)
            own, took = profiled_scores(path, clips, Path(folder, form))
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
    return {"build_s": seconds, "forms": figures, "shares_of_time": shares}


def crops_of_speech(
    ravdess: Path, count: int, sampling_rate: int, lengths_s: Sequence[float] = LENGTHS_S
) -> list[np.ndarray]:
    """Returns `count` crops of joined real clips, of lengths from the first to the second, each from other clips."""
    from audio_maxmvit import read_audio

    files = sorted(ravdess.glob("Actor_*/*"))
    found = []
    for number, seconds in enumerate(np.linspace(lengths_s[0], lengths_s[1], count)):
        start = sampling_rate // 10 * (number % 7)
        end = start + round(seconds * sampling_rate)
        speech, file = np.zeros(0, np.float32), 14 * number
        while len(speech) < end:
            speech = np.concatenate([speech, read_audio(files[file % len(files)], sampling_rate)])
            file += 1
        found.append(speech[start:end])
    return found


def pipeline_scores(classify: Any, clip: np.ndarray) -> np.ndarray:
    """Returns the pipeline's scores of a whole clip, `(labels,)`, in the order of the model's labels."""
    rate = classify.feature_extractor.sampling_rate
    rows = classify(clip, sampling_rate=rate, window_s=None, silence_db=None, top_k=None)
    scores = {row["label"]: row["score"] for row in rows}
    return np.array([scores[label] for label in classify.model.config.id2label.values()])


def profiled_scores(path: Path, clips: list[np.ndarray], profile: Path) -> tuple[np.ndarray, dict[str, float]]:
    """Returns a file's probabilities, `(clips, labels)`, and the share of time of each operator, the largest first."""
    import onnxruntime

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
