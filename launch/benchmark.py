"""Measures speed, search and memory; each ratio is taken within one run.

  python launch/benchmark.py --suite=decode --output=new.json --compare=old.json

  decode   plain decoding, SWIFT (cold: search included; warm: with a set found
           on other prompts) and prompt lookup, by batch size and temperature, on
           passages of programs that the demo was not trained on; and the share of
           the reading bandwidth that a plain step uses
  draft    a gated step by the share of sublayers that run, and compared with the
           same mask known at compile time
  verify   a pass over several tokens, relative to a plain step
  search   the sets that the search finds, how fast it finds them, and its costs
  compile  from exec to the first token, with and without a compilation cache
  memory   the peak of memory compared with weights and cache
  peers    Hugging Face's generate on the same prompts (needs the extra parity), and
           llama.cpp where it is installed
  all      each of them in a process of its own

A suite takes up to 20 minutes with the demo model on two cores. `--config=...` and
its fields work as in the other launchers. A suite sets the settings that it compares
itself, and it writes no skip sets. For decode, --config.search.cache=FILE gives the
set of the warm runs; without it the suite finds one first. Text that loops flatters
every draft, so the share of distinct 4-grams stands beside every speed. `--compare`
says which headline figures have changed, and which by more than their spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from absl import flags
from benchmark_suites import SUITES, Sizes
from benchmark_tables import print_figures, print_tables, say
from cli import common, console, machine
from ml_collections import ConfigDict

from swift_jax.errors import InputError
from swift_jax.files import atomic

if TYPE_CHECKING:
  from swift_jax.benchmark.report import Table

_ALL = 'all'
_BAD_INPUT = 2
# A suite that ends with one of these was ended from outside: no other one starts.
_ENDED = (console.INTERRUPTED, console.TERMINATED, console.READER_GONE)
_UNHEARD = 5.0  # seconds; a child that goes on for longer has got no signal
_SUITE = flags.DEFINE_string('suite', 'decode', f'{", ".join(SUITES)} or all')
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'JSON file with all figures',
  allow_override=True,  # other launchers have one, and tests import several
)
_COMPARE = flags.DEFINE_string('compare', None, 'an earlier --output')
_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'repeats of each pass and each start'
)
_PROMPTS = flags.DEFINE_integer(
  'prompts', 20, 'prompts timed by decode and peers'
)
_NEW_TOKENS = flags.DEFINE_integer(
  'new_tokens', 128, 'tokens written after each prompt of decode and peers'
)
_BATCHES = flags.DEFINE_list(
  'batches', ['1', '2', '4', '8'], 'batch sizes of decode'
)
_METHODS = flags.DEFINE_list(
  'methods',
  None,
  'methods of decode, by the names in its table; plain is always there; default:'
  ' all',
)
_TEMPERATURES = flags.DEFINE_list(
  'temperatures', ['0', '.6'], 'temperatures of decode'
)
_LAYERS = flags.DEFINE_list(
  'layers',
  ['16', '32', '80'],
  'layers of the narrow models of compile; may be empty',
)
_WEIGHTS_MIB = flags.DEFINE_integer(
  'weights_mib', 1024, 'size of the random model of memory, on a CPU'
)
_SHAPE = flags.DEFINE_string(
  'shape',
  None,
  'random weights for draft and verify: llama2_7b or llama2_13b, in bfloat16',
)
_WIDEN = flags.DEFINE_integer(
  'widen',
  1,
  'a power of 4: zeros make the model so many times as wide; for decode, draft'
  ' and verify: the same text at the cost of a wide model',
)
_SEEDS = flags.DEFINE_integer('seeds', 10, 'searches of each recipe of search')


def main(config: ConfigDict) -> int:
  sizes = read_sizes()
  if _SUITE.value not in (*SUITES, _ALL):
    names = ', '.join([*SUITES, _ALL])
    raise InputError(f'--suite={_SUITE.value!r}: expected one of {names}')
  if sizes.shape and _SUITE.value not in ('draft', 'verify'):
    raise InputError(
      f'--shape={sizes.shape!r}: --suite={_SUITE.value!r} needs a real model'
    )
  if sizes.widen > 1 and _SUITE.value not in ('decode', 'draft', 'verify'):
    raise InputError(
      f'--widen={sizes.widen}: --suite={_SUITE.value!r} takes the model as it is'
    )
  from swift_jax.benchmark import report as benchmark_report

  old = None
  if _COMPARE.value:
    where = f'--compare={_COMPARE.value!r}'
    old = benchmark_report.read(_COMPARE.value, where)
  where = f'--output={_OUTPUT.value!r}'
  target = _OUTPUT.value and atomic.writable(_OUTPUT.value, where)
  set_apart(config)
  with contextlib.ExitStack() as stack:
    if target:
      stack.enter_context(atomic.locked(target, where, waits=False))
    return measure(config, sizes, target, where, old)


def measure(
  config: ConfigDict,
  sizes: Sizes,
  target: pathlib.Path | None,
  where: str,
  old: Mapping[str, Any] | None,
) -> int:
  """Measures, writes the report and prints it; returns the exit status.

  Args:
    target: file of the report; None: no file.
    where: the flag and file that errors name.
    old: a report to compare with.
  """
  from swift_jax.benchmark import report as benchmark_report

  started, status, tables = time.perf_counter(), 0, []
  if _SUITE.value == _ALL:
    figures, status = run_all()
    if status in _ENDED and not figures['suites']:
      return status  # the file, if there is one, stays as it is
  else:
    figures, tables = run_one(config, sizes)
  facts = {**environment(config), 'seconds': time.perf_counter() - started}
  # The comparison takes a report as it is read from a file: lists, not tuples.
  text = json.dumps({**facts, **figures}, indent=1, allow_nan=False)
  if target:  # written first: printing fails if nobody reads standard output
    atomic.replace(target, f'{text}\n', where)
    if status in _ENDED:
      say(f'{_OUTPUT.value} has {", ".join(figures["suites"])}')
  print_tables(tables)
  print_figures('summary', figures['summary'])
  if old:
    print_tables(benchmark_report.comparison(old, json.loads(text)))
  return status


def read_sizes() -> Sizes:
  """Reads the flags that say how much is measured.

  Raises:
    InputError: a value is wrong; the error names the flag and the value.
  """
  counts = _REPEATS, _PROMPTS, _NEW_TOKENS, _WEIGHTS_MIB, _WIDEN, _SEEDS
  for flag in counts:
    if flag.value < 1:
      raise InputError(f'--{flag.name}={flag.value}: expected >= 1')
  batches = _numbers(_BATCHES, 1)
  if not batches:
    raise InputError('--batches=: expected at least one')
  return Sizes(
    repeats=_REPEATS.value,
    prompts=_PROMPTS.value,
    new_tokens=_NEW_TOKENS.value,
    batches=batches,
    layers=_numbers(_LAYERS, 3),  # the first and the last are never skipped
    weights_mib=_WEIGHTS_MIB.value,
    seeds=_SEEDS.value,
    shape=_SHAPE.value,
    widen=_WIDEN.value,
    methods=_methods(),
    temperatures=_temperatures(),
  )


def _numbers(flag: flags.FlagHolder, least: int) -> list[int]:
  """A flag's list of whole numbers >= `least`."""
  numbers = [int(item) for item in flag.value if item.strip().isdecimal()]
  if len(numbers) < len(flag.value) or min(numbers, default=least) < least:
    given = ','.join(flag.value)
    raise InputError(
      f'--{flag.name}={given}: expected whole numbers >= {least}, as in 4,8'
    )
  return numbers


def _methods() -> list[str]:
  """The methods that were asked for, and plain decoding as their measure."""
  from swift_jax.benchmark.decode_runs import METHODS

  wanted = list(METHODS) if _METHODS.value is None else _METHODS.value
  if not set(wanted) <= set(METHODS):
    given, known = ','.join(wanted), ', '.join(METHODS)
    raise InputError(f'--methods={given}: expected some of {known}')
  return [name for name in METHODS if name == 'plain' or name in wanted]


def _temperatures() -> list[float]:
  try:
    found = [float(item) for item in _TEMPERATURES.value]
  except ValueError:
    found = []
  if not found or not all(0 <= value < 100 for value in found):
    given = ','.join(_TEMPERATURES.value)
    raise InputError(f'--temperatures={given}: expected numbers, as in 0,.6')
  return found


def set_apart(config: ConfigDict) -> None:
  """Takes files of skip sets out of the config: a found set would help the next run.

  Raises:
    InputError: a config field has a wrong value.
  """
  for name in common.SECTIONS:
    common.section(config, name)
  config.search.recipe = 'default'
  names = ['cache', 'save', 'record']
  if _SUITE.value == 'decode':
    names.remove('cache')  # it holds the set of the warm runs
  for name in names:
    config.search[name] = ''


def run_one(
  config: ConfigDict, sizes: Sizes
) -> tuple[dict[str, Any], Sequence[Table]]:
  """Runs one suite: its headline figures and all others, and its tables."""
  name = _SUITE.value
  try:
    with config.unlocked():
      outcome = SUITES[name](config, sizes)
  except KeyboardInterrupt as error:
    error.add_note(f'{name} is not finished, and of it nothing is written')
    raise
  figures = {
    'summary': outcome.summary,
    'spread': outcome.spread,
    'suites': {name: outcome.figures},
  }
  return figures, outcome.tables


def run_all() -> tuple[dict[str, Any], int]:
  """Runs every suite in a process of its own.

  So no suite finds another's compiled programs or memory.

  Returns:
    The figures, and the status of the last suite that failed, else 0.
  """
  from swift_jax.benchmark.suites import peers as peers_suite

  figures: dict[str, Any] = {'summary': {}, 'spread': {}, 'suites': {}}
  status = 0
  for number, name in enumerate(SUITES, 1):
    if name == 'peers' and not peers_suite.is_there():
      say('peers is left out: torch is not there (the extra parity)')
      continue
    say(f'suite {name}, {number} of {len(SUITES)}')
    found, code = run_child(name)
    for group in figures:
      figures[group].update(found.get(group, {}))
    status = code or status
    if code in (_BAD_INPUT, *_ENDED):
      break
  return figures, status


def run_child(name: str) -> tuple[dict[str, Any], int]:
  """Runs this command with one suite: the report that it writes, and its status."""
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder) / 'figures.json'
    command = [sys.executable, '-W', 'ignore', str(pathlib.Path(__file__))]
    own_flags = [f'--suite={name}', f'--output={output}', '--compare=']
    code = finish(subprocess.Popen([*command, *arguments(), *own_flags]))
    if not output.exists():  # the report is written whole or not at all
      return {}, code
    return json.loads(output.read_text(encoding='utf-8')), code


def finish(process: subprocess.Popen) -> int:
  """Waits for a child process and returns its status.

  Ctrl-C reaches the child too. A signal sent to this process alone is passed on.
  """
  try:
    code = process.wait()
  except KeyboardInterrupt as error:
    try:
      code = process.wait(_UNHEARD)
    except subprocess.TimeoutExpired:
      # The signal reached this process alone.
      process.send_signal(console.signal_of(error))
      code = process.wait()
  return 128 - code if code < 0 else code  # a shell's number for a signal


def arguments() -> Sequence[str]:
  """This command's arguments, without `--`: other arguments may be added."""
  return [argument for argument in sys.argv[1:] if argument != '--']


def environment(config: ConfigDict) -> dict[str, Any]:
  """The facts on which the figures depend: suite, config, machine and flags."""
  return {
    'suite': _SUITE.value,
    'config': config.to_dict(),
    **machine.environment(),
    'flags': list(arguments()),
  }


if __name__ == '__main__':
  common.run(main, torch=True)  # the suite peers needs torch
