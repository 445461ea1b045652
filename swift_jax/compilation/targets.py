"""Devices that programs are compiled for, described and not there.

libtpu describes every TPU slice by its name. A GPU is described by a text that XLA
reads (its `GpuTargetConfigProto`), of which `gpus` has some and a file may have more.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

import jax

from swift_jax.compilation import gpus
from swift_jax.errors import InputError
from swift_jax.files import atomic

GIB = 2**30
_SLICE = re.compile(r'\d+x\d+(?:x\d+)?')
_MOST_DEVICES = 4096


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generation of TPUs.

  Attributes:
    memory: GiB that a program may use of a device's memory, as libtpu says in its
      refusal of a larger one.
    axes: numbers in a slice's name.
    bandwidth: GB a second that a chip reads from its memory.
    tflops: of a chip, with bfloat16 products.
    cores: devices of a chip.
  """

  memory: float
  axes: int
  bandwidth: float
  tflops: float
  cores: int = 1


# By libtpu's names. Bandwidth and products are those of Google's data sheets.
TPUS = {
  'v2': Generation(7.48, 2, 700, 46, cores=2),
  'v3': Generation(15.48, 2, 900, 123, cores=2),
  'v4': Generation(15.25, 3, 1228, 275, cores=2),
  'v5e': Generation(15.75, 2, 819, 197),
  'v5p': Generation(95.74, 3, 2765, 459),
  'v6e': Generation(31.25, 2, 1640, 918),
  'tpu7x': Generation(94.75, 3, 7380, 2307, cores=2),
}
# What libtpu asks a TPU's machine for. Nothing here has a chip.
_NO_CHIP = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  # Several processes may compile at once: none takes a chip.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Machine:
  """A target's devices.

  Attributes:
    name: as it was given.
    platform: `tpu`, `gpu` or `cpu`.
    devices: descriptions, of which programs can be compiled but not run.
    memory: bytes of a device's memory that programs may use.
    bandwidth: bytes a second that a device reads from it; None: not described.
    flops: products of bfloat16 numbers a second, twice; None: not described.
  """

  name: str
  platform: str
  devices: Sequence[Any]
  memory: int
  bandwidth: float | None = None
  flops: float | None = None

  @property
  def kind(self) -> str:
    """What the compiler calls a device."""
    kind: str = self.devices[0].device_kind
    return kind


def listed() -> list[str]:
  """A line for each target that has a name."""
  lines = []
  for name, tpu in TPUS.items():
    shape = 'x'.join('AB' if tpu.axes == 2 else 'ABC')
    note = '; a device is one of the two cores of a chip' * (tpu.cores > 1)
    lines.append(
      f'{f"{name}:{shape}":<11}  {tpu.memory:g} GiB a device, a slice of chips as'
      f' in {name}:{_smallest(tpu)}{note}'
    )
  for name, text in gpus.DESCRIPTIONS.items():
    gpu = gpus.read(text, name)
    lines.append(
      f'{f"{name}[:N]":<11}  {gpu.memory / GIB:.2f} GiB a device, N of'
      f' {gpu.title} on one host'
    )
  lines.append(
    "FILE[:N]     another GPU: FILE ends in .txtpb and holds XLA's"
    ' GpuTargetConfigProto as text'
  )
  lines.append('cpu          this machine; no speed is estimated')
  return lines


def _smallest(tpu: Generation) -> str:
  return '2x2' if tpu.axes == 2 else '2x2x1'


def find(name: str, flag: str = '--target') -> Machine:
  """The devices of a target.

  Args:
    name: see `listed`.
    flag: the flag that errors name.

  Raises:
    InputError: there is no such target, or the extra with its compiler is missing.
  """
  where = f'{flag}={name}'
  jax.config.update('jax_platforms', 'cpu')  # no device is started
  kind, _, size = name.partition(':')
  if name == 'cpu':
    return _this_machine()
  if kind in TPUS:
    return _tpu(name, kind, size, where)
  if kind in gpus.DESCRIPTIONS:
    return _gpu(name, gpus.DESCRIPTIONS[kind], size, where)
  file, colon, size = name.rpartition('.txtpb')
  if colon:
    text = atomic.read(f'{file}.txtpb', where).decode(errors='replace')
    return _gpu(name, text, size.removeprefix(':'), where)
  known = ', '.join([*TPUS, *gpus.DESCRIPTIONS, 'cpu'])
  raise InputError(
    f'{where}: no such target; expected one of {known}, with a size as in v5e:2x2'
    ' or h100:8; --target=list says more'
  )


def _this_machine() -> Machine:
  pages = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return Machine('cpu', 'cpu', jax.local_devices(backend='cpu'), pages)


def _tpu(name: str, kind: str, size: str, where: str) -> Machine:
  tpu = TPUS[kind]
  if not _SLICE.fullmatch(size) or size.count('x') + 1 != tpu.axes:
    raise InputError(
      f'{where}: expected a slice of chips, as in {kind}:{_smallest(tpu)}'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise InputError(
      f"{where}: libtpu, the TPU's compiler, is not installed: install the"
      ' [compile-tpu] extra of swift-jax'
    )
  sizes = [int(part) for part in size.split('x')]
  if not 0 < math.prod(sizes) <= _MOST_DEVICES:
    raise InputError(f'{where}: expected 1 to {_MOST_DEVICES} chips')
  os.environ.update(_NO_CHIP)
  from jax.experimental import topologies

  how = {}
  if math.prod(sizes) == 1:  # otherwise a host has four chips
    how['chips_per_host_bounds'] = (1, 1, 1)
  try:
    found = topologies.get_topology_desc(name, platform='tpu', **how)
  # libtpu's errors: a slice that there is not, a library that does not fit.
  except RuntimeError as error:
    raise InputError(f'{where}: {_line(error)}') from None
  return Machine(
    name,
    'tpu',
    found.devices,
    int(tpu.memory * GIB),
    tpu.bandwidth * 1e9 / tpu.cores,
    tpu.tflops * 1e12 / tpu.cores,
  )


def _gpu(name: str, text: str, size: str, where: str) -> Machine:
  gpu = gpus.read(text, where)
  if not (size or '1').isdecimal() or not 0 < int(size or 1) <= _MOST_DEVICES:
    raise InputError(f'{where}: expected a number of devices, as in h100:8')
  library = _cuda_plugin()
  if library is None:
    raise InputError(
      f"{where}: XLA's compiler for GPUs is not installed: install the"
      ' [compile-gpu] extra of swift-jax'
    )
  from jax.experimental import topologies

  jax.local_devices(backend='cpu')  # JAX registers the plug-ins that it finds
  try:
    found = topologies.get_topology_desc(
      gpu.title,
      platform='cuda',
      target_config=text,
      topology=f'1x1x{size or 1}',
    )
  except (RuntimeError, NotImplementedError) as error:
    raise InputError(f'{where}: {_line(error)}') from None
  return Machine(
    name, 'gpu', found.devices, gpu.memory, gpu.bandwidth, gpu.flops
  )


def _cuda_plugin() -> pathlib.Path | None:
  """The plug-in's library: it compiles without any other one of CUDA."""
  for version in ('13', '12'):
    name = f'jax_plugins.xla_cuda{version}'
    try:
      spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of jax_plugins
      return None
    if spec is not None and spec.origin:
      library = pathlib.Path(spec.origin).with_name('xla_cuda_plugin.so')
      return library if library.exists() else None
  return None


def _line(error: Exception) -> str:
  return f'{" ".join(str(error).split()):.300}'
