"""Checkpoints on input unlike their training data: distorted clips, sounds without speech, unfamiliar recordings.

python -m benchmarks.robustness distortions CHECKPOINT RAVDESS [--actors 1 11 20 21] [--figure robustness.png]
python -m benchmarks.robustness no_speech [CHECKPOINT] [--inputs 200]
python -m benchmarks.robustness familiarity MODEL RAVDESS [--dataset_name CORPUS --data_dir FOLDER]
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from audio_maxmvit import read_audio
from benchmarks.results import add_command, parser_of, run, speakers_of
from pipeline_maxmvit import SILENCE, MaxMViTAudioClassificationPipeline
from ser.data import corruptions
from ser.data.corpora import Corpus, load_corpus
from ser.evaluation.metrics import confusion_matrix, scores_from_confusion
from ser.models import load_pipeline

VOICES = 6  # in babble
SHORTEST_S, LONGEST_S = 2.0, 6.0
LEVELS_DB = (-35.0, -15.0)
NEAR_SILENCE_DB = (-90.0, -50.0)
SOUNDS = BABBLE = 200
JOINED = 4  # clips of an actor in a recording
DISTORTIONS = """Measures the robustness to noise, rooms, telephones and codecs on actors outside the training data.

For each condition it prints UA, the loss of UA relative to clean clips, the share of unchanged predictions, and the
mean change of the probability of the clean prediction. Every clip has its own noise, the same in every run. The
default actors are those of the checkpoint's test part (or of its validation part with `--part validation`)."""
NO_SPEECH = """Tests a checkpoint on sounds other than speech: music, noise, machines, weather, silence.

The sounds are synthesised and the same in every run: 2 to 6 s each, of fourteen kinds in turn, at an RMS of -35 to
-15 dB relative to full scale (peaks beyond it are clipped), near silence at -90 to -50 dB. For each kind it prints the
highest probability (median, 95th percentile, maximum) with the sound as one clip (`window_s=None`), and the share of
predictions "silence" with the sound as one window, as along recordings. The default checkpoint is the one in this
repository."""
FAMILIARITY = """Measures how well familiarity separates speech like the training data from other input.

MODEL is the checkpoint of one fold. Clips of the actors of its test part are compared by their distance from the
training data with the 200 sounds of `no_speech`, with babble (sums of clips of 3 and of 6 other actors) and with the
same clips reversed in time: the AUROC of each. Then follows the share below --min_familiarity (turned away): of all
these inputs, of the clips distorted as in `distortions`, of windows of recordings joined from several clips, and of
the clips of another corpus."""
Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def main(arguments: list[str] | None = None) -> None:
    parser, commands = parser_of(__doc__)
    distortions = add_command(commands, "distortions", measure_distortions, DISTORTIONS)
    distortions.add_argument("checkpoint", type=Path)
    distortions.add_argument("ravdess")
    distortions.add_argument("--actors", type=int, nargs="+", help="default: those of the checkpoint's --part")
    distortions.add_argument("--part", choices=("validation", "test"), default="test")
    distortions.add_argument("--figure", help="file for a plot of UA by condition")
    sounds = add_command(commands, "no_speech", measure_no_speech, NO_SPEECH)
    sounds.add_argument("checkpoint", nargs="?")
    sounds.add_argument("--inputs", type=int, default=200)
    familiarity = add_command(commands, "familiarity", measure_familiarity, FAMILIARITY)
    familiarity.add_argument("model", type=Path)
    familiarity.add_argument("ravdess")
    familiarity.add_argument("--min_familiarity", type=float, default=0.05, help="lowest familiarity (default 0.05)")
    familiarity.add_argument("--clips", type=int, help="clips of the test part, drawn at random (default: all)")
    familiarity.add_argument("--dataset_name", help="another corpus whose clips are tested")
    familiarity.add_argument("--data_dir", help="its folder")
    run(parser, arguments)


# --- distorted clips ---


def measure_distortions(args: argparse.Namespace) -> dict[str, object]:
    chosen = [f"{actor:02d}" for actor in args.actors or ()] or speakers_of(args.checkpoint, args.part)
    classify = load_pipeline(str(args.checkpoint), batch_size=16)
    rate = classify.feature_extractor.sampling_rate
    corpus = load_corpus("ravdess", args.ravdess)
    own = rows_of(corpus, chosen)
    audio, labels = corpus.clips["audio"], np.array(corpus.labels)[own]
    clips = [torch.from_numpy(read_audio(audio[index], rate)) for index in own]
    clean = None
    table: list[dict[str, Any]] = []
    print(f"{len(clips)} clips of actors {', '.join(chosen)}")
    print("| condition | UA | lost | same prediction | change of probability |\n|---|---|---|---|---|")
    for name, change in conditions(crowd(corpus, chosen, rate), rate).items():
        scores = probabilities(classify, changed(clips, change), corpus.label_names)
        clean = scores if clean is None else clean
        predicted = scores.argmax(1)
        ua = float(scores_from_confusion(confusion_matrix(labels, predicted, scores.shape[1]))["UA"])
        kept = np.arange(len(clips)), clean.argmax(1)
        row = {
            "condition": name,
            "UA": ua,
            "lost": table[0]["UA"] - ua if table else 0.0,
            "same": float((predicted == kept[1]).mean()),
            "change": float(np.abs(scores[kept] - clean[kept]).mean()),
        }
        table.append(row)
        print(f"| {name} | {ua:.3f} | {row['lost']:.3f} | {row['same']:.3f} | {row['change']:.3f} |", flush=True)
    lost = float(np.mean([row["lost"] for row in table[1:]]))
    print(f"| mean of all but clean | | {lost:.3f} | | |")
    if args.figure:
        plot(table, args.figure)
    return {"mean_lost": lost, "conditions": table}


def rows_of(corpus: Corpus, actors: list[str]) -> list[int]:
    """Returns the rows of the actors' clips; if there are none, the command ends with an error."""
    rows = [index for index, speaker in enumerate(corpus.speakers) if speaker in actors]
    if not rows:
        sys.exit(f"error: {corpus.source} holds no clips of actors {', '.join(actors)}.")
    return rows


def conditions(voices: list[torch.Tensor], rate: int) -> dict[str, Change]:
    """Returns name -> change of a clip; the first one does not change it."""

    def babble(snr_db: float) -> Change:
        def apply(clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            drawn = torch.randperm(len(voices), generator=generator)[:VOICES].tolist()
            return corruptions.mix(clip, corruptions.babble([voices[i] for i in drawn], len(clip)), snr_db)

        return apply

    def at(change: Callable[..., torch.Tensor], *parameters: float) -> Change:
        return lambda clip, _: change(clip, *parameters)

    def drawn_at(change: Callable[..., torch.Tensor], *parameters: float) -> Change:
        return lambda clip, generator: change(clip, *parameters, generator)

    return {
        "clean": lambda clip, _: clip,
        **{f"white noise, {db} dB": drawn_at(corruptions.white_noise, db) for db in (20, 10)},
        **{f"babble, {db} dB": babble(db) for db in (20, 10, 0)},
        **{f"room, RT60 {t} s": drawn_at(corruptions.reverberate, rate, t) for t in (0.3, 0.7)},
        "telephone, 300 to 3,400 Hz": at(corruptions.telephone, rate),
        "telephone, mu-law": lambda c, _: corruptions.telephone(c, rate, mu_law=True),
        **{f"mp3, {kbps} kbit/s": at(corruptions.mp3, rate, kbps) for kbps in (32, 16, 8)},
        **{f"opus, {kbps} kbit/s": at(corruptions.opus, rate, kbps) for kbps in (32, 16, 8)},
        "vorbis": at(corruptions.vorbis, rate),
        "clipped, 20 % of samples": at(corruptions.clip_loudest, 0.2),
        **{f"gain {db:+} dB": at(corruptions.gain, db) for db in (-20, 10)},
        **{f"through {r / 1000:g} kHz": at(corruptions.through_rate, rate, r) for r in (16_000, 22_050)},
    }


def changed(clips: list[torch.Tensor], change: Change) -> Iterator[np.ndarray]:
    """Yields the clips under a condition, each with its own noise."""
    for index, clip in enumerate(clips):
        yield change(clip, torch.Generator().manual_seed(index)).numpy()


def crowd(corpus: Corpus, chosen: list[str], rate: int) -> list[torch.Tensor]:
    """Returns one clip of every other actor, in fixed order."""
    audio, first = corpus.clips["audio"], dict[str | None, int]()
    for index, speaker in enumerate(corpus.speakers):
        if speaker not in chosen:
            first.setdefault(speaker, index)
    return [torch.from_numpy(read_audio(audio[index], rate)) for index in first.values()]


def probabilities(
    classify: MaxMViTAudioClassificationPipeline, waveforms: Iterator[np.ndarray], label_names: list[str]
) -> np.ndarray:
    """Returns the probabilities `(clips, labels)`."""
    predictions = classify((waveform for waveform in waveforms), silence_db=None)  # even if clips become very quiet
    by_label = ({row["label"]: row["score"] for row in rows} for rows in predictions)
    return np.array([[scores[label] for label in label_names] for scores in by_label])


def plot(table: list[dict], path: str) -> None:
    figure = Figure(figsize=(8, 6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    names = [row["condition"] for row in table]
    axes.barh(names, [row["UA"] for row in table], color="#1f5fa8")
    axes.axvline(table[0]["UA"], color="#d1741f", label=f"clean: {table[0]['UA']:.3f}")
    axes.invert_yaxis()
    axes.set(xlabel="UA", xlim=(0, 1))
    axes.legend()
    figure.savefig(path)
    print(f"wrote {path}")


# --- sounds without speech ---


def measure_no_speech(args: argparse.Namespace) -> dict[str, object]:
    classify = load_pipeline(args.checkpoint, batch_size=16)
    rate = classify.feature_extractor.sampling_rate
    kinds = [kind_of(index) for index in range(args.inputs)]
    best = [
        answer[0]["score"] for answer in classify((sound(index, rate) for index in range(args.inputs)), window_s=None)
    ]
    in_windows = classify((sound(index, rate) for index in range(args.inputs)), window_s=LONGEST_S, timeline=False)
    silent = [answer[0]["label"] == SILENCE for answer in in_windows]
    print(f"{args.inputs} inputs without speech; chance {1 / classify.model.config.num_labels:.3f}")
    print("| kind | inputs | predicted silence | probability: median | 95 % | largest |\n|---|---|---|---|---|---|")
    table = [summary(kind, kinds, best, silent) for kind in dict.fromkeys(kinds)]
    table.append(summary("all", ["all"] * args.inputs, best, silent))
    for row in table:
        numbers = " | ".join(f"{row[name]:.3f}" for name in ("silence", "median", "percentile_95", "largest"))
        print(f"| {row['kind']} | {row['inputs']} | {numbers} |")
    return {"kinds": table[:-1], "all": table[-1]}


def summary(kind: str, kinds: list[str], best: list[float], silent: list[bool]) -> dict[str, Any]:
    """Returns the row of the table for the inputs of one kind."""
    own = [index for index, each in enumerate(kinds) if each == kind]
    highest = np.array(best)[own]
    return {
        "kind": kind,
        "inputs": len(own),
        "silence": float(np.array(silent)[own].mean()),
        "median": float(np.median(highest)),
        "percentile_95": float(np.percentile(highest, 95)),
        "largest": float(highest.max()),
    }


def kind_of(index: int) -> str:
    return list(KINDS)[index % len(KINDS)]


def sound(index: int, rate: int) -> np.ndarray:
    """Returns input `index`, `(T,)` float32 within [-1, 1] at `rate` Hz."""
    random = np.random.default_rng(index)
    kind = kind_of(index)
    time = np.arange(round(random.uniform(SHORTEST_S, LONGEST_S) * rate)) / rate
    waveform = KINDS[kind](random, time)
    if waveform.any():
        level_db = random.uniform(*(NEAR_SILENCE_DB if kind == "near silence" else LEVELS_DB))
        waveform = waveform * 10 ** (level_db / 20) / np.sqrt(np.mean(waveform**2))
    return np.clip(waveform, -1, 1).astype(np.float32)


# Each of these takes a random generator and the time in seconds of every sample, (T,), and returns a waveform (T,) of
# any level.


def tone(frequency: float, time: np.ndarray, slope: float, decay_s: float) -> np.ndarray:
    """Returns a plucked or struck note: decaying partials up to 10 kHz, the k-th with the amplitude 1 / k^slope."""
    partials = np.arange(1, 1 + min(20, int(10_000 / frequency)))[:, None]
    waves = np.sin(2 * np.pi * frequency * partials * time) / partials**slope
    return waves.sum(0) * np.exp(-time / decay_s) * np.minimum(1, time / 0.01)


def sequence(time: np.ndarray, step_s: float, play: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Concatenates the results of `play` for steps of equal length; it is given the seconds since a step's start."""
    return np.concatenate([play(part - part[0]) for part in np.array_split(time, max(1, round(time[-1] / step_s)))])


def chords(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    root, slope, decay_s = random.uniform(110, 220), random.uniform(1, 2), random.uniform(0.5, 3)
    degrees = iter(random.choice([0, 2, 4, 5, 7, 9], 100))

    def play(part: np.ndarray) -> np.ndarray:
        start, third = next(degrees), random.choice([3, 4])
        return np.sum([tone(root * 2 ** ((start + n) / 12), part, slope, decay_s) for n in (0, third, 7)], axis=0)

    return sequence(time, random.uniform(0.5, 1.2), play)


def melody(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    root, slope, decay_s = random.uniform(200, 600), random.uniform(0.7, 2), random.uniform(0.2, 1)
    scale = (0, 2, 4, 5, 7, 9, 11, 12)
    return sequence(
        time, random.uniform(0.15, 0.5),
        lambda part: tone(root * 2 ** (random.choice(scale) / 12), part, slope, decay_s),
    )  # fmt: skip


def drums(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    beats = iter(range(1000))

    def play(part: np.ndarray) -> np.ndarray:
        noise = random.standard_normal(len(part))
        hat = 0.2 * np.diff(noise, prepend=0) * np.exp(-part / 0.03)
        kick = np.sin(2 * np.pi * (50 * part - 3 * np.exp(-part / 0.03))) * np.exp(-part / 0.15)
        return hat + (kick, 0.0, 0.5 * noise * np.exp(-part / 0.1), 0.0)[next(beats) % 4]

    return sequence(time, 30 / random.uniform(80, 160), play)


def coloured(slope: float) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    """Returns a source of noise whose power falls as 1 / frequency^slope, from 20 Hz on."""

    def noise(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
        spectrum = np.fft.rfft(random.standard_normal(len(time)))
        frequencies = np.fft.rfftfreq(len(time), time[1])
        return np.fft.irfft(spectrum * np.maximum(frequencies, 20.0) ** (-slope / 2), len(time))

    return noise


def hum(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    mains = random.choice([50, 60])
    waves = [random.uniform(0, 1 / k) * np.sin(2 * np.pi * (mains * k * time + random.random())) for k in range(1, 12)]
    return np.sum(waves, axis=0) + 0.02 * random.standard_normal(len(time))


def clicks(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return struck(random, time, per_second=random.uniform(2, 15), decay_s=random.uniform(0.001, 0.01))


def struck(random: np.random.Generator, time: np.ndarray, per_second: float, decay_s: float) -> np.ndarray:
    """Returns short bursts of noise at random times, of random strength."""
    hits = random.exponential(size=len(time)) * (random.random(len(time)) < per_second * time[1])
    span = time[time < 6 * decay_s]
    noise = random.standard_normal(len(span)) * np.exp(-span / decay_s)
    waveform = np.zeros(len(time) + len(span))
    for place in np.flatnonzero(hits):
        waveform[place : place + len(span)] += hits[place] * noise
    return waveform[: len(time)]


def siren(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    low, period_s = random.uniform(400, 700), random.uniform(0.4, 3)
    frequency = low * 2 ** (0.5 + 0.5 * np.sin(2 * np.pi * time / period_s))
    phase = 2 * np.pi * np.cumsum(frequency) * time[1]
    return np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)


def chirps(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    low, rise, length_s = random.uniform(1500, 4000), random.uniform(-8000, 8000), random.uniform(0.05, 0.2)

    def play(part: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * (low * part + rise * part**2 / 2)) * np.exp(
            -(((part - length_s) / length_s) ** 2) * 4
        )

    return sequence(time, random.uniform(0.25, 0.8), play)


def engine(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    speed = random.uniform(25, 80) * (1 + 0.2 * np.sin(2 * np.pi * time / random.uniform(1, 6)))
    phase = 2 * np.pi * np.cumsum(speed) * time[1]
    strokes = np.sum([random.uniform(0.3, 1) / k * np.sin(k * phase) for k in range(1, 25)], axis=0)
    hiss = coloured(1.0)(random, time)
    return strokes + 0.1 * (1 + np.sin(phase)) * hiss / hiss.std()


def rain(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    bed = coloured(0.5)(random, time)
    drops = struck(random, time, per_second=random.uniform(50, 200), decay_s=0.002)
    return bed / bed.std() + 2 * drops


def silence(random: np.random.Generator, time: np.ndarray) -> np.ndarray:
    return np.zeros(len(time))


KINDS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "chords": chords, "melody": melody, "drums": drums,
    "white noise": coloured(0.0), "pink noise": coloured(1.0), "brown noise": coloured(2.0),
    "hum": hum, "clicks": clicks, "siren": siren, "chirps": chirps, "engine": engine, "rain": rain,
    "silence": silence, "near silence": coloured(1.0),
}  # fmt: skip


# --- familiarity ---


def measure_familiarity(args: argparse.Namespace) -> dict[str, object]:
    classify = load_pipeline(str(args.model), batch_size=16)
    if not classify.model.config.familiarity:
        sys.exit(f"error: {args.model} does not keep the distribution of its training data: train it again.")
    chosen, rate = speakers_of(args.model), classify.feature_extractor.sampling_rate
    corpus = load_corpus("ravdess", args.ravdess)
    own = rows_of(corpus, chosen)
    if args.clips is not None:
        own = sorted(np.random.default_rng(0).permutation(own)[: args.clips].tolist())
    audio = corpus.clips["audio"]
    clips = [torch.from_numpy(read_audio(audio[index], rate)) for index in own]
    voices = crowd(corpus, chosen, rate)
    base = distances(classify, (clip.numpy() for clip in clips))
    bound = args.min_familiarity
    print(f"{len(clips)} clips of actors {', '.join(chosen)}; turned away below a familiarity of {bound:g}")
    print("| input | inputs | AUROC | turned away |\n|---|---|---|---|")
    table = [familiarity_row("clean", classify, base, base, bound)]
    others: dict[str, Iterable[np.ndarray]] = {
        "sounds without speech": (sound(index, rate) for index in range(SOUNDS)),
        "babble of 3 voices": (babble_clip(voices, 3, index) for index in range(BABBLE)),
        "babble of 6 voices": (babble_clip(voices, 6, index) for index in range(BABBLE)),
        "reversed in time": (clip.numpy()[::-1].copy() for clip in clips),
    }
    for name, change in list(conditions(voices, rate).items())[1:]:
        others[name] = changed(clips, change)
    if args.dataset_name:
        other = load_corpus(args.dataset_name, args.data_dir)
        others[other.name] = (read_audio(each, rate) for each in other.clips["audio"])
    for name, waveforms in others.items():
        table.append(familiarity_row(name, classify, distances(classify, waveforms), base, bound))
    speakers = [corpus.speakers[index] for index in own]
    windows = joined_windows(classify, clips, speakers, bound)
    print(f"| windows of {JOINED} joined clips | {windows['inputs']} | | {windows['turned_away']:.3f} |")
    return {"min_familiarity": bound, "inputs": [*table, windows]}


def distances(classify: MaxMViTAudioClassificationPipeline, waveforms: Iterable[np.ndarray]) -> torch.Tensor:
    """Returns the distance of each waveform from the training data, `(N,)`, each taken as one clip."""
    model, found = classify.model, []
    features: list[torch.Tensor] = []
    handle = model.maxmvit.register_forward_hook(lambda *each: features.append(each[-1].pooler_output))
    try:
        remaining = iter(waveforms)
        while batch := list(islice(remaining, 16)):
            with torch.no_grad():
                classify._forward(batch)
            found.append(model.familiarity.distance(features.pop()).cpu())
    finally:
        handle.remove()
    return torch.cat(found)


def familiarity_row(
    name: str, classify: MaxMViTAudioClassificationPipeline, own: torch.Tensor, base: torch.Tensor, bound: float
) -> dict[str, Any]:
    """Returns a row of the table: AUROC of distances against those of clean clips, and the share below the bound."""
    kept = classify.model.familiarity.distances.cpu()
    familiarity = (kept > own[:, None]).float().mean(1)
    truth = np.r_[np.zeros(len(base)), np.ones(len(own))]
    auroc = None if own is base else float(roc_auc_score(truth, torch.cat([base, own]).numpy()))
    away = float((familiarity < bound).float().mean())
    shown = "" if auroc is None else f"{auroc:.3f}"
    print(f"| {name} | {len(own)} | {shown} | {away:.3f} |", flush=True)
    return {"input": name, "inputs": len(own), "AUROC": auroc, "turned_away": away}


def babble_clip(voices: list[torch.Tensor], count: int, index: int) -> np.ndarray:
    """Returns the sum of `count` voices at equal power, as long as the longest, with a peak of 0.5."""
    drawn = torch.randperm(len(voices), generator=torch.Generator().manual_seed(index))[:count].tolist()
    some = [voices[number] for number in drawn]
    mixed = corruptions.babble(some, max(map(len, some)))
    return (mixed / mixed.abs().max().clamp(min=1e-8) / 2).numpy()


def joined_windows(
    classify: MaxMViTAudioClassificationPipeline, clips: list[torch.Tensor], speakers: list[str | None], bound: float
) -> dict[str, Any]:
    """Returns the share of windows below the bound along recordings of several clips of one actor."""

    def recordings() -> Iterator[np.ndarray]:
        for speaker in dict.fromkeys(speakers):
            of_speaker = [clip for clip, each in zip(clips, speakers, strict=True) if each == speaker]
            for first in range(0, len(of_speaker), JOINED):
                yield torch.cat(of_speaker[first : first + JOINED]).numpy()

    config = classify.model.config
    timelines = classify(recordings(), window_s=config.window_s, min_familiarity=bound)
    labels = [each["label"] for timeline in timelines for each in timeline if each["label"] != "silence"]
    away = float(np.mean([label == "unfamiliar" for label in labels]))
    return {"input": "windows", "inputs": len(labels), "turned_away": away}


if __name__ == "__main__":
    main()
