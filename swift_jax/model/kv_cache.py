"""Keys and values of the committed text, one cache for draft and verify.

The draft writes at slots >= `length`, and verify overwrites the same slots. To
roll back is to set `length`: nothing is ever cloned. Readers see only slots
below `length`. So the slots that a skipped sublayer or a rejected token left
have no effect: their weight is 0, and every value is finite.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from swift_jax.typing import Array, Float, Int

AXES = ('data', 'tensor')  # of a mesh: rows and heads are split over them

# New keys and values of a pass: a pair [B, K, T, H] for each layer, or for a stack
# one pair [L, B, K, T, H].
Updates = tuple[tuple[Array, Array], ...] | tuple[Array, Array]


@flax.struct.dataclass
class Past:
  """What one layer's attention reads of a cache.

  Attributes:
    k, v: the layer's keys and values [B, K, S, H]; or those of all layers,
      [L, B, K, S, H].
    length: filled slots of each row, int32[B].
    layer: which of all layers; None: k and v are of one layer.
  """

  k: Float[Array, '*l b k s h']
  v: Float[Array, '*l b k s h']
  length: Int[Array, ' b']
  layer: Int[Array, ''] | int | None = None

  @property
  def capacity(self) -> int:
    return self.k.shape[-2]

  def slots(self, start: int | Array, count: int) -> tuple[Array, Array]:
    """Keys and values [B, K, count, H] of the slots from `start` on.

    Call it in the branch or loop that reads them. What is sliced outside of it
    is copied for it.
    """

    def read(slots: Array) -> Array:
      if self.layer is None:
        return jax.lax.dynamic_slice_in_dim(slots, start, count, axis=2)
      _, b, k, _, h = slots.shape
      part = jax.lax.dynamic_slice(
        slots, (self.layer, 0, 0, start, 0), (1, b, k, count, h)
      )
      return part[0]

    return read(self.k), read(self.v)


@flax.struct.dataclass
class KVCache:
  """One model's cache.

  Attributes:
    k: keys after RoPE, L arrays of [B, K, S, H]; or a stack [L, B, K, S, H].
    v: values, likewise.
    length: filled slots of each row, int32[B].
    mesh: devices over which rows and heads are split; None: there is one device.
  """

  k: tuple[Float[Array, 'b k s h'], ...] | Float[Array, 'l b k s h']
  v: tuple[Float[Array, 'b k s h'], ...] | Float[Array, 'l b k s h']
  length: Int[Array, ' b']
  mesh: jax.sharding.Mesh | None = flax.struct.field(
    pytree_node=False, default=None
  )

  @property
  def capacity(self) -> int:
    return self.k.shape[-2] if self.is_stacked else self.k[0].shape[-2]

  @property
  def is_stacked(self) -> bool:
    """Whether all layers are one array."""
    return not isinstance(self.k, (tuple, list))

  def past(self, layer: int | Array) -> Past:
    """What the attention of a layer reads."""
    if self.is_stacked:
      return Past(self.k, self.v, self.length, layer)
    return Past(self.k[layer], self.v[layer], self.length)

  def write(self, updates: Updates) -> KVCache:
    """Writes new keys and values at slots `length` onward.

    `length` stays; the caller sets it to commit. The T slots must exist
    (`length + T <= S`); otherwise XLA would shift the write to the left.
    """
    start = self.length
    updates = _finite_values(updates)
    if self.is_stacked:
      write_rows = _write_rows
      if self.mesh is not None:
        rows, slots = PartitionSpec('data'), PartitionSpec(None, *AXES)
        # Each device writes its own rows: the loop runs over no other's.
        write_rows = jax.shard_map(
          _write_rows,
          mesh=self.mesh,
          in_specs=(slots, slots, rows),
          out_specs=slots,
        )
      k, v = write_rows((self.k, self.v), updates, start)
      return self.replace(k=k, v=v)
    new_k, new_v = zip(*updates, strict=True)

    def write(layers: tuple[Array, ...], new: tuple[Array, ...]) -> Any:
      pairs = zip(layers, new, strict=True)
      return tuple(_write(layer, update, start) for layer, update in pairs)

    return self.replace(k=write(self.k, new_k), v=write(self.v, new_v))

  def rollback(self, length: Int[Array, ' b']) -> KVCache:
    """The same cache with `length` filled slots; slots after them are dead."""
    return self.replace(length=length)


def _finite_values(updates: Updates) -> Updates:
  """The updates with 0 for values that are not finite.

  A dead slot's value is weighed by 0, and 0 * NaN is NaN. A draft may overflow.
  If the target does, its logits have shown it in the pass that made the values.
  """

  def finite(v: Array) -> Array:
    return jnp.where(jnp.isfinite(v), v, 0)

  if isinstance(updates[0], tuple):
    return tuple((k, finite(v)) for k, v in updates)
  k, v = updates
  return k, finite(v)


def _write(cache: Array, new: Array, start: Array) -> Array:
  """`cache` [B, K, S, H] with `new` [B, K, T, H] at slot start[b] of row b."""
  # One in-place slice for each row: a vmapped update would become a scatter,
  # which XLA's CPU and TPU backends run element by element.
  for b in range(cache.shape[0]):
    cache = jax.lax.dynamic_update_slice(
      cache, new[b : b + 1].astype(cache.dtype), (b, 0, start[b], 0)
    )
  return cache


def _write_rows(
  stacks: tuple[Array, Array], new: Updates, start: Int[Array, ' b']
) -> tuple[Array, Array]:
  """Stacks [L, B, K, S, H] with `new` [L, B, K, T, H] at slot start[b] of row b.

  One write for each row and all layers, in a loop: the program does not grow
  with either.
  """
  last = start.shape[0] - 1

  def write(i: Array, stacks: tuple[Array, Array]) -> tuple[Array, Array]:
    # The last row first: libtpu 0.0.42 takes a loop that writes row i in pass i
    # for a copy of all rows, and fails.
    b = last - i

    def row(stack: Array, update: Array) -> Array:
      update = jax.lax.dynamic_slice_in_dim(update, b, 1, axis=1)
      at = (0, b, 0, start[b], 0)
      return jax.lax.dynamic_update_slice(stack, update, at)

    return row(stacks[0], new[0]), row(stacks[1], new[1])

  return jax.lax.fori_loop(0, last + 1, write, stacks)


def empty(
  num_layers: int,
  batch: int,
  num_kv_heads: int,
  capacity: int,
  head_dim: int,
  dtype: jnp.dtype,
  stacked: bool = False,
  mesh: jax.sharding.Mesh | None = None,
) -> KVCache:
  """A cache with no filled slot.

  Args:
    stacked: all layers in one array, for a model whose weights are a stack.
  """
  shape = (batch, num_kv_heads, capacity, head_dim)

  def zeros() -> Any:
    if stacked:
      return jnp.zeros((num_layers, *shape), dtype)
    return tuple(jnp.zeros(shape, dtype) for _ in range(num_layers))

  length = jnp.zeros(batch, jnp.int32)
  return KVCache(k=zeros(), v=zeros(), length=length, mesh=mesh)
