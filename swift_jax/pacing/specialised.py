"""Draft programs with a set that rests built in, where gates cost much.

A program is compiled beside the text that is being written, timed against the gates
once it is there, and used if a drafted token is cheaper.
"""

from __future__ import annotations

from concurrent import futures
import logging
import statistics
from typing import Any, NamedTuple

from swift_jax.config.sampling import SamplingConfig
from swift_jax.decoding.drafting import DraftSettings, DraftShapes
from swift_jax.model.skip_mask import Bits, KnownMask, SkipMask, from_bits
from swift_jax.pacing import costs
from swift_jax.parallel import sharding
from swift_jax.parallel.target import Target

_REPEATS = 5
_LOGGER = logging.getLogger('swift_jax')


class _Key(NamedTuple):
  """What a program is compiled for."""

  mask: KnownMask
  batch: int
  capacity: int
  shapes: DraftShapes
  sampling: tuple[bool, ...]


class Specialised:
  """The programs of one model."""

  def __init__(self, target: Target, drafts: DraftSettings):
    """Nothing is compiled yet.

    Args:
      drafts: the target's, on its devices.
    """
    self._target, self._drafts = target, drafts
    self._saved: dict[_Key, float | None] = {}
    self._jobs: dict[_Key, futures.Future[None]] = {}
    self._compiler = futures.ThreadPoolExecutor(1)

  def saves(
    self,
    bits: Bits,
    batch: int,
    capacity: int,
    shapes: DraftShapes,
    settings: SamplingConfig,
    waits: bool = False,
  ) -> float | None:
    """Seconds by which a drafted token is cheaper than behind gates; None where it
    is not, or not yet (on several devices: not without waiting).

    The first call starts compiling, and one after its end takes the times.

    Args:
      bits: those of the mask that drafts until further notice.
      capacity: slots of the text's cache.
      settings: resolved.
      waits: for the program.
    """
    target = self._target
    if target.gates_are_quick or sharding.spans_processes(target.mesh):
      return None  # processes in step would not change over at once
    known = KnownMask.of(from_bits(bits))
    work = costs.sampling_work(settings)
    key = _Key(known, batch, capacity, shapes, work)
    if key in self._saved:
      return self._saved[key]
    if not waits and target.mesh is not None and target.mesh.size > 1:
      return None  # two threads might start a program on devices in two orders
    how = target, self._drafts, batch, shapes, settings, capacity
    if key not in self._jobs:
      for job in self._jobs.values():  # what drafted before is not waited for
        job.cancel()
      job = self._compiler.submit(_compile, known, *how)
      self._jobs = {key: job}
    job = self._jobs[key]
    if not waits and not job.done():
      return None
    del self._jobs[key]
    try:
      job.result()
      saved = _measured(costs.Bench(*how), target.put_mask(bits), known)
    except Exception as error:  # no room for it, say: the text goes on
      _LOGGER.warning('no program for the skip set alone: %s', error)
      saved = None
    self._saved[key] = saved
    return saved


def _compile(known: KnownMask, *how: Any) -> None:
  """In the other thread, which leaves nothing but the program."""
  costs.Bench(*how).layers(known)


def _measured(
  bench: costs.Bench, gated: SkipMask, known: KnownMask
) -> float | None:
  """In turns: rounds that draft as much, behind gates and without."""
  bench.layers(gated)  # compiles
  pairs = [(bench.layers(gated), bench.layers(known)) for _ in range(_REPEATS)]
  saved = statistics.median(one - two for one, two in pairs)
  return saved / bench.draft_length if saved > 0 else None
