"""Reads Hugging Face's checkpoints into sharded arrays; reads and writes Orbax's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import re
from typing import Any, NamedTuple
import uuid

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from orbax.checkpoint.experimental import v1 as ocp

from swift_jax import progress
from swift_jax.checkpoint import fused, hf_config, weight_files
from swift_jax.checkpoint.hf_config import one_line
from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError
from swift_jax.model import llama
from swift_jax.parallel import sharding
from swift_jax.typing import Array

_LOGGER = logging.getLogger('swift_jax')
# Buffers that old transformers versions saved; they follow from the config.
_IGNORED = re.compile(r'.*\.rotary_emb\.inv_freq')


class Weight(NamedTuple):
  """A parameter's form in a Hugging Face file, and its place in the model.

  Attributes:
    path: its path in the tree of separate parameters.
    shape, in_file: its shape and its sharding in the file's axis order.
    target: its sharding in the model.
  """

  path: fused.Path
  shape: tuple[int, ...]
  in_file: Sharding
  target: Sharding


@functools.cache  # a load calls it twice; for 16 layers a call takes 0.33 s
def _flat_abstract(cfg: ModelConfig) -> tuple[llama.GraphDef, dict[Any, Any]]:
  graphdef, abstract = llama.abstract_model(cfg)
  return graphdef, traverse_util.flatten_dict(nnx.to_pure_dict(abstract))


def expected_weights(cfg: ModelConfig, mesh: Mesh | None) -> dict[str, Weight]:
  """The tensors that a checkpoint of this model must hold, by their names."""
  weights = {}
  _, flat = _flat_abstract(cfg)
  separate = jax.eval_shape(fused.split, traverse_util.unflatten_dict(flat))
  flat = traverse_util.flatten_dict(separate)
  targets = sharding.param_shardings(traverse_util.unflatten_dict(flat), mesh)
  for path, target in traverse_util.flatten_dict(targets).items():
    shape, in_file = flat[path].shape, target
    if weight_files.is_transposed(path):
      shape = shape[::-1]
      if isinstance(target, NamedSharding):
        in_file = NamedSharding(target.mesh, PartitionSpec(*target.spec[::-1]))
    weights[weight_files.hf_name(path)] = Weight(path, shape, in_file, target)
  return weights


def load_config(
  folder: pathlib.Path,
  dtype: str | None = None,
  remark: Callable[[str], object] = _LOGGER.warning,
) -> ModelConfig:
  """The shape of the model in `folder`, as transformers would load it.

  It is the shape that config.json gives, with one exception. If the files have a
  head that differs from the embedding, the two are not tied, even if config.json
  says so.

  Args:
    folder: the folder with config.json. If config.json ties head and embedding, and
      the files have both, they are read up to their first difference.
    dtype: bfloat16, float16 or float32; None: config.json's dtype, or float32 if
      config.json has none.
    remark: called with a line if the files untie head and embedding.

  Raises:
    InputError: names the file or argument, the field and its value.
  """
  folder = pathlib.Path(folder)
  cfg = hf_config.read_config(folder, dtype)
  if not cfg.tie_word_embeddings or not weight_files.has_own_head(folder):
    return cfg
  remark(
    f'{folder}: config.json has tie_word_embeddings=true, but'
    f' {weight_files.HEAD} differs from {weight_files.EMBEDDING}: they are not'
    ' tied'
  )
  return dataclasses.replace(cfg, tie_word_embeddings=False)


def load_params(
  folder: pathlib.Path, cfg: ModelConfig, mesh: Mesh | None = None
) -> tuple[llama.GraphDef, dict[str, Any]]:
  """Reads safetensors straight into (sharded) arrays of `cfg.dtype`.

  Each process reads only the bytes that its devices hold. Files are read one after
  another. So besides the parameters the devices hold only one file's tensors, to
  be transposed, and one layer's, to be fused.

  Args:
    folder: the folder with model.safetensors, or with shards and their index.
    cfg: the model, from `load_config`. In a tied model the embedding may stand under
      the head's name alone.
    mesh: the devices; None: the default device.

  Returns:
    graphdef and parameters as a nested dict; `nnx.merge` takes them.

  Raises:
    InputError: tensors are missing, unexpected or of a wrong shape or dtype (the
      error names the first of each kind), or a file cannot be read.
  """
  sharding.check_mesh(cfg, mesh)
  folder = pathlib.Path(folder)
  weights = expected_weights(cfg, mesh)
  infos = weight_files.read_headers(folder, cfg.tie_word_embeddings)
  _compare(folder, weights, infos)
  by_file: dict[pathlib.Path, list[str]] = {}
  for name in sorted(weights):
    by_file.setdefault(infos[name].file, []).append(name)
  params = {}
  context = ocp.Context()
  _choose_processes(context, mesh)
  context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
  files = progress.bar(
    by_file.items(), unit='file', leave=False, disable=len(by_file) == 1
  )
  for file, names in files:
    abstract = {
      infos[name].name: jax.ShapeDtypeStruct(
        weights[name].shape, cfg.jax_dtype, sharding=weights[name].in_file
      )
      for name in names
    }
    with context:
      tensors = ocp.load(file.absolute(), abstract)
    for name in names:
      path, tensor = weights[name].path, tensors.pop(infos[name].name)
      if weight_files.is_transposed(path):
        tensor = _transpose(weights[name].target)(tensor)
      params[path] = tensor
  graphdef, flat = _flat_abstract(cfg)
  params = traverse_util.unflatten_dict(params)
  fuse = _fuse(cfg, traverse_util.unflatten_dict(flat), mesh)
  for i in params['layers']:  # frees a layer's tensors before it fuses the next
    params['layers'][i] = fuse(params['layers'][i])
  return graphdef, params


def _fuse(cfg: ModelConfig, abstract: Any, mesh: Mesh | None) -> Any:
  """The compiled program that fuses one layer's separate parameters."""
  places = sharding.param_shardings(abstract, mesh)['layers'][0]
  return jax.jit(functools.partial(fused.fuse, cfg=cfg), out_shardings=places)


def _choose_processes(context: ocp.Context, mesh: Mesh | None) -> None:
  """Makes Orbax wait for the mesh's processes alone, not for all processes."""
  if sharding.spans_processes(mesh):
    return
  options = context.multiprocessing
  options.primary_host = jax.process_index()
  options.active_processes = {jax.process_index()}
  # A process that is started again must not meet barriers of its earlier start.
  options.barrier_sync_key_prefix = uuid.uuid4().hex


@functools.cache
def _transpose(target: Sharding) -> Any:
  return jax.jit(jnp.transpose, out_shardings=target)


def _compare(
  folder: pathlib.Path,
  weights: Mapping[str, Weight],
  infos: Mapping[str, weight_files.TensorInfo],
) -> None:
  """Refuses tensors that do not fit the model, all of them in one line."""
  missing, shapes, dtypes = [], [], []
  for name, weight in weights.items():
    if name not in infos:
      missing.append(f'missing {name} {list(weight.shape)}')
    elif infos[name].shape != weight.shape:
      found = list(infos[name].shape)
      shapes.append(f'{name}: expected {list(weight.shape)}, found {found}')
    elif infos[name].dtype not in weight_files.FLOATS:
      dtypes.append(
        f'{name}: dtype {infos[name].dtype}, expected one of'
        f' {", ".join(weight_files.FLOATS)}'
      )
  unexpected = [
    f'unexpected {name} {list(infos[name].shape)}'
    for name in sorted(infos.keys() - weights.keys())
    if not _IGNORED.fullmatch(name)
  ]
  odd = {
    'missing': missing,
    'of another shape': shapes,
    'of another dtype': dtypes,
    'unexpected': unexpected,
  }
  count = sum(map(len, odd.values()))
  if not count:
    return
  if missing:
    _refuse_prefix(folder, weights, infos)
  lines = [weight_files.the_first(odd[kind], kind) for kind in odd if odd[kind]]
  raise InputError(
    f'{folder}: {count} tensors do not fit config.json: {"; ".join(lines)}'
  )


def _refuse_prefix(
  folder: pathlib.Path, weights: Collection[str], found: Collection[str]
) -> None:
  """Refuses names that would be right but for their prefix."""
  split = [name.split('.') for name in found]
  places = {
    tuple(parts[: parts.index('layers')])
    for parts in split
    if 'layers' in parts
  }
  if len(places) != 1 or places == {('model',)}:
    return
  (place,) = places
  wanted = '' if place[-1:] == ('model',) else 'model.'
  prefix = '.'.join([*(place if wanted else place[:-1]), ''])
  right = [n for n in found if wanted + n.removeprefix(prefix) in weights]
  # An adapter's tensors have other names: it is refused even if most names differ.
  if 2 * len(right) < len(found) and place[:1] != ('base_model',):
    return
  begin = [n for n in found if n.startswith(prefix) and n not in weights]
  share = 'all' if len(begin) == len(found) else f'{len(begin)} of'
  problem = f'begin with {prefix!r} before the names that are expected'
  if wanted:
    problem = f'begin with {prefix!r} where {wanted!r} is expected'
  advice = (
    'save the model without it (merge the adapter, or take torch.compile or'
    ' another wrapper off)'
  )
  if not prefix:
    problem = f'lack {wanted!r} before their names'
    advice = 'save the LlamaForCausalLM, not the LlamaModel in it'
  raise InputError(
    f'{folder}: {share} {len(found)} tensors {problem}: {advice}'
  )


def save_params(directory: pathlib.Path, params: Mapping[str, Any]) -> None:
  """Saves parameters as an Orbax checkpoint, which appears only when complete.

  Raises:
    InputError: `directory` exists or cannot be written.
  """
  directory = pathlib.Path(directory).absolute()
  if directory.exists():
    raise InputError(f'{directory}: exists already')
  try:
    ocp.save(directory, params)
  except (OSError, ValueError) as error:  # Orbax's storage raises ValueErrors
    raise InputError(f'{directory}: {one_line(error)}') from error


def restore_params(
  directory: pathlib.Path, cfg: ModelConfig, mesh: Mesh | None = None
) -> tuple[llama.GraphDef, dict[str, Any]]:
  """Restores parameters that `save_params` saved, into the shardings of this mesh.

  Returns:
    As `load_params`.

  Raises:
    InputError: there is no checkpoint, or its parameters do not fit `cfg`; the
      error names the first ones.
  """
  sharding.check_mesh(cfg, mesh)
  directory = pathlib.Path(directory).absolute()
  graphdef, flat = _flat_abstract(cfg)
  try:
    saved = ocp.metadata(directory).metadata
  except (ValueError, OSError) as error:
    raise InputError(
      f'{directory}: not an Orbax checkpoint: {one_line(error)}'
    ) from error
  found = {
    '/'.join(path): tuple(leaf.shape)
    for path, leaf in traverse_util.flatten_dict(saved).items()
  }
  expected = {'/'.join(map(str, p)): leaf.shape for p, leaf in flat.items()}
  odd = [
    f'{name}: expected {expected.get(name)}, found {found.get(name)}'
    for name in sorted(expected.keys() | found.keys())
    if expected.get(name) != found.get(name)
  ]
  if odd:
    raise InputError(
      f'{directory}: {len(odd)} parameters do not fit the model:'
      f' {weight_files.the_first(odd)}'
    )
  abstract = traverse_util.unflatten_dict(flat)
  abstract = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    abstract,
    sharding.param_shardings(abstract, mesh),
  )
  return graphdef, ocp.load(directory, abstract)


def fingerprint(cfg: ModelConfig, params: Mapping[str, Any]) -> str:
  """A hash that ties a skip set to a model, whatever mesh it is loaded on.

  It covers the config, every parameter's name and shape, and each parameter's first
  numbers. So it costs one small transfer for a model of any size.

  Returns:
    16 hexadecimal digits.
  """
  flat = traverse_util.flatten_dict(params)
  paths = sorted(flat)
  place = getattr(flat[paths[0]], 'sharding', None)
  if isinstance(place, NamedSharding):
    place = NamedSharding(place.mesh, PartitionSpec())

  def sample(params: Any) -> Array:
    separate = traverse_util.flatten_dict(fused.split(params))
    leaves = [separate[path] for path in sorted(separate)]
    rows = [leaf[(0,) * (leaf.ndim - 1)] for leaf in leaves]
    return jnp.concatenate([row[:16].astype(jnp.float32) for row in rows])

  numbers = jax.device_get(jax.jit(sample, out_shardings=place)(params))
  shape = dataclasses.asdict(cfg)
  if not cfg.weights:
    del shape[
      'weights'
    ]  # keeps the hash of sets saved before the field existed
  facts = [
    shape,
    [('.'.join(map(str, path)), flat[path].shape) for path in paths],
  ]
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  digest.update(numbers.tobytes())
  return digest.hexdigest()[:16]
