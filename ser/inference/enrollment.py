"""Makes the speaker profiles of a command: reads one, or enrolls each speaker or all recordings."""

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

SPEAKER, TABLE = "speaker", "table"  # values of --adapt other than a file


def check_speakers(items: Sequence[Item]) -> None:
    """Raises `UsageError` unless each recording has a speaker."""
    if unknown := [item.file for item in items if item.speaker is None]:
        raise UsageError(
            f"--adapt {SPEAKER} needs the speaker of every recording, and {len(unknown):,} have none, such as "
            f"{unknown[0]}: give a list with a column speaker, or use --adapt {TABLE}."
        )


def adaptation_origin(adapt: str | None, relevance: float, items: Sequence[Item]) -> str | None:
    """Returns a text that identifies how answers are adapted: by profiles of which recordings, or by a file of which
    content.

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
    Returns the profile for each recording, by its file. Recordings of a speaker without any audible, readable
    recording have none.

    Args:
        classify: Pipeline that computes the profiles.
        adapt: `"speaker"`, `"table"`, or the path of a profile.
        items: All recordings, the same in every process.
        relevance: See [`~MaxMViTAudioClassificationPipeline.enroll`].
        processes: Processes that share the work; each returns all profiles.

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
    """Returns the profiles of some recordings, with the names of their speakers."""
    files: dict[str, list[str]] = defaultdict(list)
    for item in items:
        files[_name(adapt, item)].append(item.file)
    profiles = []
    with tqdm(total=len(items), desc="enrolling", unit="file", file=sys.stderr, disable=not is_shown) as progress:
        for name, own in files.items():
            with suppress(AudioError):  # all are silent, or are reported when they are classified
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
                f"The {profile.clips} clips of the speaker {name!r} differ more, in the features that distinguish "
                "speakers, than those of any training speaker: they may be of several.",
                file=sys.stderr,
            )


def write_profile(
    classify: MaxMViTAudioClassificationPipeline, items: Sequence[Item], relevance: float, path: str
) -> None:
    """
    Enrolls one speaker from recordings, writes the profile, and prints how much audio it is based on.

    Raises:
        UsageError: There is no speech in the recordings, a recording or the model cannot be used, or the file cannot
            be written.
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
    print(f"{path}: a profile of {profile.clips} clips, {profile.seconds:.1f} s of audio.", file=sys.stderr)
