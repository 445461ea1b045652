"""The speedup of SWIFT and of prompt lookup over plain decoding.

The suite measures it by batch size and temperature. Beside it stand text that loops,
which flatters every draft, and the share of the machine's bandwidth that plain
decoding uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swift_jax.benchmark.decode_runs import Bench, Writing, find_set, write
from swift_jax.benchmark.measuring import interleaved, reads, spread, step_bytes
from swift_jax.benchmark.report import Outcome, Table
from swift_jax.benchmark.suites.passes import PASSES, Passes
from swift_jax.errors import InputError
from swift_jax.evaluation.report.comparison import bootstrap
from swift_jax.evaluation.report.figures import LOOP_SHARE, NGRAM
from swift_jax.runtime.metrics import distinct_ngrams, ratio

_RATIOS = (
  ('swift_over_plain_greedy_warm', 0.0, 'swift warm'),
  ('swift_over_plain_greedy_cold', 0.0, 'swift cold'),
  ('swift_over_plain_t06_warm', 0.6, 'swift warm'),
  ('layers_over_plain_greedy', 0.0, 'layers alone'),
  ('layers_over_plain_t06', 0.6, 'layers alone'),
  ('published_over_plain_greedy', 0.0, 'as published'),
  ('published_over_plain_t06', 0.6, 'as published'),
  ('lookup_over_plain_greedy', 0.0, 'prompt lookup'),
  ('lookup_over_plain_t06', 0.6, 'prompt lookup'),
)


def decode(
  bench: Bench,
  batches: Sequence[int],
  repeats: int,
  progress: Callable[[str], None],
) -> Outcome:
  """The suite `decode`.

  Args:
    bench: the engine, the prompts and the settings.
    batches: batch sizes; headlines are the figures of the smallest.
    repeats: repeats of the plain step whose bandwidth is measured.
    progress: called with a line at each step.

  Raises:
    InputError: the settings leave nothing to search for.
  """
  if bench.warm_set is None and not bench.fresh().searcher.active:
    raise InputError(
      f'search.enabled={bench.search.enabled},'
      f' search.skip_ratio={bench.search.skip_ratio}: nothing to search for'
    )
  mask = bench.warm_set
  if mask is None:
    progress('a set to begin warm with')
    mask = find_set(bench)
  cells, compiled = [], 0
  for batch in batches:
    for temperature in bench.temperatures:
      number = f'{len(cells) + 1} of {len(batches) * len(bench.temperatures)}'
      progress(f'batch {batch}, temperature {temperature}, {number}')
      written, count = write(bench, mask, batch, temperature)
      compiled += count
      cells.append(
        {
          'batch': batch,
          'temperature': temperature,
          'methods': {k: describe(v, written) for k, v in written.items()},
        }
      )
  progress('the read bandwidth of a plain step')
  outcome = Outcome({}, {'skip_set': mask.to_lists(), 'cells': cells})
  _add_headlines(outcome, cells, min(batches))
  _add_bandwidth(outcome, bench, repeats)
  outcome.summary['recompilations'] = compiled
  outcome.tables = [_cells_table(cells), _loops_table(cells)]
  return outcome


def describe(own: Writing, written: dict[str, Writing]) -> dict[str, Any]:
  """A method's figures, compared with plain decoding in the same turns."""
  plain = written['plain']
  shares = [distinct_ngrams(text, NGRAM) for text in own.texts]
  known = [share for share in shares if share is not None]
  return {
    'seconds': own.seconds,
    'tokens': own.tokens,
    'tokens_per_second': sum(own.tokens) / sum(own.seconds),
    'search_share': own.search_seconds() / sum(own.seconds),
    'mean_accepted_length': ratio(
      own.total('new_tokens'), own.total('verify_passes')
    ),
    'acceptance': ratio(own.total('accepted'), own.total('drafted')),
    **over(own, plain),
    'distinct_4grams': float(np.mean(known)) if known else None,
    'distinct_4grams_by_prompt': shares,
    'loops': [
      prompt
      for prompt, share in enumerate(shares)
      if share is not None and share < LOOP_SHARE
    ],
    'as_plain': sum(
      a == b for a, b in zip(own.texts, plain.texts, strict=True)
    ),
  }


def over(own: Writing, plain: Writing) -> dict[str, Any]:
  """A method's tokens a second over plain decoding's, totals over totals.

  Beside the ratio stand its bootstrap interval over batches, and the quartiles of
  the batches' ratios.
  """
  tokens = np.array([plain.tokens, own.tokens], float).T
  seconds = np.array([plain.seconds, own.seconds], float).T
  speeds = tokens / seconds
  low, high = bootstrap(tokens, seconds, seed=0)
  totals = tokens.sum(0) / seconds.sum(0)
  return {
    'over_plain': float(totals[1] / totals[0]),
    'over_plain_low': low,
    'over_plain_high': high,
    'over_plain_quartiles': spread(speeds[:, 1] / speeds[:, 0])._asdict(),
  }


def _add_headlines(
  outcome: Outcome, cells: Sequence[dict[str, Any]], batch: int
) -> None:
  by_temperature = {
    cell['temperature']: cell['methods']
    for cell in cells
    if cell['batch'] == batch
  }
  for name, temperature, method in _RATIOS:
    found = by_temperature.get(temperature, {}).get(method)
    if found is None:
      continue
    outcome.summary[name] = found['over_plain']
    if found['over_plain_low'] is not None:
      interval = found['over_plain_low'], found['over_plain_high']
      outcome.spread[name] = interval
  # By default SWIFT should never be slower, whatever the batch.
  by_default = [
    cell['methods'][name]['over_plain']
    for cell in cells
    for name in ('swift cold', 'swift warm')
    if name in cell['methods']
  ]
  if by_default:
    outcome.summary['swift_over_plain_lowest'] = min(by_default)
  # Text that loops flatters every draft: its share stands beside the ratios.
  for name, temperature in (('greedy', 0.0), ('t06', 0.6)):
    if temperature in by_temperature:
      plain = by_temperature[temperature]['plain']
      outcome.summary[f'distinct_4grams_{name}'] = plain['distinct_4grams']


def _add_bandwidth(outcome: Outcome, bench: Bench, repeats: int) -> None:
  """Adds the share of the reading bandwidth that a plain step uses."""
  model = bench.engine.model
  filled = len(bench.timed[0]) + bench.new_tokens // 2
  needed = step_bytes(model, 1, filled)
  reading = reads(needed)
  steps = Passes(model, 1, filled).runs({'plain step': (1, None)})
  taken = interleaved({**steps, **reading.runs}, repeats)
  way, bandwidth = reading.bandwidth(taken)
  # On a mesh every device reads its part of the weights at the same time.
  parts = 1 if model.mesh is None else model.mesh.shape['tensor']
  shares = [
    needed * PASSES / step / (bandwidth * parts) for step in taken['plain step']
  ]
  outcome.add('read_bandwidth_share', spread(shares))
  outcome.figures['read_bandwidth'] = {
    'step_bytes': needed,
    'array_bytes': reading.nbytes,
    'seconds': taken,
    'measured_by': way,
    'bytes_per_second': bandwidth,
    'parts': parts,
  }


def _cells_table(cells: Sequence[dict[str, Any]]) -> Table:
  names = {
    'tokens_per_second': 'tokens/s',
    'over_plain': '/ plain',
    'over_plain_low': 'low',
    'over_plain_high': 'high',
    'search_share': 'search',
    'mean_accepted_length': 'accepted length',
    'acceptance': 'acceptance',
    'distinct_4grams': 'distinct 4-grams',
  }
  rows = [
    [
      name,
      cell['batch'],
      cell['temperature'],
      *(found[key] for key in names),
      len(found['loops']),
      found['as_plain'],
    ]
    for cell in cells
    for name, found in cell['methods'].items()
  ]
  heads = ['', 'batch', 'temp.', *names.values(), 'loops', 'as plain']
  title = "tokens of all batches over all seconds; '/ plain' with its 95 %"
  return Table(title, heads, rows)


def _loops_table(cells: Sequence[dict[str, Any]]) -> Table:
  """A table of the prompts whose plain text loops."""
  rows = [
    [
      f'batch {cell["batch"]}, temperature {cell["temperature"]}',
      ' '.join(map(str, cell['methods']['plain']['loops'])) or 'none',
    ]
    for cell in cells
  ]
  title = (
    f'prompts whose plain text has under {LOOP_SHARE:.0%} distinct 4-grams'
  )
  return Table(title, ['', 'prompts'], rows)
