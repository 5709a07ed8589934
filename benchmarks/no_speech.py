"""Tests a checkpoint on sounds other than speech: music, noise, machines, weather, silence.

    python -m benchmarks.no_speech [CHECKPOINT] [--inputs 200]

The sounds are synthesised and the same in every run: 2 to 6 s each, of fourteen kinds in turn, at an RMS of -35 to
-15 dB relative to full scale (peaks beyond it are clipped), near silence at -90 to -50 dB. For each kind it prints the
highest probability (median, 95th percentile, maximum) with the sound as one clip (`window_s=None`), and the share of
predictions "silence" with the sound as one window, as along recordings. The default checkpoint is the one in this
repository.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.results import add_json, write_results
from pipeline_maxmvit import SILENCE
from ser.models import load_pipeline

SHORTEST_S, LONGEST_S = 2.0, 6.0
LEVELS_DB = (-35.0, -15.0)
NEAR_SILENCE_DB = (-90.0, -50.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--inputs", type=int, default=200)
    add_json(parser)
    args = parser.parse_args()
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
    write_results(args.json, {"kinds": table[:-1], "all": table[-1]})


def summary(kind: str, kinds: list[str], best: list[float], silent: list[bool]) -> dict[str, Any]:
    """Returns the row of the table for the inputs of one kind."""
    own = [index for index, each in enumerate(kinds) if each == kind]
    probabilities = np.array(best)[own]
    return {
        "kind": kind,
        "inputs": len(own),
        "silence": float(np.array(silent)[own].mean()),
        "median": float(np.median(probabilities)),
        "percentile_95": float(np.percentile(probabilities, 95)),
        "largest": float(probabilities.max()),
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
    """Returns a source of noise whose power is inverse to the frequency to the power of `slope`, from 20 Hz on."""

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


if __name__ == "__main__":
    main()
