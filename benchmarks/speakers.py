"""Whom a checkpoint has not heard, by its own splits.json."""

import json
import sys
from pathlib import Path


def speakers_of(checkpoint: Path, part: str = "test") -> list[str]:
    """
    Speakers of one part ("train", "validation" or "test") of a checkpoint's corpus. Where the checkpoint does not say
    so, or has nobody in that part, the command ends with an error.
    """
    try:
        clips = json.loads((checkpoint / "splits.json").read_text(encoding="utf-8"))["clips"]
    except FileNotFoundError:
        sys.exit(f"error: {checkpoint} has no splits.json that tells whom it has not heard; name them by --actors.")
    speakers = {clip["speaker"] for clip in clips if clip["part"] == part}
    if not speakers:
        sys.exit(
            f"error: the {part} part of {checkpoint} is empty: take a checkpoint that has one, or name unheard "
            "speakers by --actors, where the benchmark has that flag."
        )
    return sorted(speakers)
