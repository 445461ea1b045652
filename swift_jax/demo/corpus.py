"""A corpus that every machine has: the source of Python's standard library.

Only `.py` files of the running interpreter are read. Test suites are left out, since
some distributions lack them, and so are tables of constants. So the text is program
and documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import pathlib
import re
import sysconfig

import numpy as np
import tokenizers

END_OF_TEXT = '<|endoftext|>'
_LEFT_OUT = {
  'test',
  'tests',
  'idle_test',
  'site-packages',
  'dist-packages',
  'encodings',
  'pydoc_data',
  '__pycache__',
}


def source_files() -> list[pathlib.Path]:
  """The library's source files, sorted by their path below its root."""
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  files = (
    path
    for path in root.rglob('*.py')
    if not _LEFT_OUT.intersection(path.relative_to(root).parts)
  )
  return sorted(files)


def _is_table(text: str) -> bool:
  """Whether more than a fifth of the characters are digits: data, not program."""
  return len(re.findall(r'[0-9]', text)) > 0.2 * len(text)


def documents(held_out: bool, held_out_share: float = 0.04) -> Iterator[str]:
  """The text of the training files, or of the held-out ones.

  A hash of a file's path below the library's root decides whether it is held out. So
  the split is the same on every machine with the same library.
  """
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  for path in source_files():
    text = path.read_text(encoding='utf-8', errors='replace')
    if len(text) < 200 or _is_table(text):
      continue
    name = path.relative_to(root).as_posix()
    digest = hashlib.sha256(name.encode()).digest()
    is_held_out = int.from_bytes(digest[:4], 'big') < held_out_share * 2**32
    if is_held_out == held_out:
      yield text


def train_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
  """A byte-level BPE tokenizer learnt from the training files."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(documents(held_out=False), trainer)
  return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, held_out: bool) -> np.ndarray:
  """All documents as one row of token ids; an end-of-text token precedes each."""
  end = tokenizer.token_to_id(END_OF_TEXT)
  texts = list(documents(held_out))
  encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
  rows = [np.asarray([end, *e.ids], np.int32) for e in encoded]
  return np.concatenate(rows)
