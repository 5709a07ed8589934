"""Clips of equal sound in one corpus."""

from collections import defaultdict

from ser.corpora.table import Corpus


def keep_one_of_equal_sound(corpus: Corpus) -> None:
    """Keeps one of several clips of equal sound, the one nearest to the test split; none where their labels differ."""
    groups = defaultdict(list)
    for index, content in enumerate(corpus.contents):
        groups[content].append(index)
    labels, splits = corpus.labels, corpus.clips["split"][:]
    order = {"test": 0, "validation": 1, "train": 2, None: 3}
    keep, conflicts = [], 0
    for group in groups.values():
        if len({labels[i] for i in group}) > 1:
            conflicts += len(group)
        else:
            keep.append(min(group, key=lambda i: (order[splits[i]], i)))
    keep.sort()
    repeats = len(corpus) - len(keep) - conflicts
    reasons = {"equal sound as another clip": repeats, "equal sound under different labels": conflicts}
    corpus.dropped |= {reason: n for reason, n in reasons.items() if n}
    contents = [corpus.contents[i] for i in keep]
    corpus.clips = corpus.clips.select(keep)
    corpus.contents = contents
