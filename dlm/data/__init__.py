"""Text, tokenizers and training rows. Numpy only: data workers need no accelerator library."""

from dlm.data.corpus import GeneratedCorpus, TokenCorpus, open_corpus, open_tokens, tokenize
from dlm.data.infill import encode_infill, parse_infill
from dlm.data.layouts import RowBatch
from dlm.data.prepare import write_tokens
from dlm.data.rows import MixturePart, Rows, open_rows
from dlm.data.sources import SOURCES, SPLITS, Example, Source, open_source
from dlm.data.tokenizers import (
  TOKENIZERS,
  BpeTokenizer,
  ByteTokenizer,
  Tokenizer,
  load_tokenizer,
  train_bpe,
)

__all__ = [
  "SOURCES",
  "SPLITS",
  "TOKENIZERS",
  "BpeTokenizer",
  "ByteTokenizer",
  "Example",
  "GeneratedCorpus",
  "MixturePart",
  "RowBatch",
  "Rows",
  "Source",
  "TokenCorpus",
  "Tokenizer",
  "encode_infill",
  "load_tokenizer",
  "open_corpus",
  "open_rows",
  "open_source",
  "open_tokens",
  "parse_infill",
  "tokenize",
  "train_bpe",
  "write_tokens",
]
