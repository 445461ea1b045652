"""The time from a process's start to its first token, cold and warm.

A cold start has an empty persistent compilation cache. A warm start follows it, with
the programs that the cold start left in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import pathlib
import tempfile
from typing import Any

from swift_jax.benchmark import children, random_model
from swift_jax.benchmark.measuring import spread
from swift_jax.benchmark.report import Outcome, Table

# Returns a command that runs with a cache in a folder, on the model at a path (None:
# the configured model). The command prints a line with the first token, and at its
# end its compilations as JSON: `compilations`, `cache_hits`, `compile_s`.
Command = Callable[[pathlib.Path, str | None], Sequence[str]]
Entry = dict[str, Any]


def compile_(
  command: Command,
  layers: Sequence[int],
  repeats: int,
  progress: Callable[[str], None],
) -> Outcome:
  """The suite `compile`.

  Args:
    command: see `Command`.
    layers: numbers of layers of narrow models, each started cold and warm once.
    repeats: number of cold and warm starts of the configured model, in turns.
    progress: called with a line at each step.
  """
  starts: dict[str, list[tuple[Entry, Entry]]] = {}
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    for number in layers:
      progress(f'{number} narrow layers')
      path = place / f'model-{number}'
      children.write_model(path, random_model.narrow(number))
      starts[f'{number} narrow layers'] = [pair(command, str(path))]
    starts['configured'] = []
    for number in range(repeats):
      progress(f'the configured model, {number + 1} of {repeats}')
      starts['configured'].append(pair(command, None))
  figures = {
    name: {
      'cold': [cold for cold, _ in pairs],
      'warm': [warm for _, warm in pairs],
    }
    for name, pairs in starts.items()
  }
  outcome = Outcome({}, {'starts': figures}, [_table(figures)])
  for name in ('cold', 'warm'):
    runs = figures['configured'][name]
    outcome.add(f'{name}_start_s', spread([run['start_s'] for run in runs]))
  return outcome


def pair(command: Command, model: str | None) -> tuple[Entry, Entry]:
  """A cold start and the warm start after it."""
  with tempfile.TemporaryDirectory() as cache:
    arguments = command(pathlib.Path(cache), model)
    # The cache also keeps the measured costs of passes.
    cold, warm = (_start(arguments, cache) for _ in range(2))
  return cold, warm


def _start(arguments: Sequence[str], cache: str) -> Entry:
  finished = children.run(arguments, {'XDG_CACHE_HOME': cache})
  return {'start_s': finished.first_line_s, **finished.report}


def _table(figures: dict[str, dict[str, list[Entry]]]) -> Table:
  heads = ['start_s', 'compile_s', 'compilations', 'cache_hits']
  rows = [
    [
      f'{name}, {kind}',
      *(spread([run[head] for run in runs]).median for head in heads),
    ]
    for name, kinds in figures.items()
    for kind, runs in kinds.items()
  ]
  return Table('from exec to the first token', ['', *heads], rows)
