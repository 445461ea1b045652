"""Log-probabilities of a finished text: the target reads it once more.

The rounds do not compute them and stay as they are. After plain decoding, SWIFT
and prompt lookup the same program runs in the same shapes: a text has the same
log-probabilities, whichever of the three wrote it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from swift_jax.model.kv_cache import KVCache
from swift_jax.model.llama import GraphDef, Llama, Params
from swift_jax.model.skip_mask import Mask
from swift_jax.parallel import sharding
from swift_jax.typing import Array, Float, Int

# Tokens of a pass at most: more would gain little, and short texts are padded.
WIDEST = 64
_LOGITS = 2**23  # float32 logits computed at once: 32 MiB


class Places(NamedTuple):
  """The target's log-probabilities at T places of each row, in nats.

  Attributes:
    own: of the token that stands at the place, float32[B, T].
    ids: the k most likely tokens, the likeliest first, int32[B, T, k].
    best: the log-probabilities of `ids`, float32[B, T, k].
  """

  own: Float[Array, 'b t']
  ids: Int[Array, 'b t k']
  best: Float[Array, 'b t k']


@functools.partial(
  jax.jit,
  static_argnames=('graphdef', 'chunk', 'k', 'mesh'),
  donate_argnames=('cache',),
)
def force(
  graphdef: GraphDef,
  params: Params,
  cache: KVCache,
  tokens: Int[Array, 'b s'],
  prompt_length: Int[Array, ' b'],
  none_skipped: Mask,
  start: Int[Array, ''],
  chunk: int,
  k: int,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[KVCache, Places]:
  """A pass over tokens [start, start + chunk) of each row's generated text.

  The keys and values of this pass replace those of the rounds. So the next
  chunk reads them too, and the result does not depend on how the text was
  written.

  Args:
    cache: holds every token that stands before the chunk.
    tokens: prompts and texts; tokens past a row's end do no harm, and their
      log-probabilities mean nothing.
    none_skipped: the mask that skips nothing.
    chunk: tokens of the pass, at most the cache's capacity.
    k: number of most likely tokens wanted at each place.

  Returns:
    The cache, of the same length, and the log-probabilities.
  """
  model: Llama = nnx.merge(graphdef, params)
  wanted = prompt_length - 1 + start  # [B], the slot of the first token's input
  # A chunk that would reach past the cache begins earlier and repeats tokens.
  first = jnp.minimum(wanted, cache.capacity - chunk)
  slots = first[:, None] + jnp.arange(chunk)  # [B, T]

  def read(rows: Array, at: Array) -> Array:
    return jnp.take_along_axis(rows, at, axis=1, mode='clip')

  with jax.named_scope('logprobs'):
    hidden, updates = model(
      read(tokens, slots), none_skipped, cache=cache.rollback(first)
    )
    written = cache.rollback(first).write(updates).rollback(cache.length)
    places = _of_hidden(model, hidden, read(tokens, slots + 1), k)
  # Move the results back to where the chunk was meant to begin.
  at = jnp.arange(chunk) + (wanted - first)[:, None]
  own = read(places.own, at)
  ids, best = (read(rows, at[..., None]) for rows in places[1:])
  places = Places(own, ids, best)
  if mesh is None:
    return written, places
  return jax.lax.with_sharding_constraint(
    (written, places),
    (sharding.cache_shardings(mesh, cache.is_stacked), sharding.rows(mesh)),
  )


def _of_hidden(
  model: Llama,
  hidden: Float[Array, 'b t d'],
  tokens: Int[Array, 'b t'],
  k: int,
) -> Places:
  """Log-probabilities from hidden states, a few places at a time.

  The logits of all places, with a large vocabulary, would take more memory than
  the pass.
  """
  batch, chunk = tokens.shape

  def one(place: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    hidden, token = place  # [B, D], [B]
    logits = model.logits(hidden)  # [B, V]
    own = jnp.take_along_axis(logits, token[:, None], axis=-1)
    highest = logits.max(-1, keepdims=True)
    if k:  # of equal logits the lower id comes first, as with argmax
      best, ids = jax.lax.top_k(logits, k)
    else:  # `map` takes no empty array: this one is cut off below
      best, ids = highest, token[:, None]
    total = jax.nn.logsumexp(logits - highest, axis=-1, keepdims=True)
    own, best = (found - highest - total for found in (own, best))
    return own[:, 0], ids, best

  most = max(1, _LOGITS // (batch * model.cfg.vocab_size))
  at_once = min(chunk, 1 << (most.bit_length() - 1))
  by_place = hidden.swapaxes(0, 1), tokens.swapaxes(0, 1)
  found = jax.lax.map(one, by_place, batch_size=at_once)
  own, ids, best = (rows.swapaxes(0, 1) for rows in found)
  return Places(own, ids[..., :k], best[..., :k])
