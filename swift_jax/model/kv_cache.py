"""Keys and values of the committed text, one cache for draft and verify.

The draft writes at slots >= `length`, and verify overwrites the same slots. To
roll back is to set `length`: nothing is ever cloned. Readers see only slots
below `length`. So the slots that a skipped sublayer or a rejected token left
are never read.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from swift_jax.typing import Array, Float, Int

Updates = tuple[tuple[Array, Array], ...]


@flax.struct.dataclass
class KVCache:
  """One model's cache.

  Attributes:
    k: keys after RoPE, L arrays of [B, K, S, H].
    v: values, L arrays of [B, K, S, H].
    length: filled slots of each row, int32[B].
  """

  k: tuple[Float[Array, 'b k s h'], ...]
  v: tuple[Float[Array, 'b k s h'], ...]
  length: Int[Array, ' b']

  @property
  def capacity(self) -> int:
    return self.k[0].shape[2]

  def write(self, updates: Updates) -> KVCache:
    """Writes each layer's new (k, v) [B, K, T, H] at slots `length` onward.

    `length` stays; the caller sets it to commit. The slots must exist
    (`length + T <= S`); otherwise XLA would shift the write to the left.
    """
    new_k, new_v = zip(*updates, strict=True)
    start = self.length

    def write(layers: tuple[Array, ...], new: tuple[Array, ...]) -> Any:
      pairs = zip(layers, new, strict=True)
      return tuple(_write(layer, update, start) for layer, update in pairs)

    return self.replace(k=write(self.k, new_k), v=write(self.v, new_v))

  def rollback(self, length: Int[Array, ' b']) -> KVCache:
    """The same cache with `length` filled slots; slots after them are dead."""
    return self.replace(length=length)


def _write(cache: Array, new: Array, start: Array) -> Array:
  """`cache` [B, K, S, H] with `new` [B, K, T, H] at slot start[b] of row b."""
  # One in-place slice for each row: a vmapped update would become a scatter,
  # which XLA's CPU and TPU backends run element by element.
  for b in range(cache.shape[0]):
    cache = jax.lax.dynamic_update_slice(
      cache, new[b : b + 1].astype(cache.dtype), (b, 0, start[b], 0)
    )
  return cache


def empty(
  num_layers: int,
  batch: int,
  num_kv_heads: int,
  capacity: int,
  head_dim: int,
  dtype: jnp.dtype,
) -> KVCache:
  """A cache with no filled slot."""

  def zeros() -> tuple[Array, ...]:
    shape = (batch, num_kv_heads, capacity, head_dim)
    return tuple(jnp.zeros(shape, dtype) for _ in range(num_layers))

  return KVCache(k=zeros(), v=zeros(), length=jnp.zeros(batch, jnp.int32))
