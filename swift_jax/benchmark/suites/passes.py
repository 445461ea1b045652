"""The cost of a pass of the model, by its running sublayers and by its tokens.

Passes are timed as decoding runs them: twenty passes one after another in one
program, with the cache as its state. Dispatches of single passes would add a cost
that no round has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.benchmark.measuring import (
  Seconds,
  Spread,
  interleaved,
  paired_ratio,
  spread,
)
from swift_jax.benchmark.report import Outcome, Table
from swift_jax.decoding import sampling
from swift_jax.model.kv_cache import KVCache
from swift_jax.model.llama import GraphDef, Params
from swift_jax.model.skip_mask import KnownMask, Mask, SkipMask
from swift_jax.runtime.model import Model
from swift_jax.typing import Array, Int

Wanted = tuple[int, Mask | None]  # number of tokens of a pass, and its mask

PASSES = 20  # passes in one program
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
# Shares of sublayers that run: 0.55 runs if 0.45 is skipped, as in the paper.
_SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.55, 0.625, 0.75, 0.875, 1.0)
_KNOWN_SHARES = (0.0, 0.25, 0.5, 0.55, 0.75, 1.0)  # each needs its own program
_FILLED = 96  # filled slots: the middle of a text of the suite decode


@functools.partial(jax.jit, static_argnames='graphdef', donate_argnames='cache')
def passes(
  graphdef: GraphDef,
  params: Params,
  cache: KVCache,
  tokens: Int[Array, 'b t'],
  skip_mask: Mask,
  count: Int[Array, ''],
) -> tuple[Array, Array, KVCache]:
  """Runs `count` passes over T tokens, each after the same filled slots.

  Each pass takes the most likely tokens of the pass before, so that XLA cannot leave
  out a pass.
  """
  model = nnx.merge(graphdef, params)

  def one(carry: tuple[Array, Array, KVCache]) -> tuple[Array, Array, KVCache]:
    number, tokens, cache = carry
    hidden, updates = model(tokens, skip_mask, cache=cache)
    best = sampling.argmax(model.logits(hidden))
    return number + 1, best, cache.write(updates)

  first = jnp.int32(0), tokens, cache
  return jax.lax.while_loop(lambda carry: carry[0] < count, one, first)


class Passes:
  """Passes of one model over one cache."""

  def __init__(
    self, model: Model, batch: int = 1, filled: int = _FILLED, widest: int = 64
  ):
    """Makes the cache.

    Args:
      model: the model.
      batch: rows of each pass.
      filled: number of filled slots of the cache, to which each pass attends.
      widest: number of tokens of the widest pass.
    """
    self._model, self._batch = model, batch
    capacity = 128 * -(-(filled + widest) // 128)
    length = model.put(np.full(batch, filled, np.int32))
    self._cache = model.empty_cache(batch, capacity).rollback(length)

  def arguments(self, width: int, mask: Mask | None = None) -> tuple[Any, ...]:
    """The arguments of `passes`, with the cache at its place."""
    model = self._model
    tokens = model.put(np.zeros((self._batch, width), np.int32))
    mask = model.none_skipped if mask is None else model.put(mask)
    count = model.number(PASSES)
    return model.graphdef, model.params, self._cache, tokens, mask, count

  def runs(
    self, wanted: Mapping[str, Wanted]
  ) -> dict[str, Callable[[], Array]]:
    """For each name a function to time, which runs `PASSES` passes.

    All programs are compiled at once. With enough cores that takes as long as one
    program.

    Args:
      wanted: for each name the number of tokens and the mask; None: the whole model
        as decoding runs it.
    """

    def key_of(width: int, mask: Mask | None) -> tuple[int, KnownMask | None]:
      """The key of a pass's program; all gated masks share a program."""
      mask = self._model.none_skipped if mask is None else mask
      return width, mask if isinstance(mask, KnownMask) else None

    programs = {}
    for one in wanted.values():
      if key_of(*one) not in programs:
        programs[key_of(*one)] = passes.lower(*self.arguments(*one))
    with futures.ThreadPoolExecutor() as pool:
      compiled = pool.map(lambda lowered: lowered.compile(), programs.values())
      programs = dict(zip(programs, compiled, strict=True))

    def run_of(width: int, mask: Mask | None) -> Callable[[], Array]:
      program = programs[key_of(width, mask)]
      _, params, _, *rest = self.arguments(width, mask)

      def run() -> Array:
        # The program takes the cache (donated): the next run uses the returned one.
        _, best, self._cache = program(params, self._cache, *rest)
        return best

      return run

    return {name: run_of(*one) for name, one in wanted.items()}

  def temporary_bytes(self, width: int) -> int:
    """Temporary bytes of the program of passes of this width."""
    program = passes.lower(*self.arguments(width)).compile()
    return program.memory_analysis().temp_size_in_bytes


def spread_mask(num_layers: int, share: float) -> SkipMask:
  """A mask under which a share of the sublayers runs, spread over the depth.

  Equally many sublayers of each kind run. Any sublayer may be skipped here, also in
  the first and the last layer.
  """
  runs = round(share * num_layers)
  skip = np.ones(num_layers, bool)
  if runs:
    skip[((np.arange(runs) + 0.5) * num_layers / runs).astype(int)] = False
  return SkipMask(skip, skip[::-1].copy())


def share_that_runs(mask: SkipMask) -> float:
  """Sublayers that run, over all sublayers."""
  return 1 - mask.num_skipped() / (2 * mask.num_layers)


def draft(
  model: Model, repeats: int, known_shares: Sequence[float] = _KNOWN_SHARES
) -> Outcome:
  """The suite `draft`: a gated step against the share of sublayers that run.

  Args:
    model: the model.
    repeats: repeats of each run.
    known_shares: shares for which a program with a built-in mask is timed too.
  """
  passes_, layers = Passes(model), model.cfg.num_hidden_layers
  masks = {
    share_that_runs(mask): mask
    for mask in (spread_mask(layers, share) for share in _SHARES)
  }
  wanted = {_gated(share): (1, mask) for share, mask in masks.items()}
  for share in known_shares:
    mask = spread_mask(layers, share)
    wanted[_known(share_that_runs(mask))] = 1, KnownMask.of(mask)
  taken = interleaved(passes_.runs(wanted), repeats)
  half = share_that_runs(spread_mask(layers, 0.5))
  steps = [_share_entry(taken, share) for share in masks]
  outcome = Outcome(
    summary={},
    figures={
      'passes': PASSES,
      'half': half,
      'seconds': taken,
      'steps': steps,
    },
    tables=[Table.of('a gated step by the share of sublayers', steps)],
  )
  outcome.add('gated50_over_ideal', over_ideal(taken, half))
  outcome.add(
    'gated50_over_all', paired_ratio(taken, _gated(half), _gated(1.0))
  )
  return outcome


def over_ideal(taken: Seconds, share: float) -> Spread:
  """A gated step's time over its ideal time.

  The ideal time is the time of a step without sublayers, plus `share` times the time
  that all sublayers add to it.
  """
  three = zip(
    taken[_gated(0.0)], taken[_gated(share)], taken[_gated(1.0)], strict=True
  )
  return spread([s / (none + share * (a - none)) for none, s, a in three])


def _share_entry(taken: Seconds, share: float) -> dict[str, Any]:
  name, known = _gated(share), _known(share)
  gates = paired_ratio(taken, name, known).median if known in taken else None
  return {
    'share': share,
    **_milliseconds(taken[name]),
    'over_all': paired_ratio(taken, name, _gated(1.0)).median,
    'over_known': gates,
  }


def _gated(share: float) -> str:
  return f'gated {share:.3f}'


def _known(share: float) -> str:
  return f'known {share:.3f}'


def _milliseconds(taken: list[float]) -> dict[str, float]:
  """Milliseconds of one pass: the median and the quartiles."""
  found = spread([1e3 * value / PASSES for value in taken])
  return {'ms': found.median, 'low_ms': found.low, 'high_ms': found.high}


def verify(
  model: Model, repeats: int, widths: Sequence[int] = WIDTHS
) -> Outcome:
  """The suite `verify`: a pass over several tokens, relative to a plain step.

  Args:
    model: the model.
    repeats: repeats of each run.
    widths: numbers of tokens of the passes; 1 and 8 must be among them.
  """
  passes_ = Passes(model, widest=max(widths))
  wanted = {str(width): (width, None) for width in widths}
  taken = interleaved(passes_.runs(wanted), repeats)
  entries = [
    {
      'tokens': width,
      **_milliseconds(taken[str(width)]),
      'over_step': paired_ratio(taken, str(width), '1').median,
    }
    for width in widths
  ]
  outcome = Outcome(
    summary={},
    figures={'passes': PASSES, 'seconds': taken, 'widths': entries},
    tables=[Table.of('a pass over several tokens', entries)],
  )
  outcome.add('verify8_over_step', paired_ratio(taken, '8', '1'))
  return outcome
