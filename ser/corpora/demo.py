"""The corpus that the project synthesises itself; see `ser/demo_corpus.py`."""

from collections.abc import Iterator
from pathlib import Path

import datasets

from ser.corpora.readers import visible_files
from ser.corpora.records import Record
from ser.demo_corpus import VERSION, write_demo_corpus
from ser.errors import DataError


def make_demo_corpus(cache_dir: str | None) -> str:
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"maxmvit_demo_corpus_{VERSION}"
    try:
        write_demo_corpus(folder)
    except FileExistsError as error:
        raise DataError(str(error)) from error
    return str(folder)


def _tree(folder: Path) -> Iterator[dict]:
    for audio in visible_files(folder, "voice_*/*.wav"):
        file = audio.relative_to(folder).as_posix()
        yield {"file": file, "audio": audio, "label": audio.stem.rpartition("_")[0], "speaker": audio.parent.name}


RECORD = Record(
    labels=("neutral", "happy", "angry", "sad"),
    aliases={name: name for name in ("neutral", "happy", "angry", "sad")},
    hub={},
    tree=_tree,
    speech="synthesised voices; labels are what they were made to express",
    licence="MIT",
    clips=480,
    speakers=24,
)
