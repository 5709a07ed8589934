"""Speaker profiles of the recordings of a command: one from a file, one for each speaker, or one of all."""

import hashlib
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from audio_maxmvit import AudioError
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline, SpeakerProfile, population_mean
from ser.inference.predictions import Item
from ser.utils import UsageError

SPEAKER, TABLE = "speaker", "table"  # what --adapt takes besides a file


def check_speakers(items: Sequence[Item]) -> None:
    """Raises `UsageError` unless each recording has a speaker."""
    if unknown := [item.file for item in items if item.speaker is None]:
        raise UsageError(
            f"--adapt {SPEAKER} needs the speaker of every recording, and {len(unknown):,} have none, such as "
            f"{unknown[0]}: give a list with a column speaker, or take --adapt {TABLE}."
        )


def adaptation_origin(adapt: str | None, relevance: float, items: Sequence[Item]) -> str | None:
    """A text that is the same for two commands whose answers are adapted alike: by profiles of the same recordings, or
    by a file of the same content.

    Raises:
        UsageError: The file cannot be read.
    """
    if adapt is None:
        return None
    if adapt not in (SPEAKER, TABLE):
        try:
            with open(adapt, "rb") as file:
                return f"profile sha256-{hashlib.sha256(file.read()).hexdigest()}"
        except OSError as error:
            raise UsageError(f"--adapt {adapt} cannot be read: {error.strerror}.") from error
    whose = sorted((item.file, (item.speaker or "") if adapt == SPEAKER else "") for item in items)
    digest = hashlib.sha256(json.dumps(whose).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{adapt}, relevance {relevance:g}, recordings sha256-{digest}"


def profiles_of(
    classify: MaxMViTAudioClassificationPipeline,
    adapt: str,
    items: Sequence[Item],
    relevance: float,
    processes: PartialState | None = None,
) -> dict[str, SpeakerProfile]:
    """
    The profile for each recording, by its file; none for those of a speaker whose recordings are all silent or cannot
    be read.

    Args:
        classify: Makes the profiles.
        adapt: `"speaker"`, `"table"`, or the path of a profile.
        items: All recordings, the same in every process.
        relevance: See [`~MaxMViTAudioClassificationPipeline.enroll`].
        processes: Those that share the work; each gets all profiles.

    Raises:
        UsageError: The model or the profile cannot be used.
    """
    try:
        population_mean(classify.model)
        if adapt not in (SPEAKER, TABLE):
            profile = SpeakerProfile.load(adapt)
            classify.shift_of(profile)
            return dict.fromkeys((item.file for item in items), profile)
    except (OSError, ValueError) as error:
        raise UsageError(f"--adapt {adapt}: {error}") from error
    found: list[tuple[str, SpeakerProfile]] = []
    if processes is None:
        found = _enrolled(classify, adapt, items, relevance, True)
    else:
        with processes.split_between_processes(list(items)) as own:
            found = gather_object(_enrolled(classify, adapt, own, relevance, processes.is_main_process))
    parts: dict[str, list[SpeakerProfile]] = defaultdict(list)
    for name, part in found:
        parts[name].append(part)
    profiles = {name: SpeakerProfile.joined(those) for name, those in parts.items()}
    if adapt == SPEAKER and (processes is None or processes.is_main_process):
        _warn_of_several(classify, profiles)
    names = {item.file: _name(adapt, item) for item in items}
    return {file: profiles[name] for file, name in names.items() if name in profiles}


def _name(adapt: str, item: Item) -> str:
    return item.speaker or "" if adapt == SPEAKER else ""


def _enrolled(
    classify: MaxMViTAudioClassificationPipeline, adapt: str, items: Sequence[Item], relevance: float, is_shown: bool
) -> list[tuple[str, SpeakerProfile]]:
    """The profiles of some recordings, by name of the speaker."""
    files: dict[str, list[str]] = defaultdict(list)
    for item in items:
        files[_name(adapt, item)].append(item.file)
    profiles = []
    with tqdm(total=len(items), desc="enrolling", unit="file", file=sys.stderr, disable=not is_shown) as progress:
        for name, own in files.items():
            with suppress(AudioError):  # all of them are silent, or are named when they are to be answered
                profiles.append((name, classify.enroll(_counted(own, progress), relevance, several_speakers=True)))
    return profiles


def _counted(files: Iterable[str], progress: tqdm) -> Iterator[str]:
    for file in files:
        yield file
        progress.update()


def _warn_of_several(classify: MaxMViTAudioClassificationPipeline, profiles: Mapping[str, SpeakerProfile]) -> None:
    for name, profile in profiles.items():
        if classify.looks_like_several(profile):
            print(
                f"The {profile.clips} clips of the speaker {name!r} differ more in what tells speakers apart than "
                "those of any training speaker: they may be of several.",
                file=sys.stderr,
            )


def write_profile(
    classify: MaxMViTAudioClassificationPipeline, items: Sequence[Item], relevance: float, path: str
) -> None:
    """
    Enrolls one speaker from recordings, says how much there was of him, and writes the profile.

    Raises:
        UsageError: There is no speech in the recordings, a recording or the model cannot be used, or nothing can be
            written there.
    """
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            profile = classify.enroll([item.file for item in items], relevance, on_error="raise")
        profile.save(path)
    except (AudioError, ValueError, FloatingPointError) as error:
        raise UsageError(f"no speaker can be enrolled: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
    for warning in warned:
        print(f"warning: {warning.message}", file=sys.stderr)
    print(f"{path}: a profile of {profile.clips} clips, {profile.seconds:.1f} s of sound.", file=sys.stderr)
