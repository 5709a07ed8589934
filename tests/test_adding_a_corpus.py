"""docs/adding_a_corpus.md, done as it says."""

import re
from pathlib import Path

import pytest

from ser.corpora import RECORDS, load_corpus
from ser.errors import DataError
from ser.protocols import make_split
from tests.clips import write_sound

GUIDE = (Path(__file__).parents[1] / "docs" / "adding_a_corpus.md").read_text()


@pytest.fixture
def cremad(monkeypatch):
    """The corpus of the guide's own code, known as its third step makes it known."""
    module: dict = {}
    exec(next(code for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "RECORD =" in code), module)
    monkeypatch.setitem(RECORDS, "cremad", module["RECORD"])


def test_the_guides_record_gives_a_corpus_and_its_folds(cremad, tmp_path):
    for actor in range(1001, 1011):
        for number, code in enumerate(("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")):
            write_sound(tmp_path / "AudioWAV" / f"{actor}_DFA_{code}_XX.wav", seed=10 * actor + number)
    write_sound(tmp_path / "AudioWAV" / "test tone.wav", seed=0)
    corpus = load_corpus("cremad", str(tmp_path / "AudioWAV"))
    assert len(corpus) == 60 and corpus.label_names[0] == "anger"
    assert corpus.dropped == {"not named as a CREMA-D clip": 1}
    assert corpus.speakers[corpus.files.index("1004_DFA_HAP_XX.wav")] == "1004"
    split = make_split(corpus, "speaker", fold=1)
    assert split.name == "cremad/speaker-fold1" and split.speaker_disjoint
    assert "no speaker in two parts" in split.summary()


def test_a_corpus_without_a_copy_on_the_hub_asks_for_its_folder(cremad):
    with pytest.raises(DataError, match="cremad has no copy on the Hub .*: name its folder by data_dir"):
        load_corpus("cremad")
