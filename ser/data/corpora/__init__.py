"""Where clips come from: each corpus with its published copies, what a row of them says, and its classes.

Every source ends in the same table of clips with the columns `file`, `audio` ({"path", "bytes"}, never decoded here),
`label`, `speaker`, `session` and `split`. Adding a corpus is one [`Record`] in `RECORDS`.
"""

from ser.data.corpora.combine import load_corpora
from ser.data.corpora.loading import load_corpus
from ser.data.corpora.registry import RECORDS
from ser.data.corpora.table import Corpus

__all__ = ["RECORDS", "Corpus", "load_corpora", "load_corpus"]
