"""Runs processes in which the benchmark measures.

The time of a start and the memory of a run can be measured only in a process of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError

_BAD_INPUT = 2  # a launcher's exit status for bad input


class Finished(NamedTuple):
  """A process that ended well.

  Attributes:
    first_line_s: seconds from its start to its first line.
    report: the JSON value of its last line.
  """

  first_line_s: float
  report: dict[str, Any]


def run(
  command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Finished:
  """Runs a process to its end.

  Args:
    command: the command and its arguments.
    environment: variables that are added to this process's environment.

  Raises:
    InputError: the process refused its input; the message is its last line.
    RuntimeError: the process failed.
  """
  started = time.perf_counter()
  # One reader reads standard output to its end: `communicate` does not see what
  # `readline` has buffered. Meanwhile a file takes standard error.
  with (
    tempfile.TemporaryFile('w+', errors='replace') as errors,
    subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
      env={**os.environ, **(environment or {})},
    ) as process,
  ):
    try:
      lines = [process.stdout.readline()]
      taken = time.perf_counter() - started
      lines += process.stdout.read().splitlines()
      process.wait()
    except KeyboardInterrupt:  # the signal may not have reached the process
      process.terminate()
      raise
    errors.seek(0)
    words = errors.read().strip()
  if process.returncode == _BAD_INPUT:
    raise InputError(words.rpartition('\n')[2])
  if process.returncode:
    raise RuntimeError(f'status {process.returncode} of {command}:\n{words}')
  return Finished(taken, json.loads(lines[-1]))


def write_model(folder: pathlib.Path, cfg: ModelConfig) -> None:
  """Writes a random model into a folder, see `random_model`."""
  fields = dataclasses.asdict(cfg)
  del fields['rope']  # it has its default value
  module = 'swift_jax.benchmark.random_model'
  command = [sys.executable, '-W', 'ignore', '-m', module, str(folder)]
  # An accelerator stays free for the process that is measured.
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  command.append(json.dumps(fields))
  subprocess.run(command, check=True, env=environment)


def backend() -> str:
  """The name of jax's backend, found without taking the device."""
  code = 'import jax, json; print(json.dumps(jax.default_backend()))'
  return run([sys.executable, '-W', 'ignore', '-c', code]).report
