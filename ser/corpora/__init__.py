"""Where clips come from: each corpus with its published copies, what a row of them says, and its classes.

Every source ends in the same table of clips with the columns `file`, `audio` ({"path", "bytes"}, never decoded here),
`label`, `speaker`, `session` and `split`. Adding a corpus is one [`Record`] in `RECORDS`.
"""

from ser.corpora.known import RECORDS
from ser.corpora.loading import load_corpus
from ser.corpora.several import load_corpora
from ser.corpora.table import Corpus

__all__ = ["RECORDS", "Corpus", "load_corpora", "load_corpus"]
