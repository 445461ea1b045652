"""The target on its devices: its weights, and all that goes there and comes back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from swift_jax.config.settings import ModelConfig
from swift_jax.model import kv_cache, llama
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.llama import GraphDef, Params
from swift_jax.parallel import sharding

_MIN_CAPACITY = 128
_ROOM = 4  # times as many slots as a batch needs, at most


class Target:
  """A model's weights on their devices, and the caches that are made there.

  Attributes:
    cfg: the model's shape.
    graphdef, params: its layers and its weights, as every program takes them.
    mesh: its devices; None is the one default device.
    capacity: cache slots a row of the batch at hand; programs are compiled for
      it.
    drafts_stay_gated: also when the search rests. On a GPU, which asks the host
      at each gate, a program without gates is quicker.
    none_skipped: skips nothing; without gates, but on a CPU, which is slower
      without.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    graphdef: GraphDef,
    params: Params,
    mesh: jax.sharding.Mesh | None = None,
  ):
    self.cfg, self.graphdef, self.params = cfg, graphdef, params
    self.mesh = mesh
    self.capacity = _MIN_CAPACITY
    none_skipped = skip_masks.none_skipped(cfg.num_hidden_layers)
    platform = sharding.platform(mesh)
    self.drafts_stay_gated = platform != 'gpu'
    self.none_skipped: skip_masks.Mask = (
      self.put(none_skipped)
      if platform == 'cpu'
      else skip_masks.KnownMask.of(none_skipped)
    )
    # Where a pass reads no more than is filled, a larger cache costs only memory.
    self._room = 1 if platform == 'gpu' else _ROOM
    self._used: set[tuple[int, int]] = set()  # batch and capacity
    self._warm: set[tuple[int, int]] = set()
    self._numbers: dict[int, jax.Array] = {}

  def reserve(self, slots: int, batch: int) -> None:
    """Chooses the `capacity` of a batch that needs so many slots a row.

    It is the next of 128, 192, 256, 384, 512, 768, ...; or a larger one that
    batches of this size had before, if it wastes little. So few are in use, and
    one long text does not make later batches large.
    """
    size = _MIN_CAPACITY
    while size < slots:
      is_power = size & (size - 1) == 0
      size = size * 3 // 2 if is_power else size * 4 // 3
    used = [c for b, c in self._used if b == batch and c <= self._room * size]
    used += [c for b, c in self._warm if b == batch]
    self.capacity = min((c for c in used if c >= size), default=size)
    self._used.add((batch, self.capacity))

  def keep_warm(self, batch: int) -> None:
    """The programs of this capacity are compiled: shorter batches take it too."""
    self._warm.add((batch, self.capacity))

  def put(self, tree: Any) -> Any:
    """Arrays on the device, replicated over a mesh. Uploads go here."""
    return sharding.put(tree, self.mesh)

  def put_mask(
    self, bits: skip_masks.Bits | skip_masks.Candidates
  ) -> skip_masks.SkipMask:
    """One mask or several, which become a `SkipMask` here."""
    mask: skip_masks.SkipMask = self.put(skip_masks.from_bits(bits))
    return mask

  def put_rows(self, tree: Any) -> Any:
    """Arrays of a line for each row, where the state has them."""
    return sharding.put(tree, self.mesh, sharding.rows(self.mesh))

  def get(self, tree: Any) -> Any:
    """Arrays on the host, in one transfer. Every download goes here."""
    return sharding.get(tree, self.mesh)

  def number(self, value: int) -> jax.Array:
    """A small integer on the device, uploaded once."""
    if value not in self._numbers:
      self._numbers[value] = self.put(np.int32(value))
    return self._numbers[value]

  def empty_cache(self, batch: int, capacity: int) -> kv_cache.KVCache:
    """A cache made where it will live: no device holds another's heads."""
    cfg = self.cfg
    stacked = llama.has_stack(self.params)
    empty = jax.jit(
      kv_cache.empty,
      static_argnums=range(8),
      out_shardings=sharding.cache_shardings(self.mesh, stacked),
    )
    cache: kv_cache.KVCache = empty(
      cfg.num_hidden_layers,
      batch,
      cfg.kv_heads,
      capacity,
      cfg.head_dim,
      cfg.jax_dtype,
      stacked,
      self.mesh,
    )
    return cache
