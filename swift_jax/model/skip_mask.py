"""Which attention and MLP sublayers the draft skips.

On the host a mask is the bits of the free sublayers, attention first: bool[D]
with D = 2(L-2), True = skipped. Users and the device have it as a `SkipMask`.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses

import flax.struct
import jax
import numpy as np

from swift_jax.errors import InputError
from swift_jax.typing import Array, Bool

Bits = Bool[np.ndarray, ' d']  # of one mask
Candidates = Bool[np.ndarray, 'c d']  # the bits of several


@flax.struct.dataclass
class SkipMask:
  """Sublayers to skip when drafting; True = skipped. A pytree, so it is traced.

  Floats in [0, 1] are shares that are skipped; they serve derivatives only.

  Attributes:
    attn: attention sublayers, bool[L] (with leading axes: several masks).
    mlp: MLP sublayers, bool[L].
  """

  attn: Bool[Array, '*c l']
  mlp: Bool[Array, '*c l']

  def __repr__(self) -> str:
    rows = self.attn, self.mlp
    is_one = [
      isinstance(row, np.ndarray) and row.ndim == 1 and row.dtype == bool
      for row in rows
    ]
    if all(is_one):
      layers = ', '.join(f'{k}={v}' for k, v in self.to_lists().items())
      return f'SkipMask({layers}, num_layers={self.num_layers})'
    # Several masks, or rows that are on a device, traced or a sharding.
    attn, mlp = (
      f'{row.dtype}{list(row.shape)}' if hasattr(row, 'shape') else repr(row)
      for row in rows
    )
    return f'SkipMask(attn={attn}, mlp={mlp})'

  @property
  def num_layers(self) -> int:
    """L, the layers of the model."""
    return self.attn.shape[-1]

  def num_skipped(self) -> int:
    """Sublayers that are skipped, attention and MLP together."""
    return int(np.sum(np.asarray(self.attn)) + np.sum(np.asarray(self.mlp)))

  def skip_ratio(self) -> float:
    """Skipped sublayers over free sublayers, 2(L-2)."""
    free = num_free(self.num_layers)
    return self.num_skipped() / free if free else 0.0

  def to_lists(self) -> dict[str, list[int]]:
    """The official JSON form: `{'attention': [layer, ...], 'mlp': [...]}`."""
    return {
      'attention': np.flatnonzero(np.asarray(self.attn)).tolist(),
      'mlp': np.flatnonzero(np.asarray(self.mlp)).tolist(),
    }

  def bits(self) -> Bits:
    """The free sublayers as one vector, attention first: bool[2(L-2)]."""
    attn, mlp = np.asarray(self.attn), np.asarray(self.mlp)
    return np.concatenate([attn[1:-1], mlp[1:-1]])

  def blocks(self) -> str:
    """Two rows of blocks, one column a layer: full = runs, light = skipped."""
    rows = (('attention', self.attn), ('mlp', self.mlp))
    return '\n'.join(
      f'{name:<9} ' + ''.join('░' if skip else '█' for skip in np.asarray(row))
      for name, row in rows
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KnownMask:
  """A mask that is built into the program: no gates, but one program a mask.

  Programs that take a `SkipMask` take it too. A CPU is quicker with gates than
  without; on a GPU each gate costs a round trip to the host.
  """

  attn: tuple[bool, ...]
  mlp: tuple[bool, ...]

  @classmethod
  def of(cls, mask: SkipMask) -> KnownMask:
    attn, mlp = np.asarray(mask.attn), np.asarray(mask.mlp)
    return cls(tuple(attn.tolist()), tuple(mlp.tolist()))


Mask = SkipMask | KnownMask


def num_free(num_layers: int) -> int:
  """Free sublayers: all but those of the first and the last layer."""
  return max(0, 2 * (num_layers - 2))


def num_to_skip(num_layers: int, skip_ratio: float) -> int:
  """The paper's `int(2(L-2) * skip_ratio)`."""
  return int(num_free(num_layers) * skip_ratio)


def from_bits(bits: Bool[np.ndarray, '*c d']) -> SkipMask:
  """The inverse of `SkipMask.bits`; leading axes stay: bool[..., 2(L-2)]."""
  attn, mlp = np.split(np.asarray(bits, bool), 2, axis=-1)
  edge = [(0, 0)] * (attn.ndim - 1) + [(1, 1)]
  return SkipMask(attn=np.pad(attn, edge), mlp=np.pad(mlp, edge))


def none_skipped(num_layers: int) -> SkipMask:
  """The mask of the full model."""
  return SkipMask(
    attn=np.zeros(num_layers, bool), mlp=np.zeros(num_layers, bool)
  )


def uniform(num_layers: int, skip_ratio: float) -> SkipMask:
  """A mask to start from: skips are spread evenly over the depth.

  Sublayers are taken in the model's order (attention, MLP, attention, ...), so
  that both kinds and all depths get their share.
  """
  free, skipped = num_free(num_layers), num_to_skip(num_layers, skip_ratio)
  in_order = np.zeros(free, bool)
  if skipped:
    in_order[
      np.floor((np.arange(skipped) + 0.5) * free / skipped).astype(int)
    ] = True
  return from_bits(np.concatenate([in_order[0::2], in_order[1::2]]))


def random(rng: np.random.Generator, free: int, skipped: int) -> Bits:
  """Bits drawn uniformly among those that skip so many of the free sublayers."""
  bits = np.zeros(free, bool)
  bits[rng.permutation(free)[:skipped]] = True
  return bits


def neighbour(rng: np.random.Generator, bits: Bits) -> Bits:
  """A copy of `bits` with one skipped and one kept sublayer exchanged.

  The free sublayers must include at least one of each kind.
  """
  changed = bits.copy()
  changed[rng.choice(np.flatnonzero(bits))] = False
  changed[rng.choice(np.flatnonzero(~bits))] = True
  return changed


def from_lists(
  attention: Iterable[int], mlp: Iterable[int], num_layers: int
) -> SkipMask:
  """A mask from layer indices.

  Raises:
    InputError: an index is not that of a layer that may be skipped, or comes
      twice.
  """
  mask = none_skipped(num_layers)
  for name, indices, row in (
    ('attention', attention, mask.attn),
    ('mlp', mlp, mask.mlp),
  ):
    for index in indices:
      if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
        raise InputError(f'skip set: {name} holds {index!r}, not a layer index')
      if not 0 <= index < num_layers:
        raise InputError(
          f'skip set: {name} layer {index} is not in a model of {num_layers}'
          ' layers'
        )
      if index in (0, num_layers - 1):
        raise InputError(
          f'skip set: {name} layer {index} is the first or the last layer,'
          ' which is never skipped'
        )
      if row[index]:
        raise InputError(f'skip set: {name} layer {index} comes twice')
      row[index] = True
  return mask


def checked_bits(mask: SkipMask, num_layers: int) -> Bits:
  """The bits of a mask that fits the model.

  Raises:
    InputError: wrong length, or the first or last layer is skipped.
  """
  for name, row in (('attn', mask.attn), ('mlp', mask.mlp)):
    row = np.asarray(row)
    if row.dtype != bool or row.shape != (num_layers,):
      raise InputError(
        f'skip_mask.{name}: expected bool[{num_layers}], got'
        f' {row.dtype}{list(row.shape)}'
      )
    if num_layers and (row[0] or row[-1]):
      layer = 0 if row[0] else num_layers - 1
      raise InputError(
        f'skip_mask.{name}: layer {layer} is the first or the last layer,'
        ' which is never skipped'
      )
  return mask.bits()
