"""Writes parameters as Orbax checkpoints, and reads them into sharded arrays."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
from typing import Any

from flax import traverse_util
import jax
from jax.sharding import Mesh
from orbax.checkpoint.experimental import v1 as ocp

from swift_jax.checkpoint import forms, load, weight_files
from swift_jax.checkpoint.hf_config import one_line
from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError
from swift_jax.model import llama
from swift_jax.parallel import sharding


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

  They may have been saved in the form of another kind of device. Then they are
  needed twice for a moment. Those of a model that was fitted to a mesh
  (`fitting.fitted`) are read only for a mesh that it fits in the same way.

  Returns:
    As `load_params`.

  Raises:
    InputError: there is no checkpoint, or its parameters do not fit `cfg`; the
      error names the first ones.
  """
  sharding.check_mesh(cfg, mesh)
  directory = pathlib.Path(directory).absolute()
  platform = sharding.platform(mesh)
  graphdef, wanted = load.flat_abstract(cfg, platform)
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
  is_stack = any(name.startswith('layers/mlp/') for name in found)
  _, flat = load.flat_abstract(cfg, 'tpu' if is_stack else 'cpu')
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
  params = ocp.load(directory, abstract)
  if flat.keys() != wanted.keys():
    params = _converted(cfg, platform, wanted, mesh)(params)
  return graphdef, params


def _converted(
  cfg: ModelConfig, platform: str, wanted: Mapping[forms.Path, Any], mesh: Any
) -> Any:
  """The program that gives parameters of any form the platform's form."""
  wanted = traverse_util.unflatten_dict(wanted)
  return jax.jit(
    lambda params: forms.join(forms.split(params), cfg, platform),
    out_shardings=sharding.param_shardings(wanted, mesh),
  )
