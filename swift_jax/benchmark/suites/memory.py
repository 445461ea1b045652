"""Peak memory compared with the memory that a run must have: weights and cache.

On an accelerator it is the device's peak with the configured model. On a CPU it is
the growth of a process's resident memory from before the engine is loaded. There the
model is random, and so large that programs and libraries are small beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import pathlib
import resource
import sys
import tempfile
from typing import Any

import jax

from swift_jax.benchmark import children, random_model
from swift_jax.benchmark.measuring import tree_bytes
from swift_jax.benchmark.report import Outcome, Table
from swift_jax.benchmark.suites.passes import Passes
from swift_jax.runtime.engine import Engine

_STATUS = pathlib.Path('/proc/self/status')
_WIDTHS = (1, 8, 32)
_SHOWN = 8  # programs in the table

# Returns a command that measures (see `measure`) the model at a path (None: the
# configured model) and prints the figures as its last line.
Command = Callable[[str | None], Sequence[str]]


def memory(
  command: Command, weights_mib: int, progress: Callable[[str], None]
) -> Outcome:
  """The suite `memory`.

  Args:
    command: see `Command`.
    weights_mib: size of the random model on a CPU, in MiB.
    progress: called with a line at each step.
  """
  if children.backend() != 'cpu':
    progress('a run of the configured model')
    return outcome(children.run(command(None)).report)
  with tempfile.TemporaryDirectory() as folder:
    progress(f'a random model of {weights_mib} MiB')
    path = pathlib.Path(folder) / 'model'
    children.write_model(path, random_model.heavy(weights_mib * 2**20))
    progress('a run of it')
    return outcome(children.run(command(str(path))).report)


def outcome(found: dict[str, Any]) -> Outcome:
  """Summary, figures and tables, from the result of `measure`."""
  needed = found['weight_bytes'] + found['cache_bytes']
  device = found['device_peak_bytes']
  grown = found['resident_peak_bytes'] - found['resident_before_bytes']
  peak = grown if device is None else device
  share = peak / needed
  names = ('weight_bytes', 'cache_bytes')
  rows = [[name, found[name] / 2**20] for name in names]
  rows += [['peak_bytes', peak / 2**20], ['peak / (weights + cache)', share]]
  programs = [
    [name, size / 2**20] for name, size in found['temporary_bytes'].items()
  ]
  passes = [
    [f'{width} tokens', size / 2**20]
    for width, size in found['pass_temporary_bytes'].items()
  ]
  return Outcome(
    {'peak_over_weights_and_cache': share},
    {'peak_bytes': peak, **found},
    [
      Table('memory', ['', 'MiB or ratio'], rows),
      Table('temporaries of a pass', ['', 'MiB'], passes),
      Table('temporaries, largest programs', ['', 'MiB'], programs[:_SHOWN]),
    ],
  )


def measure(
  load: Callable[[], Engine],
  write: Callable[[Engine], None],
  widths: Sequence[int] = _WIDTHS,
) -> dict[str, Any]:
  """The peak of this process when it loads an engine and writes.

  Args:
    load: loads the engine.
    write: writes with the engine; all that is measured happens here, the search too.
    widths: token counts of passes whose temporary memory is reported.
  """
  jax.block_until_ready(
    jax.numpy.zeros(1)
  )  # starts the backend before measuring
  before = _resident('VmRSS')
  engine = load()
  write(engine)
  peak = _resident('VmHWM')
  model = engine.model
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  cfg = model.cfg
  slot = 2 * cfg.num_hidden_layers * cfg.kv_heads * cfg.head_dim
  on_one = _share_on_one_device(model.params)
  found = {
    'platform': device.platform,
    'weight_bytes': on_one,
    'cache_bytes': model.capacity * slot * cfg.jax_dtype.itemsize,
    'resident_before_bytes': before,
    'resident_peak_bytes': peak,
    'device_peak_bytes': stats.get('peak_bytes_in_use'),
    'temporary_bytes': temporary_bytes(device),
  }
  passes = Passes(model, filled=1, widest=max(widths))
  of_passes = {str(t): passes.temporary_bytes(t) for t in widths}
  return {**found, 'pass_temporary_bytes': of_passes}


def _share_on_one_device(params: Any) -> int:
  leaves = jax.tree.leaves(params)
  return tree_bytes([leaf.addressable_shards[0].data for leaf in leaves])


def temporary_bytes(device: jax.Device) -> dict[str, int]:
  """Temporary bytes of each program of this process, besides arguments and results.

  The largest comes first. Of programs with the same name the largest counts.
  """
  sizes: dict[str, int] = {}
  for program in device.client.live_executables():
    name = program.hlo_modules()[0].name
    size = program.get_compiled_memory_stats().temp_size_in_bytes
    sizes[name] = max(size, sizes.get(name, 0))
  return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _resident(name: str) -> int:
  """Resident bytes under a name of the kernel's status of this process.

  Without such a status it is the peak so far from `getrusage`. On Linux that peak is
  of no use, since a process inherits its parent's.
  """
  if not _STATUS.exists():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak
  for line in _STATUS.read_text().splitlines():
    if line.startswith(f'{name}:'):
      return 1024 * int(line.split()[1])
  return 0
