"""Measures how well familiarity separates speech like the training data from other input.

    python -m benchmarks.familiarity MODEL RAVDESS [--dataset_name CORPUS --data_dir FOLDER]

MODEL is the checkpoint of one fold. Clips of the actors of its test part are compared by their distance from the
training data with the 200 sounds of benchmarks.no_speech, with babble (sums of clips of 3 and of 6 other actors) and
with the same clips reversed in time: the AUROC of each. Then the share that is turned away at --min_familiarity: of
all these, of the clips changed as in benchmarks.robustness, of windows of recordings glued from several clips, and of
the clips of another corpus.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from audio_maxmvit import read_audio
from benchmarks.no_speech import sound
from benchmarks.results import add_json, speakers_of, write_results
from benchmarks.robustness import Change, conditions, crowd
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.data import corruptions
from ser.data.corpora import load_corpus
from ser.models import load_pipeline

SOUNDS = BABBLE = 200
GLUED = 4  # clips of an actor in a recording


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("ravdess")
    parser.add_argument("--min_familiarity", type=float, default=0.05, help="(default 0.05)")
    parser.add_argument("--clips", type=int, help="clips of the test part, drawn at random (default: all)")
    parser.add_argument("--dataset_name", help="another corpus, for its share of clips that are turned away")
    parser.add_argument("--data_dir", help="its folder")
    add_json(parser)
    args = parser.parse_args(arguments)
    classify = load_pipeline(str(args.model), batch_size=16)
    if not classify.model.config.familiarity:
        sys.exit(f"error: {args.model} does not keep the distribution of its training data: train it anew.")
    chosen, rate = speakers_of(args.model), classify.feature_extractor.sampling_rate
    corpus = load_corpus("ravdess", args.ravdess)
    own = [index for index, speaker in enumerate(corpus.speakers) if speaker in chosen]
    if args.clips is not None:
        own = sorted(np.random.default_rng(0).permutation(own)[: args.clips].tolist())
    audio = corpus.clips["audio"]
    clips = [torch.from_numpy(read_audio(audio[index], rate)) for index in own]
    voices = crowd(corpus, chosen, rate)
    base = distances(classify, (clip.numpy() for clip in clips))
    bound = args.min_familiarity
    print(f"{len(clips)} clips of actors {', '.join(chosen)}; turned away below a familiarity of {bound:g}")
    print("| input | inputs | AUROC | turned away |\n|---|---|---|---|")
    table = [row("clean", classify, base, base, bound)]
    others: dict[str, Iterable[np.ndarray]] = {
        "sounds without speech": (sound(index, rate) for index in range(SOUNDS)),
        "babble of 3 voices": (babble(voices, 3, index) for index in range(BABBLE)),
        "babble of 6 voices": (babble(voices, 6, index) for index in range(BABBLE)),
        "reversed in time": (clip.numpy()[::-1].copy() for clip in clips),
    }
    for name, change in list(conditions(voices, rate).items())[1:]:
        others[name] = changed(clips, change)
    if args.dataset_name:
        other = load_corpus(args.dataset_name, args.data_dir)
        others[other.name] = (read_audio(each, rate) for each in other.clips["audio"])
    for name, waveforms in others.items():
        table.append(row(name, classify, distances(classify, waveforms), base, bound))
    speakers = [corpus.speakers[index] for index in own]
    windows = glued(classify, clips, speakers, bound)
    print(f"| windows of {GLUED} clips glued | {windows['inputs']} | | {windows['turned_away']:.3f} |")
    write_results(args.json, {"min_familiarity": bound, "inputs": [*table, windows]})


def distances(classify: MaxMViTAudioClassificationPipeline, waveforms: Iterable[np.ndarray]) -> torch.Tensor:
    """`(N,)`: the distance of each waveform, taken as one clip."""
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


def row(
    name: str, classify: MaxMViTAudioClassificationPipeline, own: torch.Tensor, base: torch.Tensor, bound: float
) -> dict[str, Any]:
    """One row of the table: AUROC of distances against those of clean clips, and the share below the bound."""
    kept = classify.model.familiarity.distances.cpu()
    familiarity = (kept > own[:, None]).float().mean(1)
    truth = np.r_[np.zeros(len(base)), np.ones(len(own))]
    auroc = None if own is base else float(roc_auc_score(truth, torch.cat([base, own]).numpy()))
    away = float((familiarity < bound).float().mean())
    shown = "" if auroc is None else f"{auroc:.3f}"
    print(f"| {name} | {len(own)} | {shown} | {away:.3f} |", flush=True)
    return {"input": name, "inputs": len(own), "AUROC": auroc, "turned_away": away}


def changed(clips: list[torch.Tensor], change: Change) -> Iterator[np.ndarray]:
    """The clips under a condition, each with noise of its own."""
    for index, clip in enumerate(clips):
        yield change(clip, torch.Generator().manual_seed(index)).numpy()


def babble(voices: list[torch.Tensor], count: int, index: int) -> np.ndarray:
    """The sum of so many voices at equal power, as long as the longest, at a peak of a half."""
    drawn = torch.randperm(len(voices), generator=torch.Generator().manual_seed(index))[:count].tolist()
    some = [voices[number] for number in drawn]
    mixed = corruptions.babble(some, max(map(len, some)))
    return (mixed / mixed.abs().max().clamp(min=1e-8) / 2).numpy()


def glued(
    classify: MaxMViTAudioClassificationPipeline, clips: list[torch.Tensor], speakers: list[str | None], bound: float
) -> dict[str, Any]:
    """The share of windows turned away along recordings of several clips of one actor."""

    def recordings() -> Iterator[np.ndarray]:
        for speaker in dict.fromkeys(speakers):
            of_speaker = [clip for clip, each in zip(clips, speakers, strict=True) if each == speaker]
            for first in range(0, len(of_speaker), GLUED):
                yield torch.cat(of_speaker[first : first + GLUED]).numpy()

    config = classify.model.config
    timelines = classify(recordings(), window_s=config.window_s, min_familiarity=bound)
    labels = [each["label"] for timeline in timelines for each in timeline if each["label"] != "silence"]
    away = float(np.mean([label == "unfamiliar" for label in labels]))
    return {"input": "windows", "inputs": len(labels), "turned_away": away}


if __name__ == "__main__":
    main()
