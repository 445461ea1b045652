"""Reads Hugging Face's checkpoints into sharded arrays."""

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
from swift_jax.checkpoint import fitting, forms, hf_config, weight_files
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
    fit: how its first axis in the file becomes the model's.
  """

  path: forms.Path
  shape: tuple[int, ...]
  in_file: Sharding
  target: Sharding
  fit: fitting.Fit


@functools.cache  # a load calls it twice; for 16 layers a call takes 0.33 s
def flat_abstract(
  cfg: ModelConfig, platform: str
) -> tuple[llama.GraphDef, dict[Any, Any]]:
  """graphdef and shapes of the parameters by path, in the platform's form."""
  graphdef, abstract = llama.abstract_model(cfg, platform)
  return graphdef, traverse_util.flatten_dict(nnx.to_pure_dict(abstract))


def expected_weights(cfg: ModelConfig, mesh: Mesh | None) -> dict[str, Weight]:
  """The tensors that a checkpoint of this model must hold, by their names."""
  weights = {}
  _, flat = flat_abstract(cfg, sharding.platform(mesh))
  separate = jax.eval_shape(forms.split, traverse_util.unflatten_dict(flat))
  flat = traverse_util.flatten_dict(separate)
  targets = sharding.param_shardings(traverse_util.unflatten_dict(flat), mesh)
  for path, target in traverse_util.flatten_dict(targets).items():
    shape, in_file = flat[path].shape, target
    if weight_files.is_transposed(path):
      shape = shape[::-1]
      if isinstance(target, NamedSharding):
        in_file = NamedSharding(target.mesh, PartitionSpec(*target.spec[::-1]))
    fit = fitting.fit_of(cfg, path)
    if fit != fitting.Fit():
      shape = fit.length(shape[0]), *shape[1:]
      # This axis need not divide the mesh; the model's width most often does.
      parts = mesh.shape['tensor'] if mesh is not None else 1
      is_split = len(shape) > 1 and shape[1] % parts == 0
      spec = PartitionSpec(None, 'tensor') if is_split else PartitionSpec()
      in_file = sharding.place(mesh, spec)
    name = weight_files.hf_name(path)
    weights[name] = Weight(path, shape, in_file, target, fit)
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
  be transposed or put into a stack, and one layer's, to be fused.

  Args:
    folder: the folder with model.safetensors, or with shards and their index.
    cfg: the model, from `load_config`, and fitted to the mesh by
      `fitting.fitted`. In a tied model the embedding may stand under
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
  graphdef, flat = flat_abstract(cfg, sharding.platform(mesh))
  is_stacked = any(map(forms.is_stacked, flat))
  places = traverse_util.flatten_dict(
    sharding.param_shardings(traverse_util.unflatten_dict(flat), mesh)
  )
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
      fit, is_transposed = weights[name].fit, weight_files.is_transposed(path)
      if is_stacked:
        _put_in_stack(params, path, tensor, fit, flat, places)
      else:
        if is_transposed or fit != fitting.Fit():
          adapt = _adapt(weights[name].target, is_transposed, fit)
          tensor = adapt(tensor)
        params[path] = tensor
  params = traverse_util.unflatten_dict(params)
  if not is_stacked:
    fuse = _fuse(cfg, traverse_util.unflatten_dict(flat), mesh)
    for i in params['layers']:  # frees a layer's tensors before the next fuses
      params['layers'][i] = fuse(params['layers'][i])
  return graphdef, params


def _put_in_stack(
  params: dict[forms.Path, Array],
  path: forms.Path,
  tensor: Array,
  fit: fitting.Fit,
  shapes: Mapping[forms.Path, jax.ShapeDtypeStruct],
  places: Mapping[forms.Path, Sharding],
) -> None:
  """Puts a file's tensor into `params`, by the stack's paths.

  Args:
    path: its path among the separate parameters.
    shapes, places: of the stack's parameters.
  """
  into = forms.in_stack(path)
  if path[0] != 'layers':
    is_same = fit == fitting.Fit()
    adapt = _adapt(places[into], False, fit)
    params[into] = tensor if is_same else adapt(tensor)
    return
  if into not in params:
    shape = shapes[into]
    params[into] = _zeros(places[into])(shape.shape, shape.dtype)
  is_transposed = weight_files.is_transposed(path) and not forms.is_turned(path)
  insert = _insert(places[into], is_transposed, fit)
  params[into] = insert(params[into], tensor, path[1])


def _fuse(cfg: ModelConfig, abstract: Any, mesh: Mesh | None) -> Any:
  """The compiled program that fuses one layer's separate parameters."""
  places = sharding.param_shardings(abstract, mesh)['layers'][0]
  return jax.jit(functools.partial(forms.fuse, cfg=cfg), out_shardings=places)


@functools.cache
def _zeros(place: Sharding) -> Any:
  return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=place)


@functools.cache
def _insert(place: Sharding, is_transposed: bool, fit: fitting.Fit) -> Any:
  """The program that writes a layer's tensor into a stack, where that is."""

  def insert(stack: Array, tensor: Array, layer: Array) -> Array:
    tensor = fit.widen(tensor)
    tensor = tensor.T if is_transposed else tensor
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, layer, 0)

  return jax.jit(insert, donate_argnums=0, out_shardings=place)


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
def _adapt(target: Sharding, is_transposed: bool, fit: fitting.Fit) -> Any:
  """The program that makes a file's tensor the model's."""

  def adapt(tensor: Array) -> Array:
    tensor = fit.widen(tensor)
    return tensor.T if is_transposed else tensor

  return jax.jit(adapt, out_shardings=target)


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


def fingerprint(cfg: ModelConfig, params: Mapping[str, Any]) -> str:
  """A hash that ties a skip set to a model, whatever mesh it is loaded on.

  It covers the config, every parameter's name and shape, and each parameter's first
  numbers. So it costs one small transfer for a model of any size.

  Returns:
    16 hexadecimal digits.
  """
  place = getattr(jax.tree.leaves(params)[0], 'sharding', None)
  if isinstance(place, NamedSharding):
    place = NamedSharding(place.mesh, PartitionSpec())

  def sample(params: Any) -> Array:
    separate = traverse_util.flatten_dict(forms.split(params))
    rows = []
    for path in sorted(separate):
      row = separate[path][(0,) * (separate[path].ndim - 1)]
      if path[-1] != 'embedding':  # whose rows are not longer than in the file
        row = fitting.fit_of(cfg, path).narrow(row)
      rows.append(row)
    return jnp.concatenate([row[:16].astype(jnp.float32) for row in rows])

  numbers = jax.device_get(jax.jit(sample, out_shardings=place)(params))
  # By the paths of one form, whichever this one is: a set must fit on any device.
  shapes = flat_abstract(fitting.as_in_files(cfg), 'cpu')[1]
  shape = dataclasses.asdict(cfg)
  del shape['kv_copies'], shape['vocab_padding']
  if not cfg.weights:
    del shape[
      'weights'
    ]  # keeps the hash of sets saved before the field existed
  facts = [
    shape,
    [('.'.join(map(str, p)), shapes[p].shape) for p in sorted(shapes)],
  ]
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
  digest.update(numbers.tobytes())
  return digest.hexdigest()[:16]
