"""Measures the robustness of a checkpoint to noise, rooms, telephones and codecs on actors that it was not trained on.

    python -m benchmarks.robustness CHECKPOINT RAVDESS [--actors 1 11 20 21] [--figure robustness.png]

For each condition it prints UA, the loss of UA relative to clean clips, the share of unchanged predictions, and the
mean change of the probability of the clean prediction. Every clip has its own noise, the same in every run. The
default actors are those of the checkpoint's test part (or of its validation part with `--part validation`).
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from audio_maxmvit import read_audio
from benchmarks.results import add_json, speakers_of, write_results
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.data import corruptions
from ser.data.corpora import Corpus, load_corpus
from ser.evaluation.metrics import confusion_matrix, scores_from_confusion
from ser.models import load_pipeline

VOICES = 6  # in babble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("ravdess")
    parser.add_argument("--actors", type=int, nargs="+", help="default: those of the checkpoint's --part")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--figure", help="file for a plot of UA by condition")
    add_json(parser)
    args = parser.parse_args()
    chosen = [f"{actor:02d}" for actor in args.actors or ()] or speakers_of(args.checkpoint, args.part)
    classify = load_pipeline(str(args.checkpoint), batch_size=16)
    rate = classify.feature_extractor.sampling_rate
    corpus = load_corpus("ravdess", args.ravdess)
    own = [index for index, speaker in enumerate(corpus.speakers) if speaker in chosen]
    if not own:
        sys.exit(f"error: {corpus.source} holds no clips of actors {', '.join(chosen)}.")
    audio, labels = corpus.clips["audio"], np.array(corpus.labels)[own]
    clips = [torch.from_numpy(read_audio(audio[index], rate)) for index in own]
    clean = None
    table: list[dict[str, Any]] = []
    print(f"{len(clips)} clips of actors {', '.join(chosen)}")
    print("| condition | UA | lost | same prediction | change of probability |\n|---|---|---|---|---|")
    for name, change in conditions(crowd(corpus, chosen, rate), rate).items():
        changed = (change(clip, torch.Generator().manual_seed(index)) for index, clip in enumerate(clips))
        scores = probabilities(classify, (clip.numpy() for clip in changed), corpus.label_names)
        clean = scores if clean is None else clean
        answers = scores.argmax(1)
        ua = float(scores_from_confusion(confusion_matrix(labels, answers, scores.shape[1]))["UA"])
        kept = np.arange(len(clips)), clean.argmax(1)
        row = {
            "condition": name,
            "UA": ua,
            "lost": table[0]["UA"] - ua if table else 0.0,
            "same": float((answers == kept[1]).mean()),
            "change": float(np.abs(scores[kept] - clean[kept]).mean()),
        }
        table.append(row)
        print(f"| {name} | {ua:.3f} | {row['lost']:.3f} | {row['same']:.3f} | {row['change']:.3f} |", flush=True)
    lost = float(np.mean([row["lost"] for row in table[1:]]))
    print(f"| mean of all but clean | | {lost:.3f} | | |")
    write_results(args.json, {"mean_lost": lost, "conditions": table})
    if args.figure:
        plot(table, args.figure)


Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


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
    answers = classify((waveform for waveform in waveforms), silence_db=None)  # however soft clips become
    by_label = ({row["label"]: row["score"] for row in answer} for answer in answers)
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


if __name__ == "__main__":
    main()
