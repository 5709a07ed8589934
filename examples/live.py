#!/usr/bin/env python
"""Classifies speech while it is recorded: a line for each window. Ctrl+C ends it.

    python examples/live.py [MODEL] [--window 3] [--hop 1]

reads the default microphone (needs sounddevice: pip install sounddevice); with --file, a recording at the pace at
which it would be spoken, or at once with --fast. MODEL is a checkpoint folder or its name on the Hub; the default is
the one that comes with the code.
"""

import argparse
import queue
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from audio_maxmvit import AudioError, decode_audio
from ser.models import load_pipeline
from ser.utils import UsageError

CHUNK_S = 0.1
MAX_WAITING_S = 60


def microphone(rate: int) -> Iterator[np.ndarray]:
    """Yields chunks of the default microphone, `(T, 1)`, until it is closed."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio is missing
        raise UsageError(f"the microphone needs sounddevice, which cannot be imported: {error}.") from error
    chunks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    with sounddevice.InputStream(
        samplerate=rate,
        channels=1,
        blocksize=round(CHUNK_S * rate),
        callback=lambda data, count, times, status: chunks.put(data.copy()),
    ):
        while chunks.qsize() * CHUNK_S < MAX_WAITING_S:
            yield chunks.get()
    raise UsageError(
        f"the model is {MAX_WAITING_S} s behind the microphone: give a longer --hop, a faster --device or a smaller "
        "model."
    )


def player(path: str, is_fast: bool) -> tuple[Iterator[np.ndarray], int]:
    """Returns the chunks of a recording, at the pace of speech unless `is_fast`, and its sampling rate."""
    pieces, rate = decode_audio(path)

    def chunks() -> Iterator[np.ndarray]:
        begin, length = time.monotonic(), 0
        for piece in pieces:
            for start in range(0, len(piece), round(CHUNK_S * rate)):
                chunk = piece[start : start + round(CHUNK_S * rate)]
                length += len(chunk)
                if not is_fast:
                    time.sleep(max(0.0, begin + length / rate - time.monotonic()))
                yield chunk

    return chunks(), rate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--window", type=float, help="seconds (default: the model's)")
    parser.add_argument("--hop", type=float, help="seconds from one window to the next (default: the window's)")
    parser.add_argument("--file", help="a recording instead of the microphone")
    parser.add_argument("--fast", action="store_true", help="classify the --file as fast as possible")
    parser.add_argument("--device", default="cpu", help="such as cuda (default cpu)")
    args = parser.parse_args(arguments)
    try:
        classify = load_pipeline(args.model, args.device)
        rate = classify.feature_extractor.sampling_rate
        chunks, rate = player(args.file, args.fast) if args.file else (microphone(rate), rate)
        for row in classify.stream(chunks, rate, window_s=args.window, hop_s=args.hop):
            score = f"{row['scores'][row['label']]:.2f}" if row["label"] in row["scores"] else ""
            if row["label"] is None:  # a model of dimensions without classes
                score = "  ".join(f"{name} {value:.2f}" for name, value in row["scores"].items())
            print(f"{row['start']:7.1f} - {row['end']:6.1f} s  {row['label'] or '':<10} {score}".rstrip(), flush=True)
    except (AudioError, UsageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
