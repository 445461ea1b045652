"""Watch a real model write with SWIFT, and see the cost and the speedup.

  launch/demo.sh
  python launch/demo.py --config=configs/demo.py

Plain decoding and SWIFT continue the same prompts. SWIFT starts from the uniform
skip set and searches for a better set while it writes. The table's last row is SWIFT
again, with the set that the search found and without a search. The exit status is 1
if any text differs.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import time

from cli import common, console
import ml_collections

from swift_jax.runtime.metrics import distinct_ngrams, ratio

_COLUMNS = (
  ('', 12),
  ('tokens', 7),
  ('seconds', 8),
  ('search s', 9),
  ('tokens/s', 9),
  ('acceptance', 11),
  ('mean length', 12),
  ('matchness', 10),
  ('speedup', 8),
  ('4-grams', 8),
)


def read_prompts() -> list[str]:
  """The demo's prompts: the beginnings of programs."""
  from swift_jax import demo

  file = pathlib.Path(demo.__file__).with_name('prompts.jsonl')
  return [json.loads(line)['prompt'] for line in file.read_text().splitlines()]


def total(results: Sequence, *names: str) -> float:
  return sum(getattr(r.metrics, name) for r in results for name in names)


def row(name: str, results: Sequence, plain: Sequence) -> str:
  """One line of the table: totals over all prompts."""
  tokens = total(results, 'new_tokens')
  times = ('prefill_s', 'decode_s', 'search_s')
  seconds = total(results, *times)
  grams = [distinct_ngrams(r.tokens) for r in results]
  grams = [share for share in grams if share is not None]
  is_plain = results is plain
  cells = (
    name,
    f'{tokens:d}',
    f'{seconds:.2f}',
    f'{total(results, "search_s"):.2f}',
    f'{ratio(tokens, seconds) or 0:.1f}',
    _show(ratio(total(results, 'accepted'), total(results, 'drafted'))),
    _show(ratio(tokens, total(results, 'verify_passes'))),
    _show(results[-1].metrics.matchness),
    _show(None if is_plain else ratio(total(plain, *times), seconds)),
    _show(ratio(sum(grams), len(grams))),
  )
  return _line(cells)


def _show(value: float | None) -> str:
  return '-' if value is None else f'{value:.2f}'


def _line(cells: Sequence[str]) -> str:
  widths = [width for _, width in _COLUMNS]
  parts = [cell.rjust(w) for cell, w in zip(cells, widths, strict=True)]
  return ''.join([cells[0].ljust(widths[0]), *parts[1:]])


def first_difference(one: Sequence, two: Sequence) -> str | None:
  """Where the tokens of two runs first differ; None if nowhere."""
  for number, (a, b) in enumerate(zip(one, two, strict=True), 1):
    if a.tokens == b.tokens:
      continue
    pairs = zip(a.tokens, b.tokens, strict=False)
    differ = [i for i, (x, y) in enumerate(pairs) if x != y]
    at = differ[0] if differ else min(len(a.tokens), len(b.tokens))
    x, y = a.tokens[at : at + 1], b.tokens[at : at + 1]
    return f'prompt {number}, token {at}: plain {x}, swift {y}'
  return None


def main(config: ml_collections.ConfigDict) -> int:
  decode = common.without_logprobs(common.decode_config(config))
  plain_cfg = dataclasses.replace(decode, method='plain')
  swift_cfg = dataclasses.replace(decode, method='swift')
  started = time.perf_counter()
  engine = common.load_engine(config)
  prompts = read_prompts()
  longest = max(map(len, engine.encode(prompts)))
  print(f'loaded {config.model.path} in {time.perf_counter() - started:.1f} s')
  common.announce(engine.describe())
  started = time.perf_counter()
  engine.warmup(plain_cfg, longest)
  engine.warmup(swift_cfg, longest)
  seconds = time.perf_counter() - started
  print(f'compiled in {seconds:.1f} s (not in the times below)\n')

  plain, swift = [], []
  for number, prompt in enumerate(prompts, 1):
    # The methods take turns, so that a busy machine slows both.
    plain += engine.generate(prompt, plain_cfg)
    print(f'--- prompt {number} of {len(prompts)}, SWIFT\n{prompt}', end='')
    swift += engine.generate(prompt, swift_cfg, console.show_text)
    print('\n')
  runs = {'plain': plain, 'swift': swift}
  if engine.searcher.iterations:
    engine.searcher.rest()
    again = [engine.generate(prompt, swift_cfg)[0] for prompt in prompts]
    runs['swift, found'] = again

  if 'swift, found' in runs:
    print('swift: while it searches; swift, found: again, with what it found\n')
  print(_line([name for name, _ in _COLUMNS]))
  for name, results in runs.items():
    print(row(name, results, plain))
  passes = engine.searcher.iterations
  print(f'\nthe skip set after {passes} scoring passes (█ runs, ░ is skipped):')
  print(engine.skip_mask.blocks())
  for name, results in runs.items():
    where = first_difference(plain, results)
    if where:
      print(f'identical: no ({name}: {where})')
      return 1
  print('identical: yes')
  return 0


if __name__ == '__main__':
  common.run(main)
