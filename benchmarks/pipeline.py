"""The pipeline: its overhead over the model, long recordings by windows and by turns, and streamed recordings.

    python -m benchmarks.pipeline overhead [CHECKPOINT]
    python -m benchmarks.pipeline long_recording CHECKPOINT RAVDESS [--figure timeline.png]
    python -m benchmarks.pipeline demo out/demo
    python -m benchmarks.pipeline segments [--model MODEL] [--minutes 60] [--turns 1000] [--window 3]
    python -m benchmarks.pipeline live [RAVDESS] [--model MODEL] [--minutes 2 10] [--window 3] [--hop 1]

UA along joined recordings, and by the number of their clips, is in `benchmarks.long_recordings`.
"""

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch

import pipeline_maxmvit
from audio_maxmvit import read_audio, stream_audio
from benchmarks.results import add_command, add_ravdess, parser_of, run, speakers_of
from configuration_maxmvit import MaxMViTConfig
from modeling_maxmvit import MaxMViTForAudioClassification
from pipeline_maxmvit import SILENCE, MaxMViTAudioClassificationPipeline
from ser.models import load_pipeline

# The demo corpus and plots are imported where they are used: `long_recording` and `live` measure memory.

SMALL = {
    "cqt_backbone_kwargs": {"embed_dim": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "stem_width": 16,
                            "head_hidden_size": 256},
    "mel_backbone_kwargs": {"depths": [1, 1, 2, 1], "embed_dim": 32, "num_heads": 1},
    "image_size": 128,
    "num_labels": 8,
}  # fmt: skip
RATE = 48_000
CODES = {"angry": "05", "calm": "02"}
CLIPS = 5  # of each emotion and voice in the demo corpus
NEAR_S = 1.0
LONGEST_CHUNK_S = 2.0  # of a streamed recording
WARM_S = 60
OVERHEAD = """Measures the overhead of the pipeline; the target is at most 10 %.

The same batches of features are run through the bare model and through pipeline("audio-classification") in turn. The
default checkpoint is the model of configs/ravdess_small.yaml with random weights."""
LONG_RECORDING = """Tests the pipeline on an hour of RAVDESS whose first half is angry and whose second half is calm.

docs/timeline.png is the plot of --window 3 --hop 1. The default actors are those of the checkpoint's test part; their
clips are repeated in random order. The command prints the peak memory of the process for a tenth of the recording and
for all of it, the boundary according to the scores, and the time of the front end with and without cutting windows out
of spectrograms."""
DEMO = """Measures the accuracy of windows along recordings that are concatenated from test voices of the demo corpus.

The checkpoint is that of `python run_ser.py configs/demo.yaml --training_window 2`. There is one recording per test
voice of the run, with all clips of each emotion in succession. A window is correct if it has the emotion at its
centre; windows whose centre is within a second of a change are counted separately, since they contain both
emotions."""
SEGMENTS = """Compares the time to classify an hour by its 1,000 speaker turns with the time to classify it by windows.

The hour is synthetic. The turns last from 0.5 to 6 s at random, and are scaled and spread so that they cover the whole
hour; the windows do not overlap, so that both read every second once. Both are timed in turn, in wall-clock time and
in the CPU time of all threads, which other processes on the machine do not change."""
LIVE = """Compares predictions for a streamed recording with those for the whole one, and measures memory and CPU time.

The recordings are RAVDESS clips of all actors in random order, which arrive in chunks of random length (up to 2 s).
For each recording, the command prints by how much the probabilities differ from those of a call for the whole
recording, the CPU seconds of one thread per second of audio, and the resident memory of the process after the first
minute and its maximum after that, while only the stream is in memory."""


def main() -> None:
    parser, commands = parser_of(__doc__)
    overhead = add_command(commands, "overhead", measure_overhead, OVERHEAD)
    overhead.add_argument("checkpoint", nargs="?")
    overhead.add_argument("--clips", type=int, default=64)
    overhead.add_argument("--batch_size", type=int, default=16)
    overhead.add_argument("--seconds", type=float, default=3.7, help="length of a clip")
    overhead.add_argument("--rounds", type=int, default=5)
    overhead.add_argument("--device", default="cpu")
    recording = add_command(commands, "long_recording", measure_long_recording, LONG_RECORDING)
    recording.add_argument("checkpoint", type=Path)
    recording.add_argument("ravdess", type=Path)
    recording.add_argument("--minutes", type=float, default=60)
    recording.add_argument("--window", type=float, default=3.0)
    recording.add_argument("--hop", type=float, default=3.0)
    recording.add_argument("--smooth", type=int, default=1)
    recording.add_argument("--batch_size", type=int, default=16)
    recording.add_argument("--actors", type=int, nargs="+", help="default: those of the checkpoint's test part")
    recording.add_argument("--figure", default="timeline.png")
    demo = add_command(commands, "demo", measure_demo, DEMO)
    demo.add_argument("checkpoint", type=Path)
    demo.add_argument("--window", type=float, default=2.0)
    demo.add_argument("--hop", type=float, default=1.0)
    segments = add_command(commands, "segments", measure_segments, SEGMENTS)
    segments.add_argument("--model", help="default: the shipped checkpoint")
    segments.add_argument("--minutes", type=float, default=60)
    segments.add_argument("--turns", type=int, default=1000)
    segments.add_argument("--window", type=float, default=3.0)
    segments.add_argument("--batch_size", type=int, default=8)
    segments.add_argument("--device")
    live = add_command(commands, "live", measure_live, LIVE)
    add_ravdess(live)
    live.add_argument("--model", help="default: the shipped checkpoint")
    live.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0])
    live.add_argument("--window", type=float, default=3.0)
    live.add_argument("--hop", type=float, default=1.0)
    live.add_argument("--seed", type=int, default=0)
    run(parser)


# --- overhead ---


def measure_overhead(args: argparse.Namespace) -> dict[str, object]:
    torch.manual_seed(0)
    build = MaxMViTForAudioClassification
    model = build.from_pretrained(args.checkpoint) if args.checkpoint else build(MaxMViTConfig(**SMALL))
    model = model.eval().to(args.device)
    size = model.config.image_size
    batches = [
        {name: torch.rand(len(clips), 3, size, size, device=args.device) for name in ("cqt_values", "mel_values")}
        for clips in torch.arange(args.clips).split(args.batch_size)
    ]
    noise = np.random.default_rng(0).standard_normal(round(args.seconds * Prepared.sampling_rate), dtype=np.float32)
    classify = MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=Prepared(batches), task="audio-classification", device=args.device
    )

    def through_the_model() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(**batch).logits.cpu() for batch in batches]

    def through_the_pipeline() -> list:
        return classify([noise] * args.clips, batch_size=args.batch_size)

    times: dict[str, list[float]] = {"model": [], "pipeline": []}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, predict in (("model", through_the_model), ("pipeline", through_the_pipeline)):
            start = time.perf_counter()
            predict()
            times[name].append(time.perf_counter() - start)
    model_s, pipeline_s = (float(np.median(times[name][1:])) for name in ("model", "pipeline"))
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{args.clips} clips of {args.seconds} s in batches of {args.batch_size}, {parameters:.1f} M parameters, "
          f"images of {size}, {args.device}, median of {args.rounds}")  # fmt: skip
    print(f"model {model_s * 1e3:.1f} ms   pipeline {pipeline_s * 1e3:.1f} ms   "
          f"overhead {100 * (pipeline_s / model_s - 1):+.1f} %")  # fmt: skip
    return {"clips": args.clips, "model_s": model_s, "pipeline_s": pipeline_s}


class Prepared:
    """Stands in for a feature extractor, and returns prepared features batch by batch."""

    sampling_rate = 44_100

    def __init__(self, batches: list[dict[str, torch.Tensor]]):
        self.batches, self.index = batches, 0

    def spectrograms(self, waveforms: list[np.ndarray], device: torch.device) -> list[dict[str, torch.Tensor]]:
        return [{} for _ in waveforms]

    def images(self, spectrograms: list[dict[str, torch.Tensor]], branches: list[str]) -> dict[str, torch.Tensor]:
        self.index += 1
        return self.batches[(self.index - 1) % len(self.batches)]

    def waveform_inputs(self, spectrograms: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {}

    def normalize(self, images: torch.Tensor, branch: str) -> torch.Tensor:
        return images


# --- an hour of speech ---


def measure_long_recording(args: argparse.Namespace) -> dict[str, object]:
    from ser.evaluation.plots import envelope, plot_timeline

    args.actors = [f"{actor:02d}" for actor in args.actors or ()] or speakers_of(args.checkpoint)
    classify = load_pipeline(
        str(args.checkpoint), batch_size=args.batch_size, window_s=args.window, hop_s=args.hop, smooth=args.smooth
    )
    labels = list(classify.model.config.id2label.values())
    if unknown := sorted(CODES.keys() - labels):
        sys.exit(f"error: {args.checkpoint} has the classes {', '.join(labels)}, but not {' or '.join(unknown)}.")
    lengths = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (args.minutes / 10, args.minutes):
            path = Path(folder) / "recording.flac"
            write_recording(path, minutes, args)
            before, start = peak_mib(), time.perf_counter()
            rows = classify(path)
            took, size = time.perf_counter() - start, path.stat().st_size / 2**20
            lengths.append({"minutes": minutes, "windows": len(rows), "took_s": took, "peak_mib": peak_mib()})
            print(f"{minutes:g} minutes, {size:.0f} MiB of flac: {len(rows)} windows in {took:.0f} s, "
                  f"peak memory {before:.0f} -> {peak_mib():.0f} MiB")  # fmt: skip
        rate = classify.feature_extractor.sampling_rate
        print(f"(the decoded recording alone would be {60 * args.minutes * rate * 4 / 2**20:.0f} MiB)")
        step_s = 60 * args.minutes / 2000
        shape = envelope(stream_audio(path, rate), rate, step_s)
        front_end = report_front_end(classify, path, args)
    plot_timeline(rows, shape, step_s, labels).savefig(args.figure)
    border = report_border(rows, args.minutes * 30)
    print(f"wrote {args.figure}")
    return {"recordings": lengths, "front_end_s": front_end, **border}


def report_front_end(
    classify: MaxMViTAudioClassificationPipeline, path: Path, args: argparse.Namespace
) -> dict[str, float]:
    """Times the computation of images of 3 s windows every 1 s from a file: from the waveform of each window, and cut
    out of spectrograms that are computed once, as the pipeline does if windows overlap."""
    seconds, shortest = {}, pipeline_maxmvit.SHORTEST_CUT_S
    extractor = classify.feature_extractor
    for name, threshold in {"windows of waveform": math.inf, "windows of spectrogram": shortest}.items():
        pipeline_maxmvit.SHORTEST_CUT_S = threshold
        started = time.perf_counter()
        for window in classify.preprocess(path, window_s=3.0, hop_s=1.0):
            if isinstance(sound := window["sound"], dict):
                extractor.images([sound])
            elif sound is not None:
                extractor.extract(sound)
        seconds[name] = time.perf_counter() - started
        print(f"front end, {args.minutes:g} minutes, 3 s every 1 s as {name}: {seconds[name]:.1f} s")
    pipeline_maxmvit.SHORTEST_CUT_S = shortest
    print(f"ratio: {seconds['windows of waveform'] / seconds['windows of spectrogram']:.2f}")
    return seconds


def write_recording(path: Path, minutes: float, args: argparse.Namespace) -> None:
    """Writes half of `minutes` of angry clips, then as much of calm clips, piece by piece."""
    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for code in CODES.values():
            clips = [clip for actor in args.actors for clip in args.ravdess.glob(f"Actor_{actor}/03-01-{code}-*")]
            if not clips:
                sys.exit(
                    f"{args.ravdess} holds no clips Actor_NN/03-01-{code}-* of the actors {', '.join(args.actors)}"
                )
            left = round(minutes * 30 * RATE)
            while left:
                waveform = read_audio(random.choice(sorted(clips)), RATE)[:left]
                file.write(waveform)
                left -= len(waveform)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report_border(rows: list[dict], border_s: float) -> dict[str, float]:
    from ser.evaluation.plots import clock

    scored = [row for row in rows if row["label"] != SILENCE]
    centres = np.array([(row["start"] + row["end"]) / 2 for row in scored])
    angry, calm = (np.array([row["scores"][label] for row in scored]) for label in CODES)
    figures = {"border_s": border_s}
    for name, half in (("angry", centres < border_s), ("calm", centres >= border_s)):
        rightly = np.mean((angry > calm)[half] == (name == "angry"))
        named = np.mean([row["label"] == name for row in np.array(scored, dtype=object)[half]])
        figures |= {f"{name}_half_rightly": float(rightly), f"{name}_half_named": float(named)}
        print(f"{name} half: {100 * rightly:.1f} % of windows nearer to {name} than to the other, "
              f"{100 * named:.1f} % named {name}")  # fmt: skip
    evidence = np.log(angry + 1e-6) - np.log(calm + 1e-6)
    before = np.arange(1, len(evidence))  # windows before each possible boundary
    sums = evidence.cumsum()[:-1]
    apart = sums / before - (evidence.sum() - sums) / (len(evidence) - before)
    best = int(np.argmax(before * (len(evidence) - before) * apart**2))  # the step that fits the evidence best
    found = (centres[best] + centres[best + 1]) / 2
    print(f"the boundary is at {clock(border_s)}; according to the scores it is at {clock(found)}")
    return figures | {"border_found_s": float(found)}


# --- voices of the demo corpus ---


def measure_demo(args: argparse.Namespace) -> dict[str, object]:
    from ser.data.corpora.demo import EMOTIONS, SAMPLING_RATE

    voices = speakers_of(args.checkpoint)
    classify = load_pipeline(str(args.checkpoint), batch_size=16, window_s=args.window, hop_s=args.hop)
    correct: dict[str, list[bool]] = {"inside": [], "near a change": []}
    for voice in voices:
        waveform, changes, names = join_clips(int(voice.rpartition("_")[2]))
        for row in classify({"array": waveform, "sampling_rate": SAMPLING_RATE}):
            centre = (row["start"] + row["end"]) / 2
            emotion = names[np.searchsorted(changes, centre)]
            near = np.abs(np.array(changes) - centre).min() < NEAR_S
            correct["near a change" if near else "inside"].append(row["label"] == emotion)
    every = correct["inside"] + correct["near a change"]
    print(f"voices {', '.join(voices)}; {args.window:g} s every {args.hop:g} s; chance {1 / len(EMOTIONS):.2f}")
    for name, hits in {"all windows": every, **correct}.items():
        print(f"{name}: accuracy {np.mean(hits):.3f} over {len(hits)}")
    return {"all": float(np.mean(every)), **{name: float(np.mean(hits)) for name, hits in correct.items()}}


def join_clips(voice: int) -> tuple[np.ndarray, list[float], list[str]]:
    """Returns a recording `(T,)`, the seconds at which its emotion changes, and the emotions in their order."""

    from ser.data.corpora.demo import EMOTIONS, SAMPLING_RATE, synthesize_clip

    names = list(np.random.default_rng(voice).permutation(EMOTIONS))
    parts = [np.concatenate([synthesize_clip(name, voice, take) for take in range(CLIPS)]) for name in names]
    changes = np.cumsum([len(part) for part in parts[:-1]]) / SAMPLING_RATE
    return np.concatenate(parts), changes.tolist(), names


# --- speaker turns ---


def measure_segments(args: argparse.Namespace) -> dict[str, object]:
    from ser.data.corpora.demo import SAMPLING_RATE

    classify = load_pipeline(args.model, args.device, batch_size=args.batch_size)
    sound = demo_speech(60 * args.minutes)
    recording = {"array": sound, "sampling_rate": SAMPLING_RATE}
    turns = spread_turns(args.turns, 60 * args.minutes)
    classify(sound[: 10 * SAMPLING_RATE], sampling_rate=SAMPLING_RATE, window_s=args.window)
    took: dict[str, float] = {}
    for name, options in {"windows": {"window_s": args.window}, "segments": {"segments": turns}}.items():
        started, used = time.perf_counter(), time.process_time()
        rows = classify(recording, **options)
        took[f"{name}_s"], took[f"{name}_cpu_s"] = time.perf_counter() - started, time.process_time() - used
        print(f"{args.minutes:g} minutes as {len(rows):,} {name}: {took[f'{name}_s']:.1f} s, "
              f"{took[f'{name}_cpu_s']:.1f} CPU seconds", flush=True)  # fmt: skip
    ratios = {
        name: took[f"segments{unit}"] / took[f"windows{unit}"]
        for name, unit in (("ratio", "_s"), ("cpu_ratio", "_cpu_s"))
    }
    print(f"ratio: {ratios['ratio']:.2f}, of CPU seconds {ratios['cpu_ratio']:.2f}")
    return {**took, "turns": len(turns), **ratios}


def demo_speech(seconds: float) -> np.ndarray:
    """Returns a recording `(T,)` of the demo's voices, which are repeated."""

    from ser.data.corpora.demo import SAMPLING_RATE, synthesize_clip

    clips = [synthesize_clip(("angry", "sad")[voice % 2], voice, 0) for voice in range(40)]
    return np.resize(np.concatenate(clips), round(seconds * SAMPLING_RATE)).astype(np.float32)


def spread_turns(count: int, seconds: float) -> list[tuple[float, float, str]]:
    """Returns consecutive turns of two speakers that cover `seconds`."""
    lengths = np.random.default_rng(0).uniform(0.5, 6.0, count)
    edges = np.concatenate([[0.0], np.cumsum(lengths)]) * (seconds / lengths.sum())
    return [
        (float(start), float(end), "ab"[index % 2])
        for index, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]


# --- streamed recordings ---


def measure_live(args: argparse.Namespace) -> dict[str, object]:
    clips = sorted(Path(args.data_dir).glob("Actor_*/*"))
    if not clips:
        sys.exit(f"error: {args.data_dir} holds no clips Actor_NN/*: name the folder of RAVDESS.")
    torch.set_num_threads(1)
    classify = load_pipeline(args.model, "cpu")
    figures: dict[str, object] = {}
    for minutes in args.minutes:
        found = compare_stream(classify, clips, 60 * minutes, args.window, args.hop, args.seed)
        figures[f"{minutes:g} minutes"] = found
        print(f"{minutes:g} minutes, {found['windows']:,} windows of {args.window:g} s every {args.hop:g} s: "
              f"probabilities differ by at most {found['difference']:.1e}, {found['other_labels']} labels differ; "
              f"{found['cpu_s_per_s']:.3f} CPU seconds for a second of sound; {found['rss_first_mib']:.0f} MiB after "
              f"the first minute, at most {found['rss_later_mib']:.0f} MiB later", flush=True)  # fmt: skip
    return figures


def compare_stream(
    classify: MaxMViTAudioClassificationPipeline,
    clips: Sequence[Path],
    seconds: float,
    window_s: float,
    hop_s: float,
    seed: int,
) -> dict[str, float]:
    """Streams a recording, then compares its rows with those of a call for the whole recording."""
    process, memory, rows = psutil.Process(), [], []
    used = time.process_time()
    for row in classify.stream(chunks(clips, seconds, seed), RATE, window_s, hop_s):
        memory.append((row["end"], process.memory_info().rss / 2**20))
        rows.append(row)
    used = time.process_time() - used
    first = [mib for end, mib in memory if end <= min(WARM_S, seconds / 2)]
    later = [mib for _, mib in memory[len(first) :]]
    whole = {"array": np.concatenate(list(chunks(clips, seconds, seed))), "sampling_rate": RATE}
    expected = classify(whole, window_s=window_s, hop_s=hop_s)
    assert [row["start"] for row in rows] == [row["start"] for row in expected]
    differences = [
        np.abs(np.subtract(list(row["scores"].values()), list(other["scores"].values()))).max(initial=0)
        for row, other in zip(rows, expected, strict=True)
    ]
    return {
        "windows": len(rows),
        "difference": float(max(differences)),
        "other_labels": sum(row["label"] != other["label"] for row, other in zip(rows, expected, strict=True)),
        "cpu_s_per_s": used / seconds,
        "rss_first_mib": first[-1],
        "rss_later_mib": max(later),
    }


def chunks(clips: Sequence[Path], seconds: float, seed: int) -> Iterator[np.ndarray]:
    """Yields a recording of `seconds`, `(T,)` at 48 kHz, in chunks of random length, and reads a clip at a time."""
    random, left, kept = np.random.default_rng(seed), round(seconds * RATE), np.zeros(0, np.float32)
    while left:
        length = min(left, int(random.integers(1, round(LONGEST_CHUNK_S * RATE))))
        while len(kept) < length:
            kept = np.concatenate([kept, read_audio(clips[int(random.integers(len(clips)))], RATE)])
        yield kept[:length]
        kept, left = kept[length:], left - length


if __name__ == "__main__":
    main()
