"""Writes clips and small corpora in the formats of real ones."""

import io
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile
from datasets import Audio, ClassLabel, Dataset

from ser.data.corpora import Corpus


def sound(seed: int, seconds: float = 0.01, sampling_rate: int = 16_000, kind: str = "WAV") -> bytes:
    """Returns an encoded file of short noise, which differs for every seed."""
    samples = np.random.default_rng(seed).integers(-9000, 9000, int(seconds * sampling_rate)).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, sampling_rate, format=kind, subtype="PCM_16")
    return file.getvalue()


def write_sound(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound(seed, kind="FLAC" if path.suffix == ".flac" else "WAV"))
    return path


def write_parquet(
    folder: Path, split: str, columns: dict, names: list[str | None], classes: dict | None = None, seed: int = 0
) -> None:
    """Writes `folder/data/<split>-00000-of-00001.parquet` as on the Hub: encoded audio with original file names."""
    audio = [{"bytes": sound(seed + i), "path": name} for i, name in enumerate(names)]
    table = Dataset.from_dict({"audio": audio, **columns}).cast_column("audio", Audio(sampling_rate=16_000))
    for column, names_of_classes in (classes or {}).items():
        table = table.cast_column(column, ClassLabel(names=names_of_classes))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def corpus_of(
    labels: list[int],
    speakers: list[str | None] | None = None,
    splits: list[str | None] | None = None,
    seeds: list[int] | None = None,
    name: str = "mine",
    sessions: list[str | None] | None = None,
    sentences: list[str | None] | None = None,
) -> Corpus:
    """Returns a corpus in memory. Clips with equal `seeds` have equal audio."""
    n = len(labels)
    audio = [{"bytes": sound(seed), "path": None} for seed in (seeds or range(n))]
    unknown = [None] * n
    columns = {"file": [f"{i:04d}.wav" for i in range(n)], "audio": audio, "label": labels}
    columns |= {"speaker": speakers or unknown, "session": sessions or unknown, "split": splits or unknown}
    columns["sentence"] = sentences or unknown
    clips = Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))
    names = [f"class{i}" for i in range(max(labels) + 1)]
    return Corpus(name, f"/data/{name}", "r1", names, clips, speaker_hint="the other copy")


def media_file(
    container: str, codec: str, rate: int, channels: int = 1, seconds: float = 2.0, options: dict | None = None
) -> tuple[bytes, np.ndarray]:
    """Returns a file as phones and cameras write it, and the sweep `(T,)` that each of its channels contains."""
    time = np.arange(round(seconds * rate)) / rate
    sweep = (0.3 * np.sin(2 * np.pi * (200 + 40 * time) * time)).astype(np.float32)
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115, FFmpeg opens it again to move the index to the front
    with file, av.open(file.name, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate, layout="stereo" if channels == 2 else "mono")
        if codec.startswith("wma"):
            stream.bit_rate = 64_000
        stream.codec_context.open()
        to_codec = av.AudioResampler(
            stream.codec_context.format, stream.layout, rate, frame_size=stream.codec_context.frame_size
        )
        frame = av.AudioFrame.from_ndarray(np.tile(sweep, (channels, 1)), "fltp", stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        for part in (*to_codec.resample(frame), *to_codec.resample(None), None):
            output.mux(stream.encode(part))
        output.close()
        return Path(file.name).read_bytes(), sweep
