"""Facts of the machine for reports, and the message when its memory is too small."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

from ml_collections import ConfigDict

# A run's memory grows with these settings, apart from the model.
_MEMORY_SETTINGS = (
  ('decode', 'batch_size'),
  ('sampling', 'max_new_tokens'),
  ('decode', 'prefill_chunk'),
  ('search', 'num_candidates'),
  ('train', 'batch_size'),
  ('train', 'seq_len'),
)


def environment() -> dict[str, Any]:
  """Facts on which figures depend, apart from the config: versions and devices."""
  import jax

  packages = ('swift-jax', 'jax', 'flax', 'gpjax', 'transformers')
  found = {name: _version(name) for name in packages}
  return {
    'versions': {**found, 'python': platform.python_version()},
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'cpus': os.cpu_count(),
    'commit': _commit(),
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit() -> str | None:
  """The commit that is checked out; None outside a repository."""
  root = pathlib.Path(__file__).resolve().parent
  command = ['git', '-C', str(root), 'describe', '--always', '--dirty']
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def out_of_memory(config: ConfigDict, error: Exception) -> str:
  """The message of an error: which of the config's settings to lower."""
  sizes = {
    f'{name}.{field}': config[name][field]
    for name, field in _MEMORY_SETTINGS
    if name in config
  }
  advice = ', '.join(f'{path}={value}' for path, value in sizes.items())
  smaller = ''
  if 'mesh' in config:
    smaller = (
      ', or have smaller weights (--config.model.dtype=bfloat16,'
      ' --config.model.weights=int8) or more devices (--config.mesh.tensor)'
    )
  reason = str(error).partition('\n')[0]
  return f'out of memory: lower {advice}{smaller}: {reason}'
