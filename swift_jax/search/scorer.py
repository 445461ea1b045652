"""Scoring on the model at hand: uploads, the way that is quicker, fetches."""

from __future__ import annotations

from concurrent import futures
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from swift_jax.model.skip_mask import SkipMask
from swift_jax.parallel import sharding
from swift_jax.parallel.target import Target
from swift_jax.search import matchness
from swift_jax.search.matchness import Scores, Text
from swift_jax.typing import Float

_REPEATS = 3  # of each way when it is timed; the quickest counts


class Program(NamedTuple):
  """What is compiled once.

  Attributes:
    name: a way of scoring, or `importance`.
    shape: B, S of the text, C of the masks (1 for importance), T.
  """

  name: str
  shape: tuple[int, ...]


class Scorer:
  """Scores candidates of one model.

  Attributes:
    seconds: of a pass by shape (B, S, C, T), then by way, where both were timed.
  """

  def __init__(self, target: Target):
    self._target = target
    self._compiler = futures.ThreadPoolExecutor(1)
    # None: it is compiled where it is called.
    self._programs: dict[Program, futures.Future[Any] | None] = {}
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

  def is_ready(
    self,
    text: Text,
    candidates: SkipMask,
    window: int,
    scoring: str,
    importance: bool,
    begins: bool,
  ) -> bool:
    """Whether everything is compiled for such a text and so many masks.

    Args:
      importance: that of the sublayers too.
      begins: to compile what is missing, in another thread.
    """
    programs = [
      _program(way, text, window, len(candidates.attn))
      for way in _ways(scoring, len(candidates.attn))
    ]
    if importance:
      programs.append(_program('importance', text, window))
    if begins:
      for program in programs:
        if program not in self._programs:
          self._programs[program] = self._begin(program, text, candidates)
    jobs = [self._programs[p] for p in programs if p in self._programs]
    return len(jobs) == len(programs) and all(
      job is None or job.done() for job in jobs
    )

  def _begin(
    self, program: Program, text: Text, candidates: SkipMask
  ) -> futures.Future[Any]:
    """Compiles it beside the text, which keeps its arrays: shapes will do."""
    target = self._target
    is_ratio = program.name == 'importance'
    argument = target.put(np.float32(0) if is_ratio else candidates)
    function, static = _function(program)
    arguments = target.graphdef, target.params, jax.tree.map(_like, text)

    def compile_() -> Any:
      return function.lower(*arguments, argument, *static).compile()

    return self._compiler.submit(compile_)

  def choose(
    self, text: Text, candidates: SkipMask, window: int, scoring: str
  ) -> str:
    """`vmap` or `map`: what `scoring` says, or what is quicker for such masks.

    The first time a shape comes both are compiled and timed.
    """
    ways = _ways(scoring, len(candidates.attn))
    if len(ways) == 1:
      return ways[0]
    shape = _program(scoring, text, window, len(candidates.attn)).shape
    if shape not in self._chosen:
      self.seconds[shape] = {
        way: self._seconds(text, candidates, window, way) for way in ways
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
    program = _program('importance', text, window)
    slopes: np.ndarray = self._call(program, text, np.float32(skip_ratio))
    return slopes

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
    program = _program(way, text, window, len(masks.attn))
    scores: Scores = self._call(program, text, masks)
    return scores

  def _call(self, program: Program, text: Text, argument: Any) -> Any:
    """What it makes of a text, on the host."""
    target = self._target
    arguments = target.params, text, target.put(argument)
    job = self._programs.setdefault(program)
    if job is not None:
      return target.get(job.result()(*arguments))
    function, static = _function(program)
    return target.get(function(target.graphdef, *arguments, *static))


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _ways(scoring: str, num_masks: int) -> list[str]:
  """Those to choose from."""
  if scoring != 'auto':
    return [scoring]
  # A mask alone: behind gates it can only be quicker.
  return ['map'] if num_masks == 1 else ['vmap', 'map']


def _program(name: str, text: Text, window: int, num_masks: int = 1) -> Program:
  return Program(name, (*text.tokens.shape, num_masks, window))


def _function(program: Program) -> tuple[Any, tuple[Any, ...]]:
  """What computes it, and its last arguments, which are static."""
  window = program.shape[-1]
  if program.name == 'importance':
    return matchness.sensitivities, (window,)
  return matchness.score, (window, program.name == 'vmap')
