"""The suite `search` of benchmark.py: the sets it finds, its speed and its costs.

It searches on the model's own continuations of text that the model was not trained
on. It takes five to ten minutes with the demo model on two cores. It sets the
settings that it compares itself.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark_tables import print_figures, say
from cli import common
from ml_collections import ConfigDict
import numpy as np

from swift_jax.config.sampling import SamplingConfig
from swift_jax.errors import InputError

if TYPE_CHECKING:
  from swift_jax import DecodeConfig, DraftConfig, Engine
  from swift_jax.benchmark.report import Outcome
  from swift_jax.benchmark.suites.search import Comparison

_NEW_TOKENS = 128
_STREAM_TEXTS, _FRESH_TEXTS = 24, 40  # texts of the comparison of recipes
_STREAM_PROMPTS = 20
_DOMAIN_PROMPTS = 18  # of each kind
_TOKENS_PER_MASK = 3  # about as many as a round commits


class Bench(NamedTuple):
  """Engine and prompts, which the parts of the suite share.

  Attributes:
    make_engine: makes an engine with changed search settings.
    plain, swift: settings to continue one prompt.
    code, prose: prompts from programs, and from documentation.
  """

  make_engine: Callable[..., Engine]
  plain: DecodeConfig
  swift: DecodeConfig
  code: list[list[int]]
  prose: list[list[int]]


def search(config: ConfigDict, seeds: int) -> Outcome:
  """Runs the suite, with `seeds` searches of each recipe."""
  from swift_jax.benchmark.report import Outcome

  with config.unlocked():
    bench = prepare(config)
    figures = run_stream(bench)
    # From here on every round drafts by layers: only their acceptance is measured.
    config.draft.adaptive = False
    figures |= {
      **compare_recipes(bench, common.section(config, 'draft'), seeds),
      **change_domain(bench),
      **count_costs(bench),
    }
  fresh = figures['comparison']['fresh_matchness']
  ours, papers = np.array(fresh['ours']), np.array(fresh['paper'])
  at = figures['comparison']['points'].index
  behind = papers[:, at(400)]
  compiled = figures['compilations']
  summary = {
    'ours100_minus_paper400': float((ours[:, at(100)] - behind).mean()),
    'ours50_minus_paper400': float((ours[:, at(50)] - behind).mean()),
    'search_time_share': figures['stream']['search_share'],
    'swift_over_plain_cold_stream': figures['stream']['swift_over_plain'],
    'suggestion_ms_156d': figures['suggestion_ms_156d'],
    'search_recompilations': compiled['after_400'] - compiled['after_10'],
  }
  return Outcome(summary, figures)


def prepare(config: ConfigDict) -> Bench:
  """Settings and prompts.

  Raises:
    InputError: there is nothing to search for, or not enough text.
  """
  settings = dataclasses.replace(
    common.section(config, 'search'),
    recipe='default',
    cache='',
    save='',
    record='',
  )
  if settings.context_window > _NEW_TOKENS:
    raise InputError(
      f'search.context_window={settings.context_window}: the texts have'
      f' {_NEW_TOKENS} tokens'
    )

  def make_engine(**changes: Any) -> Engine:
    config.search = dataclasses.asdict(dataclasses.replace(settings, **changes))
    return common.load_engine(config)

  from swift_jax.benchmark.prompts import documentation, programs, prompts_of

  engine = make_engine()
  if not engine.searcher.active:
    raise InputError(
      f'search.enabled={settings.enabled},'
      f' search.skip_ratio={settings.skip_ratio}: nothing to search for'
    )
  code = prompts_of(engine, programs())
  prose = prompts_of(engine, documentation())
  wanted = _STREAM_TEXTS + _FRESH_TEXTS + _STREAM_PROMPTS
  if len(code) < wanted or len(prose) < _DOMAIN_PROMPTS:
    raise InputError(
      f'the standard library gives {len(code)} programs and {len(prose)}'
      f' documentation strings: {wanted} and {_DOMAIN_PROMPTS} are needed'
    )
  plain, swift = (
    dataclasses.replace(
      common.section(config, 'decode'),
      method=method,
      ignore_eos=True,
      batch_size=1,
      sampling=SamplingConfig(
        temperature=0, max_new_tokens=_NEW_TOKENS, use_generation_config=False
      ),
    )
    for method in ('plain', 'swift')
  )
  common.announce(engine.describe())
  return Bench(make_engine, plain, swift, code, prose)


def compare_recipes(
  bench: Bench, draft: DraftConfig, seeds: int
) -> dict[str, Any]:
  """Compares the sets that each recipe finds, and rates the importances."""
  from swift_jax.benchmark.replay import Pace, Stream
  from swift_jax.benchmark.suites import search as suite

  say('writing the text')
  engine = bench.make_engine(time_budget=1.0)
  count = _STREAM_TEXTS + _FRESH_TEXTS
  written = Stream(engine, bench.code[:count], _NEW_TOKENS)
  texts = [written.text(row) for row in range(_STREAM_TEXTS)]
  half = _STREAM_TEXTS + _FRESH_TEXTS // 2
  unseen = [
    written.text(*range(_STREAM_TEXTS, half)),
    written.text(*range(half, count)),
  ]
  window = engine.searcher.cfg.context_window
  fresh = suite.Fresh(engine.model, unseen, window, draft)
  pace = Pace(_NEW_TOKENS, _TOKENS_PER_MASK, window)
  compared = suite.compare(engine, texts, fresh, pace, seeds, say)
  uniform = fresh.matchness(engine.searcher.incumbent)
  print_comparison(compared, uniform)
  importance = suite.importance_figures(engine, texts, compared.found, window)
  print_figures(
    'importance: rank correlation with how often we kept it', importance
  )
  return {
    'comparison': {
      'points': list(suite.POINTS),
      'uniform': uniform,
      'ours_minus_paper': lead(compared.fresh['ours'], compared.fresh['paper']),
      'accepted_lengths': compared.accepted_lengths,
      'fresh_matchness': {k: v.tolist() for k, v in compared.fresh.items()},
    },
    'importance': importance,
  }


def run_stream(bench: Bench) -> dict[str, Any]:
  """Runs the engine on a stream of prompts from a cold start."""
  from swift_jax.benchmark.suites import search as suite

  say('a stream from a cold start')
  # Prompts after those on which recipes were compared.
  first = _STREAM_TEXTS + _FRESH_TEXTS
  prompts = bench.code[first : first + _STREAM_PROMPTS]
  engine = bench.make_engine()
  cold = suite.stream(bench.plain, bench.swift, engine, prompts)
  print_figures('stream of 20 prompts, 128 new tokens each', cold)
  return {'stream': cold}


def change_domain(bench: Bench) -> dict[str, Any]:
  """Runs the engine on a stream that changes from code to prose."""
  from swift_jax.benchmark.suites import search as suite

  say('a change of domain')
  change = suite.change_of_domain(
    lambda **changes: bench.make_engine(time_budget=1.0, **changes),
    bench.swift,
    bench.code[:_DOMAIN_PROMPTS],
    bench.prose[:_DOMAIN_PROMPTS],
  )
  for name, seen in change.items():
    print_figures(f'acceptance, {name}', seen)
  return {'change_of_domain': change}


def count_costs(bench: Bench) -> dict[str, Any]:
  """Counts compilations, and times suggestions of the Gaussian process."""
  from swift_jax.benchmark.suites import search as suite

  say('suggestions and compilations')
  endless = bench.make_engine(
    time_budget=1.0,
    opt_interval=4,
    target_matchness=1.0,
    patience=10**6,
    max_iterations=10**6,
  )
  prompts = bench.code[:_STREAM_PROMPTS]
  compiled = suite.compilations(endless, bench.swift, prompts)
  print_figures('programs compiled', compiled)
  overlap = suite.overlap(endless, bench.swift, bench.code[0])
  print_figures('overlap of a suggestion with rounds, ms', overlap)
  return {
    'compilations': compiled,
    'overlap_ms': overlap,
    'suggestion_ms_156d': suggestion_on_one_core(),
  }


def lead(ours: np.ndarray, theirs: np.ndarray) -> dict[str, list[float]]:
  """At each point: the mean difference over seeds, and its standard error."""
  apart = ours - theirs
  error = (
    apart.std(0, ddof=1) / len(apart) ** 0.5 if len(apart) > 1 else apart[0] * 0
  )
  return {'mean': apart.mean(0).tolist(), 'standard_error': error.tolist()}


def print_comparison(compared: Comparison, uniform: float) -> None:
  """Prints each recipe's mean and deviation over seeds."""
  from swift_jax.benchmark.suites.search import POINTS

  def line(name: str, means: Any, errors: Any) -> None:
    pairs = zip(means, errors, strict=True)
    cells = ''.join(f'{f"{m:.3f} +- {s:.3f}":>16}' for m, s in pairs)
    print(f'{name:<18}{cells}')

  print(f'\nmatchness on fresh text (the uniform set: {uniform:.3f})')
  heads = ''.join(f'{f"after {point}":>16}' for point in POINTS)
  print(f'{"":<18}{heads}')
  for name, values in compared.fresh.items():
    line(name, values.mean(0), values.std(0))
  ahead = lead(compared.fresh['ours'], compared.fresh['paper'])
  line('ours - paper', *ahead.values())
  print('(+-: deviation over seeds; in the last row the standard error)')
  print_figures(
    'tokens a round on fresh text, last sets', compared.accepted_lengths
  )


def suggestion_on_one_core() -> float:
  """Milliseconds of a suggestion for 80 layers, in a process held to one core."""
  code = (
    'import os\n'
    'if hasattr(os, "sched_setaffinity"):\n'
    '  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n'
    'from swift_jax.benchmark.suites import search\n'
    'print(search.suggestion_ms(80, 0.45))'
  )
  command = [sys.executable, '-W', 'ignore', '-c', code]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return float(done.stdout)
