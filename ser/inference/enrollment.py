"""Makes the speaker profiles for a command: reads a profile, or enrolls each speaker or all recordings."""

import hashlib
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from audio_maxmvit import AudioError
from pipeline_maxmvit import MaxMViTAudioClassificationPipeline, SpeakerProfile, population_mean
from ser.inference.annotations import identity
from ser.inference.predictions import Item
from ser.utils import UsageError

SPEAKER, TABLE = "speaker", "table"  # values of --adapt other than a file


def check_speakers(items: Sequence[Item]) -> None:
    """Raises `UsageError` unless each recording, or each of its segments, has a speaker."""
    for item in items:
        if nameless := [segment for segment in item.segments or () if not segment.get("speaker")]:
            raise UsageError(
                f"--adapt {SPEAKER} needs the speaker of every segment, which {nameless[0]['place']} does not have: "
                f"fill it in, or use --adapt {TABLE}."
            )
    items = [item for item in items if item.segments is None]
    if unknown := [item.file for item in items if item.speaker is None]:
        raise UsageError(
            f"--adapt {SPEAKER} needs the speaker of every recording, and {len(unknown):,} have none, such as "
            f"{unknown[0]}: give a list with a column speaker, or use --adapt {TABLE}."
        )


def adaptation_origin(adapt: str | None, relevance: float, items: Sequence[Item]) -> str | None:
    """Returns a text that identifies how predictions are adapted: the recordings of the profiles, or the content of
    the file.

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
    # The origin of a table has a separate entry for segments.
    speakers = sorted((item.file, (item.speaker or "") if adapt == SPEAKER else "") for item in items)
    digest = hashlib.sha256(json.dumps(speakers).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{adapt}, relevance {relevance:g}, recordings sha256-{digest}"


def profiles_of(
    classify: MaxMViTAudioClassificationPipeline,
    adapt: str,
    items: Sequence[Item],
    relevance: float,
    processes: PartialState | None = None,
) -> dict[str, Any]:
    """
    Returns the profile for each recording, by its file; for a recording with segments and `"speaker"`, the profiles by
    the names of its speakers. Speakers without any audible, readable recording or segment have none.

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
    profiles = {name: SpeakerProfile.joined(own) for name, own in parts.items()}
    if adapt == SPEAKER and (processes is None or processes.is_main_process):
        _warn_of_several(classify, profiles)
    found_for: dict[str, Any] = {}
    for item in items:
        if adapt == SPEAKER and item.segments is not None:
            names = {segment["speaker"]: identity(item.file, segment["speaker"]) for segment in item.segments}
            found_for[item.file] = {name: profiles[whole] for name, whole in names.items() if whole in profiles}
        elif (name := item.speaker or "" if adapt == SPEAKER else "") in profiles:
            found_for[item.file] = profiles[name]
    return found_for


def _by_speaker(adapt: str, item: Item) -> dict[str, list[dict[str, Any]] | None]:
    """Returns the segments from which each profile is made, by the profile's name; None for the whole recording."""
    if item.segments is None:
        return {item.speaker or "" if adapt == SPEAKER else "": None}
    parts: dict[str, list[dict[str, Any]] | None] = {}
    for segment in item.segments:
        name = identity(item.file, segment["speaker"]) if adapt == SPEAKER else ""
        parts[name] = [*(parts.get(name) or []), segment]
    return parts


def _enrolled(
    classify: MaxMViTAudioClassificationPipeline, adapt: str, items: Sequence[Item], relevance: float, is_shown: bool
) -> list[tuple[str, SpeakerProfile]]:
    """Returns the profiles of some recordings, with the names of their speakers."""
    parts: dict[str, list[tuple[str, list[dict[str, Any]] | None]]] = defaultdict(list)
    for item in items:
        for name, segments in _by_speaker(adapt, item).items():
            parts[name].append((item.file, segments))
    profiles = []
    total = sum(map(len, parts.values()))
    with tqdm(total=total, desc="enrolling", unit="file", file=sys.stderr, disable=not is_shown) as progress:
        for name, own in parts.items():
            chosen = None if own[0][1] is None else [segments for _, segments in own]
            options = {} if chosen is None else {"segments": chosen}
            files = _counted([file for file, _ in own], progress)
            with suppress(AudioError):  # all are silent, or unreadable, which is reported when they are classified
                profiles.append((name, classify.enroll(files, relevance, several_speakers=True, **options)))
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
                "speakers, than those of any training speaker: they may be of several speakers.",
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
