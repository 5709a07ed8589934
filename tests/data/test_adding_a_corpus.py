"""The code of docs/adding_a_corpus.md, run as printed."""

import re
from pathlib import Path

import pytest

from ser.data.corpora import RECORDS, load_corpus
from ser.data.corpora.registry import list_corpora
from ser.data.protocols import make_split
from ser.utils import DataError
from tests.helpers.clips import write_sound

GUIDE = (Path(__file__).parents[2] / "docs" / "adding_a_corpus.md").read_text()


@pytest.fixture
def emovo(monkeypatch):
    """Registers the corpus that the guide defines, as its third step does."""
    module: dict = {}
    exec(next(code for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "RECORD =" in code), module)
    monkeypatch.setitem(RECORDS, "emovo", module["RECORD"])


def test_the_guides_record_gives_a_corpus_and_its_folds(emovo, tmp_path):
    for place, speaker in enumerate(("f1", "f2", "f3", "m1", "m2", "m3")):
        for number, code in enumerate(("dis", "gio", "neu", "pau", "rab", "sor", "tri")):
            write_sound(tmp_path / "EMOVO" / speaker / f"{code}-{speaker}-b1.wav", seed=10 * place + number)
    write_sound(tmp_path / "EMOVO" / "test tone.wav", seed=99)
    corpus = load_corpus("emovo", str(tmp_path / "EMOVO"))
    assert len(corpus) == 42 and corpus.label_names[0] == "anger"
    assert corpus.dropped == {"not named as an EMOVO clip": 1}
    place = corpus.files.index("f2/rab-f2-b1.wav")
    assert corpus.clips[place]["speaker"] == "f2" and corpus.clips[place]["sex"] == "female"
    split = make_split(corpus, "speaker", fold=1)
    assert split.name == "emovo/speaker-fold1" and split.speaker_disjoint
    assert "no speaker in two parts" in split.summary()


def test_a_corpus_without_a_copy_on_the_hub_asks_for_its_folder(emovo):
    with pytest.raises(DataError, match="No copy of emovo on the Hub is known: give its folder with --data_dir"):
        load_corpus("emovo")


def test_the_guides_corpus_is_listed(emovo):
    assert any(line.split()[:4] == ["emovo", "588", "7", "6"] for line in list_corpora().splitlines())
