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


class Target:
  """A model's weights on their devices, and the caches that are made there.

  Attributes:
    cfg: the model's shape.
    graphdef, params: its layers and its weights, as every program takes them.
    mesh: its devices; None is the one default device.
    capacity: cache slots a row. It grows when a batch needs more and never
      shrinks: programs are compiled for it.
    gates_are_quick: whether drafts stay behind gates. On a GPU, which asks the
      host at each gate, a program without them is quicker.
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
    self.gates_are_quick = platform != 'gpu'
    self.none_skipped: skip_masks.Mask = (
      self.put(none_skipped)
      if platform == 'cpu'
      else skip_masks.KnownMask.of(none_skipped)
    )
    self._numbers: dict[int, jax.Array] = {}

  def reserve(self, slots: int) -> None:
    """Grows `capacity` to the next of 128, 192, 256, 384, 512, 768, ...

    Two sizes an octave: few to compile for, and a step reads all slots, so that
    few stand empty.
    """
    while self.capacity < slots:
      is_power = self.capacity & (self.capacity - 1) == 0
      self.capacity = (
        self.capacity * 3 // 2 if is_power else self.capacity * 4 // 3
      )

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
      cfg.num_key_value_heads,
      capacity,
      cfg.head_dim,
      cfg.jax_dtype,
      stacked,
      self.mesh,
    )
    return cache
