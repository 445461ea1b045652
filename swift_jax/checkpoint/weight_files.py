"""Finds a checkpoint's safetensors files and reads their headers.

Tensor names are Hugging Face's; `hf_name` maps our paths to them.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import pathlib
from typing import NamedTuple

import numpy as np

from swift_jax.checkpoint.forms import Path
from swift_jax.checkpoint.hf_config import one_line, read_json, refuse_pointer
from swift_jax.errors import InputError

FLOATS = ('F16', 'BF16', 'F32', 'F64')
EMBEDDING = 'model.embed_tokens.weight'
HEAD = 'lm_head.weight'
SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_PICKLED = ('*.bin', '*.pth', '*.pt', '*.ckpt')
_CONVERT = (
  'pickled weights are not read, for unpickling runs code; convert them once,'
  ' where torch is installed, with'
  ' transformers.AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)'
  ' (it writes safetensors), or on huggingface.co/spaces/safetensors/convert'
)
_BLOCK_BYTES = 2**24  # bytes of float64 that are compared at a time
_SHOWN = 3  # items of one kind that an error shows


class TensorInfo(NamedTuple):
  """The facts of a tensor in a file's header.

  Attributes:
    file: the file that holds the tensor.
    name: the tensor's name in the file.
    shape: the tensor's shape, in the file's axis order.
    dtype: safetensors' name of the type.
  """

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str


def the_first(wrong: Sequence[str], kind: str = '') -> str:
  """The first items of a list that may be long, and the number of the others."""
  more = len(wrong) - _SHOWN
  rest = [' '.join(f'and {more} more {kind}'.split())] if more > 0 else []
  return '; '.join([*wrong[:_SHOWN], *rest])


def hf_name(path: Path) -> str:
  """('layers', 3, 'mlp', 'up_proj', 'kernel') -> 'model.layers.3.mlp...'."""
  *modules, leaf = path
  prefix = [] if modules[0] == 'lm_head' else ['model']
  suffix = 'bias' if leaf == 'bias' else 'weight'
  return '.'.join(map(str, [*prefix, *modules, suffix]))


def is_transposed(path: Path) -> bool:
  """Whether a file has the tensor transposed.

  Kernels are [in, out] in the model and [out, in] in Hugging Face's files.
  """
  return path[-1] == 'kernel'


def read_headers(
  folder: pathlib.Path, is_tied: bool = False
) -> dict[str, TensorInfo]:
  """Reads the headers only: every tensor of the checkpoint, by its name.

  Like transformers it reads model.safetensors if that exists, else the files that
  the index names. Other files (a consolidated copy, say) are not read. Without both,
  a single safetensors file of another name is read.

  Args:
    is_tied: embedding and head are one tensor, under either name; the result has it
      as the embedding. An index may name a head that no file holds.

  Raises:
    InputError: there are no weights, or only pickled ones; the index names a file
      that is missing or outside the folder; or a file is truncated or corrupt.
  """
  infos = _read_all(folder, is_tied)
  if is_tied and HEAD in infos:
    head = infos.pop(HEAD)
    infos.setdefault(EMBEDDING, head)
  return infos


def has_own_head(folder: pathlib.Path) -> bool:
  """Whether the files hold a head that differs from the embedding.

  transformers decides in this way whether to tie the two. They are read block by
  block, up to the first difference. Files that cannot be read count as no: then
  `read_headers` raises the error.
  """
  from safetensors import SafetensorError

  with contextlib.suppress(InputError, SafetensorError, OSError):
    infos = _read_all(folder, is_tied=True)
    if HEAD in infos and EMBEDDING in infos:
      return not _are_equal(infos[HEAD], infos[EMBEDDING])
  return False


def _are_equal(one: TensorInfo, other: TensorInfo) -> bool:
  from safetensors import safe_open

  if (one.shape, one.dtype) != (other.shape, other.dtype):
    return False
  if one.dtype not in FLOATS or len(one.shape) != 2:
    return False  # loading refuses tensors of this type or shape
  rows, width = one.shape
  step = max(1, _BLOCK_BYTES // (8 * max(width, 1)))
  with (
    safe_open(one.file, 'numpy') as first,
    safe_open(other.file, 'numpy') as second,
  ):
    pair = first.get_slice(one.name), second.get_slice(other.name)
    return all(
      np.array_equal(*(tensor[at : min(at + step, rows)] for tensor in pair))
      for at in range(0, rows, step)
    )


def _read_all(folder: pathlib.Path, is_tied: bool) -> dict[str, TensorInfo]:
  if (folder / SINGLE).exists():
    return _read_files([folder / SINGLE])
  if (folder / INDEX).exists():
    return _read_indexed(folder, is_tied)
  found = sorted(folder.glob('*.safetensors'))
  if len(found) > 1:
    raise InputError(
      f'{folder / INDEX}: no such file, though there are {len(found)}'
      f' safetensors files, {found[0].name} the first'
    )
  if not found:
    _refuse_without_weights(folder)
  return _read_files(found)


def _refuse_without_weights(folder: pathlib.Path) -> None:
  for pattern in _PICKLED:
    for file in sorted(folder.glob(pattern)):
      raise InputError(f'{file}: {_CONVERT}')
  raise InputError(f'{folder}: no *.safetensors file found; {_CONVERT}')


def _read_indexed(folder: pathlib.Path, is_tied: bool) -> dict[str, TensorInfo]:
  index = folder / INDEX
  weight_map = read_json(index).get('weight_map')
  if not isinstance(weight_map, dict) or not all(
    isinstance(file, str) for file in weight_map.values()
  ):
    raise InputError(f'{index}: weight_map={weight_map!r:.80}: expected names')
  for name, file in weight_map.items():
    _refuse_outside(index, name, file)
  needed = dict(weight_map)
  if is_tied:
    needed.pop(HEAD, None)
  files = {
    file
    for name, file in weight_map.items()
    if name in needed or (folder / file).exists()
  }
  infos = _read_files([folder / file for file in sorted(files)])
  odd = [
    f'{name} in {file}'
    for name, file in needed.items()
    if name not in infos or infos[name].file != folder / file
  ]
  if odd:
    raise InputError(
      f'{index}: {len(odd)} tensors named but not there: {the_first(odd)}'
    )
  return infos


def _refuse_outside(index: pathlib.Path, name: str, file: str) -> None:
  """Refuses a file name of the index that leads out of the folder.

  Links are followed wherever they lead: the hub's cache consists of links.
  """
  place = pathlib.PureWindowsPath(file)  # it knows slashes of both kinds
  is_inside = bool(place.parts) and not place.anchor and '..' not in place.parts
  if not is_inside or not file.isprintable():
    raise InputError(
      f'{index}: weight_map has {name} in {file!r:.80}: expected a file in this'
      ' folder'
    )


def _read_files(files: list[pathlib.Path]) -> dict[str, TensorInfo]:
  infos: dict[str, TensorInfo] = {}
  for file in files:
    for name, info in _read_file(file).items():
      if name in infos:
        raise InputError(
          f'{file}: tensor {name} is also in {infos[name].file.name}'
        )
      infos[name] = info
  return infos


def _read_file(file: pathlib.Path) -> dict[str, TensorInfo]:
  from safetensors import SafetensorError, safe_open

  try:
    # safe_open checks the file's header, offsets and length; it maps the file and
    # reads no tensor.
    with safe_open(file, 'numpy') as opened:
      slices = {name: opened.get_slice(name) for name in opened.keys()}
      return {
        name: TensorInfo(file, name, tuple(s.get_shape()), s.get_dtype())
        for name, s in slices.items()
      }
  except FileNotFoundError:
    raise InputError(f'{file}: no such file') from None
  except (SafetensorError, OSError) as error:
    refuse_pointer(file)
    raise InputError(
      f'{file}: truncated or corrupt: {one_line(error)}'
    ) from error
