"""Writes parameters into a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from swift_jax.checkpoint import fitting, forms, hf_config, weight_files
from swift_jax.checkpoint.forms import Path
from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError
from swift_jax.typing import Array

_SPECIAL_TOKENS = ('bos_token_id', 'eos_token_id', 'pad_token_id')


def export_hf(
  folder: pathlib.Path,
  cfg: ModelConfig,
  params: Mapping[str, Any],
  tokenizer: Any = None,
  generation_config: Mapping[str, Any] | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes a `LlamaForCausalLM` that transformers and `load_params` read.

  All files are written beside `folder` first and then moved, so no file is ever
  half-written. In a folder that exists, old weights are removed and other files
  stay.

  Args:
    folder: the folder to write.
    cfg: the model; weights are written in its dtype.
    params: nested dict of parameters.
    tokenizer: a transformers tokenizer to save with the model.
    generation_config: fields of generation_config.json.
    max_shard_bytes: weights above this size are split over several files.

  Raises:
    InputError: the folder cannot be written, or transformers' LlamaConfig cannot
      express `cfg`.
  """
  if cfg.weights:
    raise InputError(
      f'{folder}: weights={cfg.weights!r} are not what transformers reads'
    )
  folder = pathlib.Path(folder).absolute()
  held, cfg = cfg, fitting.as_in_files(cfg)
  special = {
    name: getattr(tokenizer, name, None) for name in _SPECIAL_TOKENS
  } | dict(generation_config or {})
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=folder.parent, prefix=f'.{folder.name}.'
    ) as name:
      made = pathlib.Path(name) / 'made'
      made.mkdir()
      _write_json(made / 'config.json', hf_config.to_dict(cfg, special))
      _check_config(made, cfg)
      if generation_config is not None:
        _write_json(made / 'generation_config.json', dict(generation_config))
      if tokenizer is not None:
        tokenizer.save_pretrained(str(made))
      _write_weights(made, held, params, max_shard_bytes)
      _move(made, folder)
  except OSError as error:
    raise InputError(
      f'{folder}: cannot be written: {hf_config.one_line(error)}'
    ) from error


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def _check_config(made: pathlib.Path, cfg: ModelConfig) -> None:
  """Refuses a model whose written config.json does not read back as `cfg`."""
  back = hf_config.read_config(made)
  if back == cfg:
    return
  wanted, found = dataclasses.asdict(cfg), dataclasses.asdict(back)
  wanted |= {f'rope.{k}': v for k, v in wanted.pop('rope').items()}
  found |= {f'rope.{k}': v for k, v in found.pop('rope').items()}
  odd = [k for k in wanted if wanted[k] != found[k]]
  raise InputError(
    f'{", ".join(f"{k}={wanted[k]!r}" for k in odd)}: a Hugging Face config of'
    f' rope_type {cfg.rope.rope_type} cannot say so'
  )


def _write_weights(
  made: pathlib.Path,
  cfg: ModelConfig,
  params: Mapping[str, Any],
  max_shard_bytes: int,
) -> None:
  """Writes one file at a time, so that the host holds only one shard's tensors."""
  from safetensors.numpy import save_file

  flat = traverse_util.flatten_dict(params)
  shapes = traverse_util.flatten_dict(jax.eval_shape(forms.split, params))
  sizes = {p: s.size * cfg.jax_dtype.itemsize for p, s in shapes.items()}
  shards = list(_shards(sizes, max_shard_bytes))
  weight_map, written = {}, 0
  for i, paths in enumerate(shards, 1):
    file = weight_files.SINGLE
    if len(shards) > 1:
      file = f'model-{i:05}-of-{len(shards):05}.safetensors'
    tensors = {
      weight_files.hf_name(path): _to_host(flat, path, cfg) for path in paths
    }
    # transformers refuses files without this field.
    save_file(tensors, made / file, metadata={'format': 'pt'})
    _let_others_read(made / file)
    written += sum(tensor.nbytes for tensor in tensors.values())
    weight_map |= dict.fromkeys(tensors, file)
  if len(shards) > 1:
    index = {'metadata': {'total_size': written}, 'weight_map': weight_map}
    _write_json(made / weight_files.INDEX, index)


def _shards(sizes: Mapping[Path, int], max_bytes: int) -> Iterator[list[Path]]:
  """For each file its paths; a tensor above the limit has a file to itself."""
  paths: list[Path] = []
  filled = 0
  for path, size in sorted(sizes.items()):
    if paths and filled + size > max_bytes:
      yield paths
      paths, filled = [], 0
    paths.append(path)
    filled += size
  yield paths


def _to_host(
  flat: Mapping[Path, Array], path: Path, cfg: ModelConfig
) -> np.ndarray:
  tensor = jax.device_get(forms.separate(flat, path)).astype(cfg.jax_dtype)
  if weight_files.is_transposed(path):
    tensor = tensor.T
  tensor = fitting.fit_of(cfg, path).narrow(tensor)
  # safetensors writes the memory as it is and ignores strides.
  return np.ascontiguousarray(tensor)


def _let_others_read(file: pathlib.Path) -> None:
  """Gives a file the usual permissions; safetensors lets only the owner read."""
  umask = os.umask(0)
  os.umask(umask)
  file.chmod(0o666 & ~umask)


def _move(made: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves `made` to `folder`; in an existing folder its files replace the old ones.

  Old files of other names stay, except for old weights.
  """
  if not folder.exists():
    made.rename(folder)
    return
  stale = {*folder.glob('model*.safetensors'), folder / weight_files.INDEX}
  for item in sorted(made.iterdir()):
    if item.is_dir():
      shutil.rmtree(folder / item.name, ignore_errors=True)
    os.replace(item, folder / item.name)
    stale.discard(folder / item.name)
  for file in stale:
    file.unlink(missing_ok=True)
