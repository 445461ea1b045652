"""Scoring on the model at hand: uploads, the way that is quicker, fetches."""

from __future__ import annotations

import time
from typing import Any, Protocol

import jax
import numpy as np

from swift_jax import sharding
from swift_jax.llama import GraphDef, Params
from swift_jax.search import matchness
from swift_jax.search.matchness import Scores, Text
from swift_jax.skip_mask import SkipMask
from swift_jax.typing import Float

_REPEATS = 3  # of each way when it is timed; the quickest counts


class Target(Protocol):
  """What scoring needs of a model."""

  graphdef: GraphDef
  params: Params
  mesh: jax.sharding.Mesh | None

  def put(self, tree: Any) -> Any:
    """Arrays on the model's devices."""

  def get(self, tree: Any) -> Any:
    """Arrays on the host."""


class Scorer:
  """Scores candidates of one model.

  Attributes:
    seconds: of a pass by shape (B, S, C, T), then by way, where both were timed.
  """

  def __init__(self, target: Target):
    self._target = target
    self._chosen: dict[tuple[int, ...], str] = {}
    self.seconds: dict[tuple[int, ...], dict[str, float]] = {}

  def score(
    self, text: Text, candidates: SkipMask, window: int, scoring: str
  ) -> Scores:
    """`matchness.score`, on the host.

    Args:
      scoring: `vmap`, `map`, or `auto` for the quicker one.
    """
    way = self.choose(text, candidates, window, scoring)
    return self._run(text, candidates, window, way)

  def choose(
    self, text: Text, candidates: SkipMask, window: int, scoring: str
  ) -> str:
    """`vmap` or `map`: what `scoring` says, or what is quicker for such masks.

    The first time a shape comes both are compiled and timed.
    """
    if scoring != 'auto':
      return scoring
    count = len(candidates.attn)
    if count == 1:
      return 'map'  # a mask alone: behind gates it can only be quicker
    shape = (*text.tokens.shape, count, window)
    if shape not in self._chosen:
      self.seconds[shape] = {
        way: self._seconds(text, candidates, window, way)
        for way in ('vmap', 'map')
      }
      taken = self.seconds[shape]
      is_vmapped = sharding.agreed(
        taken['vmap'] < taken['map'], self._target.mesh
      )
      self._chosen[shape] = 'vmap' if is_vmapped else 'map'
    return self._chosen[shape]

  def importance(
    self, text: Text, window: int, skip_ratio: float
  ) -> Float[np.ndarray, ' d']:
    """`matchness.sensitivities`, on the host."""
    target = self._target
    ratio = target.put(np.float32(skip_ratio))
    return target.get(
      matchness.sensitivities(
        target.graphdef, target.params, text, window, ratio
      )
    )

  def _seconds(
    self, text: Text, masks: SkipMask, window: int, way: str
  ) -> float:
    """The quickest of some passes, once it is compiled."""
    taken = []
    for _ in range(_REPEATS + 1):
      started = time.perf_counter()
      self._run(text, masks, window, way)
      taken.append(time.perf_counter() - started)
    return min(taken[1:])

  def _run(self, text: Text, masks: SkipMask, window: int, way: str) -> Scores:
    target = self._target
    masks = target.put(masks)
    return target.get(
      matchness.score(
        target.graphdef, target.params, text, masks, window, way == 'vmap'
      )
    )
