"""Prompt lookup: the draft is what followed the last tokens before.

After Saxena's prompt lookup decoding (2023): no model drafts, the text does. Here
the newest of the longest matches is taken, and a match whose continuation reaches
the end of the text goes on from its own beginning, as a text that loops does.
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
  """A copy of what followed where the text last read as it does now.

  Up to `settings.lookup_ngram` tokens are compared; where not even the newest one
  stood before, nothing is drafted.
  """
  found = find(state.tokens, state.length, settings.lookup_ngram)
  return copy(state, *found, settings.lookup_length, shapes)


def copy(
  state: DecodeState,
  start: Int[Array, ' b'],
  matched: Int[Array, ' b'],
  most: Int[Array, ''],
  shapes: DraftShapes,
) -> Draft:
  """What follows the places that `find` gave, up to `most` tokens."""
  depth = shapes.max_width - 1
  cap = jnp.minimum(most, state.end - state.length - 1)
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
  """Where the newest of the longest matches goes on, and how many tokens match.

  A match is a place before the end at which the text's last tokens stood too.
  """
  slots = jnp.arange(tokens.shape[1])
  last = length[:, None] - 1
  run = jnp.ones(tokens.shape, bool)
  matched = jnp.zeros(tokens.shape, jnp.int32)
  for back in range(MAX_NGRAM):
    wanted = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
    # The slot `back` before each; what rolls around is ruled out.
    run &= (jnp.roll(tokens, back, axis=1) == wanted) & (slots >= back)
    run &= back < ngram
    matched += run
  matched = jnp.where(slots < last, matched, 0)
  best = jnp.argmax(matched * tokens.shape[1] + slots * (matched > 0), axis=1)
  count = jnp.take_along_axis(matched, best[:, None], axis=1)[:, 0]
  return best + 1, count
