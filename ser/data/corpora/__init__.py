"""Reads corpora, each from its original folder, its published copies or a user's own tables.

Every source is read into the same table of clips with the columns `file`, `audio` ({"path", "bytes"}, never decoded
here), `label`, `speaker`, `session` and `split`. To add a corpus, add one [`Record`] to `RECORDS`.
"""

from ser.data.corpora.combine import load_corpora
from ser.data.corpora.corpus import Corpus
from ser.data.corpora.loading import load_corpus
from ser.data.corpora.registry import RECORDS

__all__ = ["RECORDS", "Corpus", "load_corpora", "load_corpus"]
