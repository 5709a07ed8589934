"""Divides corpora into training, validation and test parts by named protocols.

A score is meaningful only together with its protocol: a split that shares speakers and one that keeps them apart are
different tasks. Every split has a name ("ravdess/emobox-fold1"), and is checked before it is used.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from ser.data.corpora.corpus import Corpus
from ser.data.corpora.registry import RECORDS
from ser.utils import DataError

EVERYTHING = "everything"
SENTENCE = "sentence"
PROTOCOLS = ("predefined", "random", "speaker", "loso", SENTENCE, EVERYTHING)
ONE_FOLD = ("predefined", EVERYTHING)
RANDOM_FOLDS = 5
VALIDATION_SHARE = 0.15
SPEAKER_FOLDS = 5  # for corpora without published folds
EMPTY_PART = {"validation": "no validation set", "test": "no test set"}


@dataclass
class Split:
    """Indices of the clips of a corpus in each part.

    Args:
        name: corpus and protocol, with the fold if there are several ("ravdess/emobox-fold1").
        train: clips to train on.
        validation: clips by which checkpoints and learning rates are chosen; may be empty.
        test: clips that are used for scores only; may be empty.
        speaker_disjoint: whether no speaker is in two parts.
    """

    name: str
    train: list[int]
    validation: list[int]
    test: list[int]
    speaker_disjoint: bool

    @property
    def parts(self) -> dict[str, list[int]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def summary(self) -> str:
        parts = {part: indices for part, indices in self.parts.items() if indices}
        facts = [", ".join(f"{len(indices):,} {part}" for part, indices in parts.items()) + " clips"]
        if len(parts) > 1:
            apart = self.speaker_disjoint
            facts.append("no speaker in two parts" if apart else "SPEAKERS SHARED between parts (or unknown)")
        facts += [text for part, text in EMPTY_PART.items() if part not in parts]
        return f"Protocol {self.name}: {'; '.join(facts)}"


def published_folds(corpus: Corpus) -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """Returns the published folds of a corpus: name -> speakers (or sessions) tested in fold 1, 2, ..."""
    return RECORDS[corpus.name].folds if corpus.name in RECORDS else {}


def default_validation_share(protocol: str | None) -> float:
    """Returns the default of `validation_share` for a data set without a validation part of its own."""
    return 0.0 if protocol == EVERYTHING else VALIDATION_SHARE


def resolve_protocol(corpus: Corpus, protocol: str | None = None) -> str:
    """Returns the full name of a protocol: "speaker" becomes the corpus's published folds ("emobox"). The default is
    the data set's own test split if it has one, else speaker folds, else "random". If other corpora are tested, the
    name contains the number of classes that they share with the training corpora ("shared-6")."""
    if corpus.shared_labels is not None:
        if protocol is not None:
            raise DataError(f"{corpus.name} is tested on another corpus, not by a protocol: leave out --protocol.")
        return f"shared-{len(corpus.shared_labels)}"
    published = published_folds(corpus)
    if protocol is None:
        if "test" in corpus.clips["split"][:]:
            return "predefined"
        held, column = {*(_own_validation(corpus) or ())}, _column(corpus, next(iter(published), "speaker"))
        groups = {group for i, group in enumerate(column) if i not in held}
        protocol = "random" if None in groups or len(groups) < (2 if held else 3) else "speaker"
    if protocol == "speaker":
        return next(iter(published), "loso" if corpus.name == "emodb" else "speaker")
    if protocol not in PROTOCOLS and protocol not in published:
        raise DataError(f"{corpus.name} has no protocol {protocol!r}; it has {', '.join((*PROTOCOLS, *published))}.")
    return protocol


def n_folds(corpus: Corpus, protocol: str | None = None, test_speakers: Sequence[str] | None = None) -> int:
    """Returns the number of folds of `--fold all` (1 for `predefined`, `everything` and test speakers)."""
    return 1 if test_speakers else _n_folds(corpus, resolve_protocol(corpus, protocol))


def _n_folds(corpus: Corpus, name: str) -> int:
    if name == "random" and corpus.shared_labels is None:
        return RANDOM_FOLDS
    return len(_folds(corpus, name) or [()])


def make_split(
    corpus: Corpus,
    protocol: str | None = None,
    fold: int = 1,
    validation_share: float | None = None,
    seed: int = 42,
    test_speakers: Sequence[str] | None = None,
) -> Split:
    """Divides a corpus by a protocol, separates a validation part from the training part and checks the result.

    Args:
        protocol: `predefined` (the data set's own splits), `random` (five stratified folds; speakers shared),
            `speaker` (the corpus's published folds, else five folds of whole speakers), the name of published folds
            (`emobox`, `luna-jimenez`, `sessions`), `loso` (leave one speaker out), `sentence` (tests speakers and
            sentences that are not in the training part) or `everything` (all clips are trained on; no test part). The
            default is that of [`resolve_protocol`]. Not used if other corpora are tested.

            `sentence` divides the sentences alternately into two halves (RAVDESS: statement 1, statement 2), and the
            speakers into folds: published ones that test every speaker (RAVDESS: EmoBox's six), else five. With K
            folds of speakers, fold k tests the k-th group of speakers on the second half of the sentences, and trains
            on the other speakers with the first half; fold K + k exchanges the halves. All folds together test each
            clip once. Clips of tested speakers with training sentences, and the reverse, are in no part.
        fold: number of the fold, from 1.
        validation_share: share of the training clips for validation or, if the protocol keeps speakers apart, of the
            training speakers (at least one); `everything` keeps them apart if they are known. 0 means no validation;
            the default is 0.15, and 0 for `everything`. Not allowed if the data set has its own validation split (if
            it has no test split, the test part is taken from its other clips), nor with `loso` on IEMOCAP, which
            validates on the test speaker's dialogue partner, as published.
        seed: random seed of the division.
        test_speakers: speakers to test instead of a protocol.

    Raises:
        DataError: the corpus does not allow the protocol, or the parts would share a speaker or a clip.
    """
    if validation_share is not None and not 0 <= validation_share < 1:
        raise DataError(f"validation_share must be 0 or lie between 0 and 1, not {validation_share}.")
    name, test, validation, apart = test_part(corpus, protocol, fold, seed, test_speakers)
    train = sorted({*range(len(corpus))} - {*test} - {*(validation or ())})
    if not test_speakers and resolve_protocol(corpus, protocol) == SENTENCE:
        train = _with_training_sentences(corpus, train, test, fold)
        validation = validation and _with_training_sentences(corpus, validation, test, fold)
    may_be_empty = {"test"} if name == EVERYTHING else set()
    if not validation:
        share = default_validation_share(name) if validation_share is None else validation_share
        cut = _whole_speakers if apart else _stratified
        train, validation = cut(corpus, train, share, seed) if share else (train, [])
        may_be_empty |= set() if share else {"validation"}
    elif validation_share is not None:
        raise DataError(f"{corpus.name}/{name} has its own validation part: leave out --validation_share.")
    split = Split(f"{corpus.name}/{name}", train, validation, test, apart)
    check_split(corpus, split, may_be_empty)
    return split


def test_part(
    corpus: Corpus,
    protocol: str | None = None,
    fold: int = 1,
    seed: int = 42,
    test_speakers: Sequence[str] | None = None,
) -> tuple[str, list[int], list[int] | None, bool]:
    """Returns the test part: (name of the protocol with its fold, test clips, validation clips if the protocol or the
    data set defines them, whether speakers are kept apart). The arguments are those of [`make_split`]."""
    validation = _own_validation(corpus)
    held = {*(validation or ())}
    if test_speakers:
        spelt = {str(_natural(s)[0]): s for s in corpus.speakers if s}  # 1 means actor 01
        tested = [spelt.get(str(_natural(str(s))[0]), str(s)) for s in test_speakers]
        name, test, apart = "speakers-" + "+".join(tested), _of_groups(corpus, "test_speakers", tested), True
        validation = validation and [i for i in validation if i not in {*test}]
    else:
        name = resolve_protocol(corpus, protocol)
        count = _n_folds(corpus, name)
        if not 1 <= fold <= count:
            raise DataError(f"Protocol {name} of {corpus.name} has folds 1 to {count}, not {fold}.")
        if name == "predefined":
            validation, test, apart = _predefined(corpus)
        elif corpus.shared_labels is not None:
            splits, who = corpus.clips["split"][:], _speakers(corpus)
            test = [i for i, split in enumerate(splits) if split == "test"]
            apart = None not in {who[i] for i, split in enumerate(splits) if split != "test"}
        elif name == EVERYTHING:
            test, apart, validation = [], None not in _speakers(corpus), None
        elif name == "random":
            test, apart = _random_fold(corpus, [i for i in range(len(corpus)) if i not in held], fold, seed), False
            name = f"{name}-fold{fold}"
        else:
            test, apart = _of_groups(corpus, name, (_folds(corpus, name) or ())[fold - 1]), True
            if name == SENTENCE:
                sentence_of, sentences = corpus.sentences, _tested_sentences(corpus, fold)
                test = [i for i in test if sentence_of[i] in sentences]
            if name in published_folds(corpus) and name in RECORDS[corpus.name].validated:
                validation = _of_groups(corpus, name, RECORDS[corpus.name].validated[name][fold - 1])
            if name == "loso":
                validation = validation or _partner(corpus, test)
            if held:
                test = [i for i in test if i not in held]
            name = f"{name}-fold{fold}"
    return name, test, validation, apart


def check_split(corpus: Corpus, split: Split, may_be_empty: Collection[str] = ()) -> None:
    """Raises `DataError` if a part is empty that must not be, the training part lacks a class, a speaker-disjoint
    split shares a speaker, or two parts share a clip, by index or by content."""
    files, labels = corpus.files, corpus.labels
    for part, indices in split.parts.items():
        if not indices and part not in may_be_empty:
            raise DataError(f"The {part} part of {split.name} is empty.")
    if missing := {*range(len(corpus.label_names))} - {labels[i] for i in split.train}:
        names = ", ".join(repr(corpus.label_names[label]) for label in sorted(missing))
        raise DataError(f"The training part of {split.name} has no clip of class {names}: choose another --fold, "
                        "--protocol or --labels.")  # fmt: skip
    if split.speaker_disjoint and (shared := _shared(split, _speakers(corpus))):
        speaker, (one, i), (other, j) = shared[0]
        raise DataError(
            f"Speaker {speaker} is both in {one} ({files[i]}) and in {other} ({files[j]}), but {split.name} keeps "
            f"speakers apart ({len(shared)} shared). Correct the speakers or the splits of {corpus.source}, or use "
            "--protocol random, which does not keep them apart."
        )
    if shared := _shared(split, corpus.contents):
        pairs = "; ".join(f"{files[i]} ({one}) = {files[j]} ({other})" for _, (one, i), (other, j) in shared[:3])
        raise DataError(
            f"{split.name} has the same recording in two parts, {len(shared)} time(s): {pairs}. "
            "Remove the duplicates with --drop_duplicates."
        )


def _shared(split: Split, keys: Sequence[str | None]) -> list[tuple[str | None, tuple[str, int], tuple[str, int]]]:
    """Returns (key, (part, index), (other part, index)) for every key that occurs in two parts."""
    first: dict[str | None, tuple[str, int]] = {}
    shared: dict[str | None, tuple[str | None, tuple[str, int], tuple[str, int]]] = {}
    for part, indices in split.parts.items():
        for i in indices:
            earlier = first.setdefault(keys[i], (part, i))
            if earlier[0] != part:
                shared.setdefault(keys[i], (keys[i], earlier, (part, i)))
    return list(shared.values())


def _natural(text: str) -> tuple:
    """Returns a sort key by which "2" comes before "10"."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", text)], text


def _column(corpus: Corpus, protocol: str) -> list[str | None]:
    return corpus.sessions if protocol == "sessions" else corpus.speakers


def _speakers(corpus: Corpus) -> list[str | None]:
    """Returns what must not be in two parts: the speaker of each clip or, if speakers are unknown, the session, whose
    two speakers are in no other session."""
    speakers = corpus.speakers
    return corpus.sessions if None in speakers else speakers


def _folds(corpus: Corpus, name: str) -> list[Sequence[str]] | None:
    """Returns the groups that are tested fold by fold; None for a protocol whose folds are not groups."""
    if name in (*ONE_FOLD, "random") or corpus.shared_labels is not None:
        return None
    if name in published_folds(corpus):
        return list(published_folds(corpus)[name])
    held = {*(_own_validation(corpus) or ())}
    speakers = sorted({who for i, who in enumerate(_known(corpus, name)) if i not in held}, key=_natural)
    if name == "loso":
        return [(speaker,) for speaker in speakers]
    if name == SENTENCE:
        published = (folds for key, folds in published_folds(corpus).items() if key != "sessions")
        whole: Iterator[list[Sequence[str]]] = (
            list(folds) for folds in published if {*speakers} <= {s for fold in folds for s in fold}
        )
        return 2 * next(whole, _dealt(speakers))
    return _dealt(speakers)


def _random_fold(corpus: Corpus, indices: list[int], fold: int, seed: int) -> list[int]:
    """
    Returns the test clips of a fold of `random`: for the first fold a stratified fifth, for each other fold a quarter
    of the rest of every class. Clips with equal audio are in one fold.
    """
    rest, first = _stratified(corpus, indices, 1 / RANDOM_FOLDS, seed)
    if fold == 1:
        return first
    contents, labels, equal = corpus.contents, corpus.labels, defaultdict(list)
    for i in rest:
        equal[contents[i]].append(i)
    groups = list(equal.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    dealt = sorted(order, key=lambda k: labels[groups[k][0]])  # class by class, each at random
    return sorted(i for k in dealt[fold - 2 :: RANDOM_FOLDS - 1] for i in groups[k])


def _dealt(speakers: Sequence[str]) -> list[Sequence[str]]:
    return [speakers[k::SPEAKER_FOLDS] for k in range(min(SPEAKER_FOLDS, len(speakers)))]


def _tested_sentences(corpus: Corpus, fold: int) -> set[str]:
    """Returns the sentences that a fold of the protocol `sentence` tests: the second half of them in the first half of
    the folds, and the reverse."""
    sentences = corpus.sentences
    if unknown := [i for i, sentence in enumerate(sentences) if sentence is None]:
        raise DataError(
            f"Protocol {SENTENCE} needs the sentence of every clip, which {corpus.source} does not state for "
            f"{len(unknown):,} of {len(corpus):,} (such as {corpus.files[unknown[0]]}). The original file names of "
            "RAVDESS, EMO-DB and CREMA-D contain it; for other corpora use --protocol speaker."
        )
    known = sorted({sentence for sentence in sentences if sentence is not None}, key=_natural)
    if len(known) < 2:
        raise DataError(
            f"Protocol {SENTENCE} needs two sentences, and all clips of {corpus.source} are of {known[0]!r}: use "
            "--protocol speaker."
        )
    is_first_half = fold <= len(_folds(corpus, SENTENCE) or ()) // 2
    return {*known[1::2]} if is_first_half else {*known[0::2]}


def _with_training_sentences(corpus: Corpus, clips: list[int], test: list[int], fold: int) -> list[int]:
    """Returns the clips whose speaker and sentence are both not tested."""
    speakers, sentence_of, sentences = corpus.speakers, corpus.sentences, _tested_sentences(corpus, fold)
    tested = {speakers[i] for i in test}
    return [i for i in clips if speakers[i] not in tested and sentence_of[i] not in sentences]


def _known(corpus: Corpus, name: str) -> list[str]:
    """Returns the speaker (or session) of every clip; raises if one is unknown."""
    column = _column(corpus, name)
    if unknown := [i for i, group in enumerate(column) if group is None]:
        what = "session" if name == "sessions" else "speaker"
        raise DataError(
            f"Protocol {name} needs the {what} of every clip, which {corpus.source} does not state for "
            f"{len(unknown):,} of {len(corpus):,} (such as {corpus.files[unknown[0]]}). Use {corpus.speaker_hint}, or "
            "--protocol random, which shares speakers between training and test."
        )
    return [group for group in column if group is not None]


def _of_groups(corpus: Corpus, name: str, groups: Sequence[str]) -> list[int]:
    column = _known(corpus, name)
    if missing := sorted({*groups} - {*column}, key=_natural):
        have = ", ".join(sorted({*column}, key=_natural))
        raise DataError(f"{name} tests {', '.join(missing)}, but {corpus.source} has no such clips; it has {have}.")
    return [i for i, group in enumerate(column) if group in groups]


def _predefined(corpus: Corpus) -> tuple[list[int], list[int], bool]:
    """Returns (validation, test, whether speakers are kept apart) by the data set's own splits."""
    parts = defaultdict(list)
    for i, part in enumerate(corpus.clips["split"][:]):
        parts[part].append(i)
    for part in ("train", "test"):
        if not parts[part]:
            have = ", ".join(sorted(str(p) for p in parts if parts[p] and p)) or "none"
            raise DataError(f"Protocol predefined needs the splits train and test; {corpus.source} has {have}.")
    if parts[None]:
        raise DataError(
            f"{corpus.source} has no split for {len(parts[None])} clip(s), such as {corpus.files[parts[None][0]]}: "
            "add it, or use another --protocol."
        )
    column = corpus.speakers
    speakers = [{column[i] for i in parts[part]} for part in ("train", "validation", "test")]
    apart = None not in set.union(*speakers) and sum(map(len, speakers)) == len(set.union(*speakers))
    return parts["validation"], parts["test"], apart


def _own_validation(corpus: Corpus) -> list[int] | None:
    """Returns the data set's own validation split if it has no test split, so that the protocol decides what is
    tested; if other corpora are tested, the validation split of the training corpora."""
    splits = corpus.clips["split"][:]
    if "test" in splits and corpus.shared_labels is None:
        return None
    return [i for i, split in enumerate(splits) if split == "validation"] or None


def _partner(corpus: Corpus, test: list[int]) -> list[int] | None:
    """Returns the clips of the other speaker in the test session, if sessions have several speakers."""
    sessions, speakers = corpus.sessions, corpus.speakers
    tested = {sessions[i] for i in test} - {None}
    who = {speakers[i] for i in test}
    return [i for i, session in enumerate(sessions) if session in tested and speakers[i] not in who] or None


def _whole_speakers(corpus: Corpus, indices: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Separates whole speakers, so that the rest contains every class if possible."""
    column, labels = _speakers(corpus), corpus.labels
    groups = sorted({group for i in indices if (group := column[i]) is not None}, key=_natural)
    if len(groups) < 2:
        raise DataError(
            f"Training and validation need two speakers that are not tested, and {corpus.source} has {groups}: use "
            "--validation_share 0, or another --protocol."
        )
    rng = np.random.default_rng(seed)
    for _ in range(100):
        chosen = {groups[k] for k in rng.permutation(len(groups))[: max(1, round(share * len(groups)))]}
        rest = [i for i in indices if column[i] not in chosen]
        if {labels[i] for i in rest} == {labels[i] for i in indices}:
            break
    return rest, [i for i in indices if column[i] in chosen]


def _stratified(corpus: Corpus, indices: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Separates a random share of every class; clips with equal audio stay together, without changing the sizes."""
    labels = corpus.labels
    counts = Counter(labels[i] for i in indices)
    if (lone := {label for label, n in counts.items() if n < 2}) == {-1}:  # a clip without a class counts as class 0
        labels = [max(label, 0) for label in labels]
        counts = Counter(labels[i] for i in indices)
        lone = {label for label, n in counts.items() if n < 2}
    if len(indices) < 2:
        raise DataError(f"{corpus.source} has only one clip to train on, which cannot be divided: add clips.")
    if rare := [corpus.label_names[label] for label in lone if label >= 0]:
        raise DataError(
            f"Class {rare[0]!r} has only one clip, which cannot be divided: add clips, or leave it out with --labels."
        )
    size = max(math.ceil(share * len(indices)), len(counts))
    rest, cut = train_test_split(indices, test_size=size, stratify=[labels[i] for i in indices], random_state=seed)
    contents = corpus.contents
    copies = Counter(contents[i] for i in indices)
    for i in [i for i in cut if copies[contents[i]] > 1 and contents[i] in {contents[j] for j in rest}]:
        single = next((j for j in rest if labels[j] == labels[i] and copies[contents[j]] == 1), None)
        rest, cut = [*rest, i], [j for j in cut if j != i]
        if single is not None:
            rest, cut = [j for j in rest if j != single], [*cut, single]
    return sorted(rest), sorted(cut)
