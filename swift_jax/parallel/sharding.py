"""The place of each array: a mesh of `data` x `tensor`, and specs by name.

Tensor parallelism after Megatron-LM (1909.08053): q, k, v, gate and up are
split on their output, o and down on their input, so that a sublayer needs one
all-reduce. Embedding and head are split on the vocabulary. The fused q, k, v are
split along their heads, and the fused gate, up along the MLP's width.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
import numpy as np

from swift_jax.config.settings import MeshConfig, ModelConfig
from swift_jax.errors import InputError
from swift_jax.model.kv_cache import AXES, KVCache

# For each module the split of its output axes.
_SPLIT_OUTPUT = {
  'qkv_proj': ('tensor', None, None),
  'gate_up_proj': (None, 'tensor'),
  **dict.fromkeys(
    ('q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj'), ('tensor',)
  ),
}
_SPLIT_INPUT = ('o_proj', 'down_proj')


def make_mesh(data: int, tensor: int, across_processes: bool = False) -> Mesh:
  """A mesh of the first data * tensor devices of this process.

  Args:
    data: parts into which the batch is split.
    tensor: parts into which each weight is split.
    across_processes: the mesh takes all devices of all processes instead.

  Raises:
    InputError: `data` or `tensor` is not positive, the mesh needs more devices than
      there are, or it leaves out devices of processes in step.
  """
  MeshConfig(data, tensor, across_processes)
  devices = jax.devices() if across_processes else jax.local_devices()
  wanted = data * tensor
  # A process without a device in the mesh would have nothing to do in step.
  if wanted > len(devices) or (across_processes and wanted < len(devices)):
    raise InputError(
      f'mesh.data={data}, mesh.tensor={tensor}: {wanted} devices wanted,'
      f' {len(devices)} found'
      f'{" in all processes" if across_processes else ""}'
    )
  return mesh_of(devices[:wanted], data, tensor)


def mesh_of(devices: Sequence[jax.Device], data: int, tensor: int) -> Mesh:
  """The mesh of data * tensor devices, which may be those of a description."""
  return jax.make_mesh(
    (data, tensor),
    AXES,
    # With Auto, GSPMD places the collectives; make_mesh's own default is Explicit.
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def platform(mesh: Mesh | None) -> str:
  """`cpu`, `gpu` or `tpu`: what the mesh's devices are; None: JAX's own."""
  if mesh is None:
    return jax.default_backend()
  name: str = mesh.devices.flat[0].platform
  return 'gpu' if name in ('cuda', 'rocm') else name


def check_mesh(cfg: ModelConfig, mesh: Mesh | None) -> None:
  """Refuses a mesh that does not divide the model; the error names every field."""
  if mesh is None:
    return
  if tuple(mesh.axis_names) != AXES:
    raise InputError(f'mesh axes {mesh.axis_names}: expected {AXES}')
  if any(kind != AxisType.Auto for kind in mesh.axis_types):
    raise InputError(
      f'mesh axis_types {mesh.axis_types}: expected Auto, as'
      ' sharding.make_mesh(data, tensor) has them'
    )
  parts = mesh.shape['tensor']
  held = {'num_key_value_heads': cfg.kv_heads, 'vocab_size': cfg.vocab_rows}
  odd = [
    f'{name}={getattr(cfg, name)}'
    for name in (
      'num_attention_heads',
      'num_key_value_heads',
      'intermediate_size',
      'vocab_size',
    )
    if held.get(name, getattr(cfg, name)) % parts
  ]
  if odd:
    raise InputError(f'mesh.tensor={parts} does not divide {", ".join(odd)}')


def spans_processes(mesh: Mesh | None) -> bool:
  """Whether the mesh has devices of several processes, which then go in step."""
  if mesh is None:
    return False
  return len({device.process_index for device in mesh.devices.flat}) > 1


def is_first(mesh: Mesh | None) -> bool:
  """Whether this process writes files and decides for the processes in step."""
  return not spans_processes(mesh) or jax.process_index() == 0


def agreed(value: bool, mesh: Mesh | None) -> bool:
  """The first process's decision.

  Processes in step need it where each would decide by its own clock.
  """
  if not spans_processes(mesh):
    return value
  from jax.experimental import multihost_utils

  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def put(tree: Any, mesh: Mesh | None, place: Sharding | None = None) -> Any:
  """Puts host arrays on the mesh; every process passes the same arrays.

  By default each device of the mesh gets whole arrays.
  """
  place = place or replicated(mesh)
  if not spans_processes(mesh):
    return jax.device_put(tree, place)

  def upload(value: Any) -> jax.Array:
    value = np.asarray(value)
    # device_put would compare the processes' arrays: one round trip for each.
    return jax.make_array_from_callback(value.shape, place, value.__getitem__)

  return jax.tree.map(upload, tree)


def get(tree: Any, mesh: Mesh | None) -> Any:
  """Brings arrays to the host; every process of the mesh gets whole arrays."""
  if spans_processes(mesh):
    tree = _gather(replicated(mesh))(tree)
  return jax.device_get(tree)


@functools.cache
def _gather(whole: Sharding) -> Any:
  return jax.jit(lambda tree: tree, out_shardings=whole)


def check_batch(batch_size: int, mesh: Mesh | None) -> None:
  """Refuses a batch that the mesh cannot split."""
  if mesh is not None and batch_size % mesh.shape['data']:
    raise InputError(
      f'decode.batch_size={batch_size}: expected a multiple of'
      f' mesh.data={mesh.shape["data"]}'
    )


def param_spec(path: tuple[str | int, ...]) -> PartitionSpec:
  """The split of the parameter at `path`, say (..., 'q_proj', 'kernel').

  Kernels are [in, *out], the embedding is [V, D]. In a stack of layers all
  arrays have L in front, and every kernel has the axis in the middle that is
  split, so that the last one, D, keeps its length: a TPU pads last axes to
  multiples of 128.
  """
  module, leaf = path[-2], path[-1]
  if path[0] == 'layers' and not isinstance(path[1], int):
    is_split = leaf == 'kernel' or module in _SPLIT_OUTPUT
    return PartitionSpec(None, 'tensor') if is_split else PartitionSpec()
  if leaf == 'embedding':
    return PartitionSpec('tensor', None)
  if module == 'lm_head':
    return PartitionSpec(None, 'tensor')
  if module in _SPLIT_OUTPUT:
    leading = (None,) if leaf == 'kernel' else ()
    return PartitionSpec(*leading, *_SPLIT_OUTPUT[module])
  if module in _SPLIT_INPUT and leaf == 'kernel':
    return PartitionSpec('tensor', None)
  return PartitionSpec()


def place(mesh: Mesh | None, spec: PartitionSpec) -> Sharding:
  """An array's place, split over the mesh by `spec`."""
  if mesh is None:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return NamedSharding(mesh, spec)


def replicated(mesh: Mesh | None) -> Sharding:
  """The sharding of arrays that are whole on every device of the mesh.

  Without a mesh it is the default device.
  """
  return place(mesh, PartitionSpec())


def rows(mesh: Mesh | None) -> Sharding:
  """The sharding of arrays whose first axis is the batch: split like the batch."""
  return place(mesh, PartitionSpec('data'))


def param_shardings(abstract_params: Any, mesh: Mesh | None) -> Any:
  """The tree of shardings for a nested dict of parameters, or of their shapes."""

  def sharding(path: tuple[Any, ...], _: Any) -> Sharding:
    return place(mesh, param_spec(tuple(entry.key for entry in path)))

  return jax.tree_util.tree_map_with_path(sharding, abstract_params)


def cache_shardings(mesh: Mesh | None, stacked: bool) -> KVCache:
  """Shardings of a cache, a prefix of its tree: k and v [B, K, S, H].

  Args:
    stacked: k and v are [L, B, K, S, H].
  """
  axes = (None,) * stacked + ('data', 'tensor')
  slots = place(mesh, PartitionSpec(*axes))
  return KVCache(k=slots, v=slots, length=rows(mesh), mesh=mesh)
