"""Kinds of cases: how a case is generated, and how it is run. A case is plain data, so it can be saved."""

import base64
import functools
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import audio_maxmvit
from audio_maxmvit import AudioError, name_of, read_audio, stream_audio
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline
from ser.inference.predictions import OUTPUT_SUFFIXES, Item, Table, find_items
from ser.utils import DataError, UsageError
from tests.fuzz.mutations import audio_file, broken, long_files, valid_files, with_other_length
from tests.fuzz.servers import BEHAVIOURS, address_of
from tests.helpers.tiny import tiny_feature_extractor, tiny_model

LABELS = ["angry", "happy", "neutral", "sad"]


@dataclass
class Case:
    """An input: files by name, and the options of what is done with them."""

    kind: str
    files: dict[str, bytes] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        files = {name: base64.b85encode(content).decode() for name, content in self.files.items()}
        return json.dumps({"kind": self.kind, "options": self.options, "files": files}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Case":
        kept = json.loads(text)
        files = {name: base64.b85decode(content) for name, content in kept["files"].items()}
        return cls(kept["kind"], files, kept["options"])

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


class Kind(NamedTuple):
    make: Callable[[random.Random], Case]
    run: Callable[[Case, Path], str]  # returns the end of a case; raises only for a failure
    share: int  # relative frequency


def refused(error: Exception, names: list[str]) -> str:
    """Checks that an error is a sentence with one of the names; returns its type as the end of the case."""
    message = str(error)
    assert any(name in message for name in names), f"names none of {names}: {message}"
    assert message.rstrip().endswith((".", ")")) or len(message) > 20, f"not a sentence: {message}"
    return type(error).__name__


# Reading


def _make_reading(rng: random.Random) -> Case:
    if rng.random() < 0.1:
        shape = rng.choice(([0], [1], [5], [2, 100], [100, 2], [0, 2], [1, 2, 3], [16_000], []))
        kind = rng.choice(("float32", "float64", "int16", "uint8", "int64", "bool", "complex64", "<U3", "object"))
        rate = rng.choice(
            (0, -1, 1, 999, 1_000, 8_000, 44_100.0, 0.5, 4_000_000, 4_000_001, 1e300, None, "16000", True)
        )
        fill = rng.choice((0, 1, "nan", "inf", 1e38))
        array = {"shape": shape, "dtype": kind, "fill": fill, "rate": rate, "key": rng.choice(("array", "raw", "x"))}
        return Case("reading", options={"array": array, "rate": 16_000})
    name, content = audio_file(rng)
    how = rng.choice(("path", "path", "bytes", "file", "stream", "dict of path", "dict of bytes"))
    return Case("reading", {name: content}, {"how": how, "rate": rng.choice((16_000, 44_100))})


class _Unseekable(io.RawIOBase):
    def __init__(self, content: bytes):
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.content.readinto(buffer)


def _source(case: Case, folder: Path) -> Any:
    if "array" in case.options:
        spec = case.options["array"]
        fill = float(spec["fill"]) if spec["dtype"].startswith("float") else 1
        return {spec["key"]: np.full(spec["shape"], fill, spec["dtype"]), "sampling_rate": spec["rate"]}
    ((name, content),) = case.files.items()
    return {
        "path": str(folder / name), "bytes": content, "file": io.BytesIO(content), "stream": _Unseekable(content),
        "dict of path": {"path": str(folder / name), "bytes": None},
        "dict of bytes": {"path": name, "bytes": content},
    }[case.options["how"]]  # fmt: skip


def _run_reading(case: Case, folder: Path) -> str:
    rate = case.options["rate"]
    try:
        waveform = read_audio(_source(case, folder), rate)
    except AudioError as error:
        return refused(error, [name_of(_source(case, folder))])
    assert waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform)
    assert np.isfinite(waveform).all()
    assert sum(map(len, stream_audio(_source(case, folder), rate))) == len(waveform)
    return "accepted"


# Containers and types of integers: refused, or read as the undamaged input


NO_LENGTH = ("ircam", "paf", "pvf", "xi")  # containers without a length in the header, which are read to their end


def _make_container(rng: random.Random) -> Case:
    name = rng.choice(list(long_files()))
    content = long_files()[name]
    deed = rng.choice(("whole", "cut", "join", "append", "length", "length"))
    damaged = content
    if deed == "cut":
        damaged = content[: rng.randrange(len(content))]
    elif deed == "join":
        damaged = content + (content if rng.random() < 0.5 else rng.choice(list(long_files().values())))
    elif deed == "append":
        damaged = content + rng.randbytes(rng.choice((100, 1_000, 30_000)))
    elif deed == "length":
        damaged = with_other_length(content, rng)
    return Case("container", {"whole": content, "damaged": damaged}, {"name": name, "deed": deed})


def _run_container(case: Case, folder: Path) -> str:
    whole = read_audio(case.files["whole"], 16_000)
    try:
        samples = read_audio(case.files["damaged"], 16_000)
    except AudioError as error:
        return refused(error, [name_of(case.files["damaged"])])
    has_length = not case.options["name"].startswith(NO_LENGTH)
    if case.options["deed"] == "cut" and not has_length:
        return "accepted"
    common = min(len(whole), len(samples)) - 700  # the last block of a codec, and the resampler's reach
    assert np.abs(samples[:common] - whole[:common]).max(initial=0) < 1e-3, "other samples"
    assert len(samples) >= len(whole) - 1_600 - 512, f"{len(samples)} samples of {len(whole)}"
    assert len(samples) <= len(whole) + 2_000 or not has_length, f"{len(samples)} samples, not {len(whole)}"
    return "accepted"


def _make_integers(rng: random.Random) -> Case:
    dtype = rng.choice(("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "list", "float32"))
    options = {"dtype": dtype, "bits": rng.choice((8, 12, 16, 24, 32)), "seed": rng.randrange(2**31)}
    return Case("integers", options=options | {"channels": rng.choice((1, 2))})


def _run_integers(case: Case, folder: Path) -> str:
    """Reads samples of a number of bits from an array of a type, which may have more or fewer bits."""
    dtype, bits = case.options["dtype"], case.options["bits"]
    samples = np.random.default_rng(case.options["seed"]).uniform(-0.9, 0.9, (2_000, case.options["channels"]))
    numbers = np.round(samples * 2 ** (bits - 1)).astype(np.int64)
    if dtype == "float32":
        array: Any = samples.astype(np.float32)
    elif dtype == "list":
        array = numbers.tolist()
    else:
        numbers += 2 ** (bits - 1) if dtype[0] == "u" else 0
        if not np.iinfo(dtype).min <= numbers.min() <= numbers.max() <= np.iinfo(dtype).max:
            return "not representable"
        array = numbers.astype(dtype)
    source = {"array": array, "sampling_rate": 16_000}
    try:
        waveform = read_audio(source, 16_000)
    except AudioError as error:
        return refused(error, [name_of(source)])
    if (dtype, bits) in (("int16", 8), ("int16", 12)):  # quiet, since int16 has a known full scale
        return "accepted"
    assert np.abs(waveform - samples.mean(axis=1)).max() < 0.01, "other samples"
    return "accepted"


# The pipeline


@functools.cache
def pipeline() -> MaxMViTAudioClassificationPipeline:
    model = tiny_model()
    model.config.id2label = dict(enumerate(LABELS))
    return MaxMViTAudioClassificationPipeline(
        model=model, feature_extractor=tiny_feature_extractor(), task="audio-classification", device="cpu"
    )


PARAMETERS = {
    "window_s": (0.5, 1.0, 3, None, 0, -1, 1e-9, 1e9, "3", True, [1], "nan"),
    "hop_s": (0.5, 0.05, None, 0, 1e-9, 1e-320, 5, "x"),
    "silence_db": (-60, -200, 0, None, "loud", "nan"),
    "sampling_rate": (16_000, 8_000.0, 1, 1e30, None, "x"),
    "max_s": (1, 0.05, None, 0, -1, "x"),
    "top_k": (1, 99, None, 0, -1, 1.5, "x"),
    "smooth": (1, 3, 2, 0, None, 10**6 + 1),
    "function_to_apply": ("softmax", "sigmoid", "none", "relu", 1, None),
    "timeline": (True, False, None, 1, "x"),
    "on_error": ("raise", "skip", "ignore", None),
    "window": (1,),
}


def _make_pipeline(rng: random.Random) -> Case:
    files = {}
    for index in range(rng.choice((1, 1, 2, 3))):
        name, content = audio_file(rng) if rng.random() < 0.7 else ("a.wav", rng.choice(list(valid_files().values())))
        files[f"{index}_{name}"] = content
    chosen = rng.sample(sorted(PARAMETERS), rng.choice((0, 1, 1, 2, 3)))
    return Case("pipeline", files, {name: rng.choice(PARAMETERS[name]) for name in chosen})


def _run_pipeline(case: Case, folder: Path) -> str:
    parameters = {name: float("nan") if value == "nan" else value for name, value in case.options.items()}
    sources = [str(folder / name) for name in case.files]
    try:
        results = pipeline()(sources, **parameters)
    except AudioError as error:
        assert parameters.get("on_error") != "skip"
        return refused(error, sources)
    except (ValueError, TypeError) as error:  # invalid parameters
        assert any(words in str(error) for words in ("does not work; ", "is not a parameter", "leaves out audio"))
        return refused(error, list(parameters))
    assert len(results) == len(sources)
    for source, result in zip(sources, results, strict=True):
        assert result and (isinstance(result, list) or source in result["error"])
    return "accepted"


# Lists of files, and tables of predictions


def _make_answers(rng: random.Random) -> Case:
    rows = [["file", "label"], ["a.wav", "sad"], ["deep/b.wav", "happy"], ["http://x/c.wav", ""]]
    listed = broken(csv_of(rows, rng), rng) if rng.random() < 0.8 else csv_of(rows, rng)
    suffix = rng.choice(OUTPUT_SUFFIXES)
    columns = ["file", "start", "end", "windows", "prediction", *LABELS]
    scores = dict.fromkeys(LABELS, 0.25)
    lines = [
        {"file": f"{index}.wav", "start": 0.0, "end": 1.0, "windows": 1, "prediction": "sad", **scores}
        for index in range(3)
    ]
    if suffix == ".csv":
        table = csv_of([columns, *([row[column] for column in columns] for row in lines)], random.Random(0))
    else:
        table = "".join(json.dumps(line) + "\n" for line in lines).encode()
    origin = json.dumps({"model": "x"}).encode()
    files = {"list.csv": listed, f"out{suffix}": broken(table, rng)}
    files[f"out{suffix}.origin.json"] = broken(origin, rng) if rng.random() < 0.2 else origin
    return Case("answers", files, {"columns": columns})


def csv_of(rows: list[list[Any]], rng: random.Random) -> bytes:
    """Returns a CSV table, sometimes with a value that no table should contain."""
    odd = (
        "",
        "\0",
        '"',
        "'",
        "x" * 200_000,
        "x" * 300,
        "../../etc/passwd",
        "/dev/zero",
        ".",
        "\u2028",
        "\ud7ff",
        "a\r",
        "=1",
    )
    cells = [[str(value) for value in row] for row in rows]
    if rng.random() < 0.5:
        row = rng.choice(cells)
        row[rng.randrange(len(row))] = rng.choice(odd)
    return "".join(",".join(row) + "\n" for row in cells).encode()


def _run_answers(case: Case, folder: Path) -> str:
    ends = []
    try:
        items = find_items([str(folder / "list.csv")], LABELS)
        assert all(isinstance(item.file, str) and item.file for item in items)
        ends.append("accepted")
    except (DataError, UsageError) as error:
        ends.append(refused(error, [str(folder / "list.csv")]))
    (output,) = (str(folder / name) for name in case.files if name.startswith("out") and "origin" not in name)
    segments = [{"start": 0.0, "end": 1.0, "label": "sad", "scores": dict.fromkeys(LABELS, 0.25)}]
    try:
        table = Table(output, case.options["columns"], LABELS, {"model": "x"})
        table.add(Item("new.wav"), segments)
        table.close()
        table = Table(output, case.options["columns"], LABELS, {"model": "x"})
        assert "new.wav" in table.done
        table.close()
        ends.append("accepted")
    except UsageError as error:
        ends.append(refused(error, [output]))
    return " and ".join(sorted(set(ends)))


# URLs


def _make_url(rng: random.Random) -> Case:
    name, content = audio_file(rng)
    return Case("url", {name: content}, {"behaviour": rng.choice(BEHAVIOURS), "seed": rng.randrange(2**31)})


def _run_url(case: Case, folder: Path) -> str:
    ((name, content),) = case.files.items()
    limits = {"MAX_DOWNLOAD_S": 0.4, "MAX_SILENCE_S": 0.2, "MAX_DOWNLOAD_BYTES": 2**21}
    with mock.patch.multiple(audio_maxmvit, **limits):
        url = address_of(case.options["behaviour"], case.options["seed"], name, content)
        try:
            waveform = read_audio(url, 16_000, allow_private_urls=case.options["behaviour"] != "private")
        except AudioError as error:
            return refused(error, [url])
    assert len(waveform) and np.isfinite(waveform).all()
    return "accepted"


def _kinds() -> dict[str, Kind]:
    from tests.fuzz import arguments, checkpoints, corpora, segment_files, tables

    return {
        "reading": Kind(_make_reading, _run_reading, 30),
        "container": Kind(_make_container, _run_container, 8),
        "integers": Kind(_make_integers, _run_integers, 4),
        "pipeline": Kind(_make_pipeline, _run_pipeline, 14),
        "corpus": Kind(corpora.make, corpora.run, 16),
        "tables": Kind(tables.make, tables.run, 4),
        "answers": Kind(_make_answers, _run_answers, 6),
        "arguments": Kind(arguments.make, arguments.run, 12),
        "url": Kind(_make_url, _run_url, 6),
        "checkpoint": Kind(checkpoints.make, checkpoints.run, 4),
        "segments": Kind(segment_files.make, segment_files.run, 6),
    }


KINDS = functools.cache(_kinds)


def make_case(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed}:{number}")
    kinds = KINDS()
    (name,) = rng.choices(list(kinds), weights=[kind.share for kind in kinds.values()])
    return kinds[name].make(rng)
