"""Processes of their own: what a start costs and how much memory a run takes can
be measured only there."""

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

_BAD_INPUT = 2  # the status of a launcher


class Finished(NamedTuple):
  """A process that ended well.

  Attributes:
    first_line_s: from its start to its first line, seconds.
    said: the JSON of its last line.
  """

  first_line_s: float
  said: dict[str, Any]


def run(
  command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Finished:
  """Runs a process to its end, with `environment` over this one's.

  Raises:
    InputError: it refused what it was given; with its last line.
    RuntimeError: it broke.
  """
  started = time.perf_counter()
  # Read to its end by one reader: `communicate` does not see what `readline` has
  # buffered. A file takes what is said meanwhile.
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
    except KeyboardInterrupt:  # of which it need not have been told
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
  """A random model, see `random_model`."""
  fields = dataclasses.asdict(cfg)
  del fields['rope']  # the default
  module = 'swift_jax.benchmark.random_model'
  command = [sys.executable, '-W', 'ignore', '-m', module, str(folder)]
  # Whatever the accelerator is, the process that is measured needs it.
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  command.append(json.dumps(fields))
  subprocess.run(command, check=True, env=environment)


def backend() -> str:
  """What jax runs on, without taking it."""
  code = 'import jax, json; print(json.dumps(jax.default_backend()))'
  return run([sys.executable, '-W', 'ignore', '-c', code]).said
