"""Prompts of the benchmark: passages of programs that are new to the demo model."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import numpy as np

from swift_jax.demo import corpus
from swift_jax.runtime.engine import Engine

PROMPT_TOKENS = 32
_STRIDE = 256  # tokens from one passage to the next


def programs() -> list[str]:
  """Source files that the demo model was not trained on."""
  return list(corpus.documents(held_out=True))


def documentation() -> list[str]:
  """The long documentation strings of `programs`."""
  found = []
  for text in programs():
    found += [doc for doc in docstrings(text) if len(doc) > 300]
  return found


def docstrings(text: str) -> Iterator[str]:
  """The documentation strings of a program."""
  try:
    tree = ast.parse(text)
  except SyntaxError:  # a template, or another version's syntax
    return
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in ast.walk(tree):
    if isinstance(node, kinds):
      yield ast.get_docstring(node) or ''


def prompts_of(engine: Engine, documents: Sequence[str]) -> list[list[int]]:
  """Passages of the documents, all of PROMPT_TOKENS tokens, in a fixed order."""
  found = []
  for document in documents:
    ids = list(engine.tokenizer(document)['input_ids'])
    ends = range(PROMPT_TOKENS, len(ids) + 1, _STRIDE)
    found += [ids[end - PROMPT_TOKENS : end] for end in ends]
  np.random.default_rng(0).shuffle(found)
  return found
