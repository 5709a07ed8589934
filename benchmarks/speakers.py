"""Speakers in the parts of a checkpoint's corpus, from its splits.json."""

import json
import sys
from pathlib import Path


def speakers_of(checkpoint: Path, part: str = "test") -> list[str]:
    """
    Returns the speakers of one part ("train", "validation" or "test") of a checkpoint's corpus. If the checkpoint has
    no splits.json, or the part is empty, the command ends with an error.
    """
    try:
        clips = json.loads((checkpoint / "splits.json").read_text(encoding="utf-8"))["clips"]
    except FileNotFoundError:
        sys.exit(f"error: {checkpoint} has no splits.json with its test speakers; name them by --actors.")
    speakers = {clip["speaker"] for clip in clips if clip["part"] == part}
    if not speakers:
        sys.exit(
            f"error: the {part} part of {checkpoint} is empty: use a checkpoint that has one, or name speakers that "
            "it was not trained on by --actors, if the benchmark has that option."
        )
    return sorted(speakers)
