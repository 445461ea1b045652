"""Draft programs with a fixed skip mask, for devices where gates cost much time.

When the search rests, a program with its mask built in is compiled beside the text.
It is then timed against the gates, and used if a drafted token is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import logging
import statistics
from typing import Any, NamedTuple

import jax

from swift_jax.config.sampling import SamplingConfig
from swift_jax.decoding.drafting import DraftSettings, DraftShapes
from swift_jax.model.skip_mask import Bits, KnownMask, SkipMask, from_bits
from swift_jax.pacing import costs
from swift_jax.parallel import sharding
from swift_jax.parallel.target import Target

_REPEATS = 5
_LOGGER = logging.getLogger('swift_jax')


class _Key(NamedTuple):
  """All that a program is compiled for."""

  mask: KnownMask
  batch: int
  capacity: int
  shapes: DraftShapes
  sampling: tuple[bool, ...]


class Specialised:
  """The programs of one model."""

  def __init__(self, target: Target, drafts: DraftSettings):
    """Compiles nothing yet.

    Args:
      drafts: the target's draft settings, on its devices.
    """
    self._target, self._drafts = target, drafts
    self._saved: dict[_Key, float | None] = {}
    self._jobs: dict[_Key, futures.Future[Any]] = {}
    self._compiler = futures.ThreadPoolExecutor(1)

  def saved_seconds(
    self,
    bits: Bits,
    batch: int,
    capacity: int,
    shapes: DraftShapes,
    settings: SamplingConfig,
    waits: bool = False,
  ) -> float | None:
    """Seconds that a drafted token saves against gates.

    The first call starts to compile. A call after the compilation has ended takes
    the times.

    Args:
      bits: those of the mask that drafts until further notice.
      capacity: slots of the text's cache.
      settings: the resolved sampling settings.
      waits: wait for the program.

    Returns:
      None if the program saves nothing or is not ready.
    """
    target = self._target
    if target.drafts_stay_gated or sharding.spans_processes(target.mesh):
      return None  # processes in step would not switch at the same time
    known = KnownMask.of(from_bits(bits))
    work = costs.sampling_work(settings)
    key = _Key(known, batch, capacity, shapes, work)
    if key in self._saved:
      return self._saved[key]
    how = target, self._drafts, batch, shapes, settings, capacity
    try:
      if key not in self._jobs:
        self._begin(key, costs.Bench(*how).lowering(known))
      job = self._jobs[key]
      if not waits and not job.done():
        return None
      del self._jobs[key]
      job.result()
      saved = _measured(costs.Bench(*how), target.put_mask(bits), known)
    except Exception as error:  # for instance no memory: the text goes on
      _LOGGER.warning('no program for the skip set alone: %s', error)
      saved = None
    self._saved[key] = saved
    return saved

  def _begin(self, key: _Key, lower: Callable[[], jax.stages.Lowered]) -> None:
    """Compiles in another thread, which starts nothing on a device.

    Two threads might start programs on several devices in two orders.
    """
    for job in self._jobs.values():
      job.cancel()  # a program of an earlier mask: not needed now
    # The call that runs the program finds it compiled.
    self._jobs = {key: self._compiler.submit(lambda: lower().compile())}


def _measured(
  bench: costs.Bench, gated: SkipMask, known: KnownMask
) -> float | None:
  """Seconds that a token saves: times rounds with and without gates, in turns."""
  bench.layers(gated)  # compiles
  pairs = [(bench.layers(gated), bench.layers(known)) for _ in range(_REPEATS)]
  saved = statistics.median(one - two for one, two in pairs)
  return saved / bench.draft_length if saved > 0 else None
