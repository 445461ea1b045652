"""Scoring candidate masks on the text that the model has just written."""

from __future__ import annotations

import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax.kv_cache import KVCache
from swift_jax.llama import GraphDef, Params
from swift_jax.skip_mask import SkipMask
from swift_jax.typing import Array, Int


class Scores(NamedTuple):
  """What the candidates hit.

  Attributes:
    hits: positions where a candidate's argmax is the target's token, int32[C].
    positions: how many positions were compared, int32[].
  """

  hits: Int[Array, ' c']
  positions: Int[Array, '']


@functools.partial(
  jax.jit, static_argnames=('graphdef', 'window', 'is_vmapped')
)
def score(
  graphdef: GraphDef,
  params: Params,
  cache: KVCache,
  tokens: Int[Array, 'b s'],
  prompt_length: Int[Array, ' b'],
  candidate_masks: SkipMask,
  window: int,
  is_vmapped: bool = True,
) -> Scores:
  """Matchness of C masks on the last `window` generated tokens of each row.

  A pass of the gated model over the window, teacher-forced, on top of the
  target's own keys and values of what precedes it (SWIFT, section 4.1). The
  parameters and the cache are not batched over the candidates, and no candidate
  returns a cache. Under greedy decoding the committed tokens are the target's
  argmax. Tokens of the prompt are never compared: the target did not write them.

  Args:
    cache: holds all committed tokens but the newest; only read.
    tokens: committed text, dead after the cache's length + 1.
    candidate_masks: masks with a leading axis C.
    window: positions a row.
    is_vmapped: one pass for all masks, in which every sublayer runs and what a
      mask skips is thrown away; else a pass a mask, behind gates that skip it.
      The first reads the weights once, the second computes less.
  """
  model = nnx.merge(graphdef, params)
  first = jnp.maximum(cache.length - window, 0)  # [B], first input's position
  offsets = first[:, None] + jnp.arange(window + 1)  # [B, window + 1]
  text = jnp.take_along_axis(tokens, offsets, axis=1, mode='clip')
  target_at = offsets[:, 1:]
  compared = (target_at >= prompt_length[:, None]) & (
    target_at <= cache.length[:, None]
  )
  prefix = cache.rollback(first)

  def hits(skip_mask: SkipMask) -> Array:
    hidden, _ = model(text[:, :-1], skip_mask, cache=prefix)
    best = jnp.argmax(model.logits(hidden), axis=-1)
    return ((best == text[:, 1:]) & compared).sum(dtype=jnp.int32)

  with jax.named_scope('score'):
    if is_vmapped:
      all_hits = jax.vmap(hits)(candidate_masks)
    else:
      all_hits = jax.lax.map(hits, candidate_masks)
    return Scores(all_hits, compared.sum(dtype=jnp.int32))
