"""Prompt lookup: the draft is copied from an earlier place of the same text.

After Saxena's prompt lookup decoding (2023): no model drafts. The newest tokens
are looked up in the text before them, and what followed them there is the
draft. The newest of the longest matches is taken. A copy that reaches the end
of the text starts again at its own beginning, as a text that loops does.
"""

from __future__ import annotations

import jax.numpy as jnp

from swift_jax.config.settings import MAX_NGRAM
from swift_jax.decoding.drafting import Draft, DraftSettings, DraftShapes
from swift_jax.decoding.state import DecodeState
from swift_jax.typing import Array, Int


def draft(
  state: DecodeState,
  settings: DraftSettings,
  shapes: DraftShapes,
) -> Draft:
  """A copy of the tokens that followed the text's newest tokens before.

  Up to `settings.lookup_ngram` tokens are compared. Where not even the newest
  token stood in the text before, nothing is drafted.
  """
  found = find(state.tokens, state.length, settings.lookup_ngram)
  return copy(state, *found, settings.lookup_length, shapes)


def copy(
  state: DecodeState,
  start: Int[Array, ' b'],
  matched: Int[Array, ' b'],
  max_length: Int[Array, ''],
  shapes: DraftShapes,
) -> Draft:
  """The tokens from the places that `find` gave, up to `max_length` tokens."""
  depth = shapes.max_width - 1
  cap = jnp.minimum(max_length, state.end - state.length - 1)
  cap = jnp.where(state.done | (matched == 0), 0, jnp.minimum(cap, depth))
  period = jnp.maximum(state.length - start, 1)[:, None]
  index = start[:, None] + jnp.arange(depth) % period
  tokens = jnp.take_along_axis(state.tokens, index, axis=1)  # [B, D]
  return Draft(
    tokens=tokens,
    confidence=jnp.ones(tokens.shape, jnp.float32),
    leaf_tokens=jnp.zeros((*tokens.shape, shapes.num_leaves), jnp.int32),
    leaf_weights=jnp.zeros((*tokens.shape, shapes.num_leaves), jnp.float32),
    length=jnp.maximum(cap, 0),
  )


def find(
  tokens: Int[Array, 'b s'],
  length: Int[Array, ' b'],
  ngram: Int[Array, ''],
) -> tuple[Int[Array, ' b'], Int[Array, ' b']]:
  """The slot after the newest of the longest matches, and the match's length.

  A match is a place before the end where the text's last tokens stood too; its
  length is the number of tokens that are equal, 0 where there is no match.
  """
  slots = jnp.arange(tokens.shape[1])
  last = length[:, None] - 1
  run = jnp.ones(tokens.shape, bool)
  matched = jnp.zeros(tokens.shape, jnp.int32)
  for back in range(MAX_NGRAM):
    wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
    # Compare the token `back` slots before each slot; exclude the wrap-around.
    run &= (jnp.roll(tokens, back, axis=1) == wanted) & (slots >= back)
    run &= back < ngram
    matched += run
  matched = jnp.where(slots < last, matched, 0)
  best = jnp.argmax(matched * tokens.shape[1] + slots * (matched > 0), axis=1)
  count = jnp.take_along_axis(matched, best[:, None], axis=1)[:, 0]
  return best + 1, count
