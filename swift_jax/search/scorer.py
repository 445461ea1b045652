"""Scores masks with the model: uploads them and fetches their scores."""

from __future__ import annotations

from concurrent import futures
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from swift_jax.model.skip_mask import Candidates
from swift_jax.parallel import sharding
from swift_jax.parallel.target import Target
from swift_jax.search import matchness
from swift_jax.search.matchness import Scores, Text
from swift_jax.typing import Float

_REPEATS = 3  # timed passes of each way; the quickest counts


class Program(NamedTuple):
  """The key of a compiled program.

  Attributes:
    name: the way of scoring (`vmap` or `map`), or `importance`.
    shape: B and S of the text, the number of masks C (1 for importance), and
      the window T.
  """

  name: str
  shape: tuple[int, ...]


class Scorer:
  """Scores candidate masks of one model.

  Its methods take a text of B rows, the candidates' bits, the window in
  positions a row, and `scoring`: `vmap`, `map`, or `auto` for the quicker one.

  Attributes:
    seconds: for each shape (B, S, C, T) whose two ways were timed, the seconds
      of a pass by way.
  """

  def __init__(self, target: Target):
    self._target = target
    self._compiler = futures.ThreadPoolExecutor(1)
    # A program without a job is compiled by its first call.
    self._programs: dict[Program, futures.Future[Any] | None] = {}
    self._chosen: dict[tuple[int, ...], str] = {}
    self.seconds: dict[tuple[int, ...], dict[str, float]] = {}

  def score(
    self, text: Text, candidates: Candidates, window: int, scoring: str
  ) -> Scores:
    """The scores of `matchness.score`, on the host."""
    way = self.choose(text, candidates, window, scoring)
    return self._run(text, candidates, window, way)

  def is_ready(
    self,
    text: Text,
    candidates: Candidates,
    window: int,
    scoring: str,
    importance: bool,
    begins: bool,
  ) -> bool:
    """Whether all programs for a text and masks of these shapes are compiled.

    Args:
      importance: whether the sublayers' importance is wanted too.
      begins: whether to compile the missing programs, in another thread.
    """
    programs = [
      _program(way, text, window, len(candidates))
      for way in _ways(scoring, len(candidates))
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
    self, program: Program, text: Text, candidates: Candidates
  ) -> futures.Future[Any]:
    """Starts compiling a program in the other thread.

    The thread gets the shapes of the text only: the next round overwrites its
    arrays.
    """
    target = self._target
    is_importance = program.name == 'importance'
    argument = (
      target.put(np.float32(0))
      if is_importance
      else target.put_mask(candidates)
    )
    function, static = _function(program)
    arguments = target.graphdef, target.params, jax.tree.map(_like, text)

    def compile_() -> Any:
      return function.lower(*arguments, argument, *static).compile()

    return self._compiler.submit(compile_)

  def choose(
    self, text: Text, candidates: Candidates, window: int, scoring: str
  ) -> str:
    """The way to score such masks, `vmap` or `map`.

    Where `scoring` leaves the choice, the first call for a shape compiles both
    ways and times them.
    """
    ways = _ways(scoring, len(candidates))
    if len(ways) == 1:
      return ways[0]
    shape = _program(scoring, text, window, len(candidates)).shape
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
    """The importances of `matchness.sensitivities`, on the host."""
    program = _program('importance', text, window)
    ratio = self._target.put(np.float32(skip_ratio))
    slopes: np.ndarray = self._call(program, text, ratio)
    return slopes

  def _seconds(
    self, text: Text, candidates: Candidates, window: int, way: str
  ) -> float:
    """Seconds of the quickest pass; a first pass, which compiles, is left out."""
    taken = []
    for _ in range(_REPEATS + 1):
      started = time.perf_counter()
      self._run(text, candidates, window, way)
      taken.append(time.perf_counter() - started)
    return min(taken[1:])

  def _run(
    self, text: Text, candidates: Candidates, window: int, way: str
  ) -> Scores:
    """Makes a scoring pass in this way."""
    program = _program(way, text, window, len(candidates))
    masks = self._target.put_mask(candidates)
    scores: Scores = self._call(program, text, masks)
    return scores

  def _call(self, program: Program, text: Text, argument: Any) -> Any:
    """Runs a program on a text; returns its result, on the host.

    Args:
      argument: masks, or the skip ratio for importance; on the device.
    """
    target = self._target
    arguments = target.params, text, argument
    job = self._programs.setdefault(program)
    if job is not None:
      return target.get(job.result()(*arguments))
    function, static = _function(program)
    return target.get(function(target.graphdef, *arguments, *static))


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
  """An array's shape, type and place, without its values."""
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _ways(scoring: str, num_masks: int) -> list[str]:
  """The ways of scoring to choose from."""
  if scoring != 'auto':
    return [scoring]
  # For one mask alone, `map` with its gates is never slower.
  return ['map'] if num_masks == 1 else ['vmap', 'map']


def _program(name: str, text: Text, window: int, num_masks: int = 1) -> Program:
  """The key of the program for a text and masks of these shapes."""
  return Program(name, (*text.tokens.shape, num_masks, window))


def _function(program: Program) -> tuple[Any, tuple[Any, ...]]:
  """The function that a program is compiled from, and its static arguments.

  The static arguments come last.
  """
  window = program.shape[-1]
  if program.name == 'importance':
    return matchness.sensitivities, (window,)
  return matchness.score, (window, program.name == 'vmap')
