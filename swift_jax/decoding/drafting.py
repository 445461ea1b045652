"""Drafting: the gated model writes a chain of tokens ahead of the target."""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from swift_jax.config import DraftConfig
from swift_jax.decoding.state import DecodeState
from swift_jax.kv_cache import KVCache
from swift_jax.llama import Llama
from swift_jax.skip_mask import SkipMask
from swift_jax.typing import Array, Float, Int


class DraftShapes(NamedTuple):
  """What compiled programs depend on; static.

  Attributes:
    verify_widths: token counts that verify is compiled for, increasing.
    num_leaves: alternatives kept at each depth, 0 for a bare chain.
  """

  verify_widths: tuple[int, ...]
  num_leaves: int

  @property
  def max_width(self) -> int:
    return self.verify_widths[-1]


@flax.struct.dataclass
class DraftSettings:
  """What may change without compiling anything; traced.

  Attributes:
    max_length: tokens drafted at most, int32[].
    threshold: drafting stops after a confidence below this, float32[].
    tree_widths: top-k at each depth by confidence, int32[n + 1].
    tree_bounds: confidences at which k changes, float32[n].
  """

  max_length: Int[Array, '']
  threshold: Float[Array, '']
  tree_widths: Int[Array, ' n1']
  tree_bounds: Float[Array, ' n']


@flax.struct.dataclass
class Draft:
  """A drafted chain and, at each depth, the tokens that came next to it.

  Attributes:
    tokens: the chain, int32[B, D]; dead after `length`.
    confidence: the draft's probability of each, float32[B, D].
    leaf_tokens: runners-up at each depth, best first, int32[B, D, A].
    leaf_probs: their probabilities, float32[B, D, A].
    length: drafted tokens of each row, int32[B].
  """

  tokens: Int[Array, 'b d']
  confidence: Float[Array, 'b d']
  leaf_tokens: Int[Array, 'b d a']
  leaf_probs: Float[Array, 'b d a']
  length: Int[Array, ' b']


def split_config(
  cfg: DraftConfig, vocab_size: int
) -> tuple[DraftShapes, DraftSettings]:
  """A `DraftConfig` as its static and its traced part."""
  leaves = min(max(cfg.tree_widths), vocab_size) - 1 if cfg.tree else 0
  settings = DraftSettings(
    max_length=jnp.asarray(cfg.max_draft_length, jnp.int32),
    threshold=jnp.asarray(cfg.confidence_threshold, jnp.float32),
    tree_widths=jnp.asarray(cfg.tree_widths, jnp.int32),
    tree_bounds=jnp.asarray(cfg.tree_bounds, jnp.float32),
  )
  return DraftShapes(cfg.verify_widths, leaves), settings


@flax.struct.dataclass
class _Carry:
  """The draft loop's state: `active` rows go on, at depth `step`."""

  step: Int[Array, '']
  token: Int[Array, ' b']
  cache: KVCache
  active: Array
  draft: Draft


def draft(
  model: Llama,
  state: DecodeState,
  skip_mask: SkipMask,
  settings: DraftSettings,
  shapes: DraftShapes,
) -> tuple[Draft, KVCache]:
  """Drafts until every row has stopped.

  A row stops after a token whose confidence is below the threshold (the token
  stays: its runners-up are the tree's widest), at `max_length`, and one token
  before its end, since verify adds one of its own. Rows that are done draft
  nothing.

  Returns:
    The draft, and the cache with the kept sublayers' keys and values at slots >=
    `length`, which verify overwrites; its `length` is the state's.
  """
  batch, depth = state.done.shape[0], shapes.max_width - 1
  cap = jnp.minimum(settings.max_length, state.end - state.length - 1)
  cap = jnp.where(state.done, 0, jnp.minimum(cap, depth))  # [B]
  empty = Draft(
    tokens=jnp.zeros((batch, depth), jnp.int32),
    confidence=jnp.zeros((batch, depth), jnp.float32),
    leaf_tokens=jnp.zeros((batch, depth, shapes.num_leaves), jnp.int32),
    leaf_probs=jnp.zeros((batch, depth, shapes.num_leaves), jnp.float32),
    length=jnp.zeros(batch, jnp.int32),
  )

  def body(carry: _Carry) -> _Carry:
    hidden, updates = model(carry.token[:, None], skip_mask, cache=carry.cache)
    best, probs = _top(model.logits(hidden[:, 0]), shapes.num_leaves + 1)
    i, d = carry.step, carry.draft
    active = carry.active
    d = d.replace(
      tokens=d.tokens.at[:, i].set(best[:, 0]),
      confidence=d.confidence.at[:, i].set(probs[:, 0]),
      leaf_tokens=d.leaf_tokens.at[:, i].set(best[:, 1:]),
      leaf_probs=d.leaf_probs.at[:, i].set(probs[:, 1:]),
      length=d.length + active,
    )
    cache = carry.cache.write(updates)
    return _Carry(
      step=i + 1,
      token=best[:, 0],
      cache=cache.rollback(cache.length + 1),
      active=active & (probs[:, 0] >= settings.threshold) & (i + 1 < cap),
      draft=d,
    )

  first = _Carry(jnp.int32(0), state.last_token, state.cache, cap > 0, empty)
  last = jax.lax.while_loop(lambda carry: carry.active.any(), body, first)
  return last.draft, last.cache.rollback(state.cache.length)


def _top(
  logits: Float[Array, 'b v'], k: int
) -> tuple[Int[Array, 'b k'], Float[Array, 'b k']]:
  """The k most likely tokens, best first, and their probabilities."""
  total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  if k == 1:
    best = jnp.argmax(logits, axis=-1)[:, None]
    values = jnp.take_along_axis(logits, best, axis=-1)
  else:
    values, best = jax.lax.top_k(logits, k)
  return best.astype(jnp.int32), jnp.exp(values - total)
