"""A checkpoint's safetensors files: which there are and what their headers say.

Names are Hugging Face's; `hf_name` maps our paths to them.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from swift_jax.errors import InputError
from swift_jax.fused import Path
from swift_jax.hf_config import one_line, read_json

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_PICKLED = ('*.bin', '*.pth', '*.pt', '*.ckpt')
_CONVERT = (
  'pickled weights are not read, for unpickling runs code; convert them once,'
  ' where torch is installed, with'
  ' transformers.AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)'
  ' (it writes safetensors), or on huggingface.co/spaces/safetensors/convert'
)


class TensorInfo(NamedTuple):
  """What a header says of a tensor; `dtype` is safetensors' name for it."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: str


def hf_name(path: Path) -> str:
  """('layers', 3, 'mlp', 'up_proj', 'kernel') -> 'model.layers.3.mlp...'."""
  *modules, leaf = path
  prefix = [] if modules[0] == 'lm_head' else ['model']
  suffix = 'bias' if leaf == 'bias' else 'weight'
  return '.'.join(map(str, [*prefix, *modules, suffix]))


def is_transposed(path: Path) -> bool:
  """Kernels are [in, out] here and [out, in] in Hugging Face's files."""
  return path[-1] == 'kernel'


def read_headers(folder: pathlib.Path) -> dict[str, TensorInfo]:
  """Every tensor of the checkpoint by name; reads headers only.

  As transformers does, model.safetensors is taken where it exists, else the
  files that the index names; other files (a consolidated copy, say) are not
  looked at. A single file of another name will do too.

  Raises:
    InputError: no weights, pickled weights only, a file that is named but
      missing, or one that is truncated or corrupt.
  """
  if (folder / SINGLE).exists():
    return _read_files([folder / SINGLE])
  if (folder / INDEX).exists():
    return _read_indexed(folder)
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


def _read_indexed(folder: pathlib.Path) -> dict[str, TensorInfo]:
  index = folder / INDEX
  weight_map = read_json(index).get('weight_map')
  if not isinstance(weight_map, dict) or not all(
    isinstance(file, str) for file in weight_map.values()
  ):
    raise InputError(f'{index}: weight_map={weight_map!r:.80}: expected names')
  infos = _read_files([folder / f for f in sorted(set(weight_map.values()))])
  odd = [
    f'{name} in {file}'
    for name, file in weight_map.items()
    if name not in infos or infos[name].file != folder / file
  ]
  if odd:
    raise InputError(f'{index}: tensors named but not there: {"; ".join(odd)}')
  return infos


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
    # Checks header, offsets and length of the file; maps it, reads no tensor.
    with safe_open(file, 'numpy') as opened:
      slices = {name: opened.get_slice(name) for name in opened.keys()}
      return {
        name: TensorInfo(file, tuple(s.get_shape()), s.get_dtype())
        for name, s in slices.items()
      }
  except FileNotFoundError:
    raise InputError(f'{file}: no such file') from None
  except (SafetensorError, OSError) as error:
    raise InputError(
      f'{file}: truncated or corrupt: {one_line(error)}'
    ) from error
