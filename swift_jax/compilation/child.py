"""Compiles in a process of its own, since a compiler may end the process it runs in.

  python -m swift_jax.compilation.child NAME ... < RUN > RESULTS

Run and results are pickles. A compiler's crash costs one program: the next process
goes on behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from swift_jax.compilation import estimate, measure, targets
from swift_jax.compilation.measure import Compiled
from swift_jax.compilation.programs import Run, Shapes

COSTS = 'costs'  # the name under which `estimate.costs` comes
_COMMAND = ('-m', 'swift_jax.compilation.child')
_LAST = 2000  # characters of a process's complaint


def results(run: Run, names: Sequence[str]) -> Iterator[Compiled | Any]:
  """What becomes of each program, in the order of `names`, as it is there.

  `COSTS` gives the result of `estimate.costs`; none where the compiler crashes.

  Raises:
    RuntimeError: a process ends with an error that is not the compiler's.
  """
  left = list(names)
  while left:
    started = time.perf_counter()
    with _started(run, left) as (process, said):
      for found in _loaded(process):
        left.pop(0)
        yield found
        started = time.perf_counter()
      status, complaint = process.wait(), said()
    if not left:
      return
    if status >= 0:
      raise RuntimeError(f'{left[0]}: status {status}: {complaint[-_LAST:]}')
    seconds = time.perf_counter() - started
    name = left.pop(0)
    crashed = Compiled(name, seconds, refused=_reason(complaint, -status))
    yield {} if name == COSTS else crashed


@contextlib.contextmanager
def _started(run: Run, names: Sequence[str]) -> Iterator[Any]:
  """A process that compiles, and a function that gives what it complains of."""
  # Descriptions of devices cannot be sent: the other process finds its own.
  machine = dataclasses.replace(run.machine, devices=())
  job = pickle.dumps(dataclasses.replace(run, machine=machine))
  command = [sys.executable, *_COMMAND, *names]
  with tempfile.TemporaryFile() as errors:
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )

    def said() -> str:
      errors.seek(0)
      return errors.read().decode(errors='replace')

    try:
      # Where it has ended already, `said` says why.
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job)
        process.stdin.close()
      yield process, said
    finally:
      process.kill()
      process.wait()
      process.stdout.close()


def _loaded(process: subprocess.Popen[bytes]) -> Iterator[Any]:
  while True:
    try:
      yield pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
      return


def _reason(said: str, signal: int) -> str:
  """The compiler's last words."""
  found = re.search(r'^F\d+ .*?\] (.*)$', said, re.M)
  words = found[1] if found else f'signal {signal}'
  return f'the compiler crashes: {words:.200}'


def main() -> None:
  """Reads a run, and writes a pickle for each name that is an argument."""
  results_to = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what a library prints is no result
  run, names = pickle.load(sys.stdin.buffer), sys.argv[1:]
  # What another run has compiled would take no time.
  jax.config.update('jax_enable_compilation_cache', False)
  machine = targets.find(run.machine.name)
  shapes = Shapes(dataclasses.replace(run, machine=machine))
  programs = {program.name: program for program in shapes.programs()}
  for name in names:
    if name == COSTS:
      found = estimate.costs(shapes)
    else:
      found = measure.compiled(programs[name])
    pickle.dump(found, results_to)
    results_to.flush()


if __name__ == '__main__':
  main()
