"""Descriptions of GPUs, as XLA's compiler takes them."""

from __future__ import annotations

import re
from typing import NamedTuple

from swift_jax.errors import InputError

# XLA's GpuTargetConfigProto as text. On a machine that has the device, this is the
# attribute `target_config` of the topology of its devices.
DESCRIPTIONS = {
  'h100': """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
""",
}
# Twice the products of bfloat16 numbers that a core's tensor units make a clock, by
# CUDA's compute capability; NVIDIA's data sheets.
_FLOPS_A_CLOCK = {'8.0': 2048, '9.0': 4096}


_FIELD = re.compile(r'(\w+): *"?([^"\n{}]+?)"?(?=\s*(?:\w+ *[:{]|[}\n]|$))')


class Gpu(NamedTuple):
  """What a description says.

  Attributes:
    title: the device's name.
    memory: bytes.
    bandwidth: bytes a second.
    flops: a second, of bfloat16 products; None where it is not known.
  """

  title: str
  memory: int
  bandwidth: float
  flops: float | None


def read(text: str, where: str) -> Gpu:
  """Reads a description.

  Args:
    where: what errors name.

  Raises:
    InputError: a field that is needed is missing.
  """
  fields = dict(_FIELD.findall(text))
  needed = 'device_memory_size', 'memory_bandwidth', 'core_count'
  for name in needed:
    if not fields.get(name, '').isdecimal():
      raise InputError(f'{where}: the description of a GPU has no {name}')
  memory, bandwidth, cores = (int(fields[name]) for name in needed)
  found = re.search(
    r'cuda_compute_capability\s*\{\s*major: (\d+)(?:\s+minor: (\d+))?', text
  )
  version = f'{found[1]}.{found[2] or 0}' if found else ''
  flops = None
  if version in _FLOPS_A_CLOCK and 'clock_rate_ghz' in fields:
    clock = float(fields['clock_rate_ghz']) * 1e9
    flops = cores * clock * _FLOPS_A_CLOCK[version]
  title = fields.get('device_description_str', where)
  return Gpu(title, memory, float(bandwidth), flops)
