"""Hugging Face's config.json and generation_config.json, read and written.

What the model cannot do is refused by name here; nothing is ignored that would
change a logit of transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

from swift_jax.config.sampling import SamplingConfig, from_generation_config
from swift_jax.config.settings import (
  DTYPES,
  ROPE_TYPES,
  ModelConfig,
  RopeConfig,
)
from swift_jax.errors import InputError

# The fields that Hugging Face reads for each RoPE type; it ignores the others.
_ROPE_FIELDS = {
  'default': ('rope_theta',),
  'linear': ('rope_theta', 'factor'),
  'llama3': (
    'rope_theta',
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ),
  'yarn': (
    'rope_theta',
    'factor',
    'original_max_position_embeddings',
    'beta_fast',
    'beta_slow',
    'attention_factor',
    'mscale',
    'mscale_all_dim',
    'truncate',
  ),
}
# What its RoPE types do not read, and what public files say all the same: the
# older name of `rope_type`, and arguments of the code that YaRN came with.
_ROPE_UNREAD = ('type', 'finetuned', 'attn_factor')
_GENERATION = 'generation_config.json'
_LFS = b'version https://git-lfs.github.com/spec/'
_MODEL_FIELDS = tuple(
  field.name
  for field in dataclasses.fields(ModelConfig)
  if field.name not in ('rope', 'dtype', 'weights')
)


def one_line(error: Exception) -> str:
  """An error of another package as one line."""
  return ' '.join(str(error).split()) or type(error).__name__


def refuse_pointer(path: pathlib.Path) -> None:
  """Says so where a file that cannot be read is a pointer of Git LFS.

  Raises:
    InputError: it is what Git leaves in the place of a large file.
  """
  try:
    with open(path, 'rb') as file:
      start = file.read(len(_LFS))
  except OSError:  # whoever reads the file says so
    return
  if start == _LFS:
    raise InputError(
      f'{path}: a Git LFS pointer, not the file; run `git lfs pull` there'
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    InputError: missing, unreadable, not JSON, or not an object.
  """
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise InputError(f'{path}: no such file') from None
  except (OSError, ValueError, RecursionError) as error:
    refuse_pointer(path)
    raise InputError(f'{path}: {one_line(error)}') from error
  if not isinstance(value, dict):
    raise InputError(f'{path}: expected a JSON object, found {value!r:.80}')
  return value


def read_config(folder: pathlib.Path, dtype: str | None = None) -> ModelConfig:
  """What config.json in `folder` says, as transformers' AutoConfig reads it.

  Args:
    folder: holds config.json.
    dtype: bfloat16, float16 or float32; config.json's own if None, and float32
      where it names none.

  Raises:
    InputError: names the file or argument, the field and its value.
  """
  if dtype is not None and dtype not in DTYPES:
    raise InputError(f'dtype={dtype!r}: expected one of {", ".join(DTYPES)}')
  path = pathlib.Path(folder) / 'config.json'
  if not path.exists():
    raise InputError(
      f'{path}: no such file; expected the folder of a Hugging Face checkpoint'
    )
  raw = read_json(path)
  try:
    return _model_config(raw, dtype)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error


def _model_config(raw: Mapping[str, Any], dtype: str | None) -> ModelConfig:
  _refuse_unsupported(raw)
  config = _auto_config(raw)
  rope = config.rope_parameters
  fields = {
    name: rope[name]
    for name in _ROPE_FIELDS[rope['rope_type']]
    # Hugging Face takes a beta of null or 0 for the default.
    if name in rope and not (name.startswith('beta') and not rope[name])
  }
  if fields.get('factor', 1) is None:
    fields['factor'] = (
      config.max_position_embeddings / rope['original_max_position_embeddings']
    )
  return ModelConfig(
    **{name: getattr(config, name) for name in _MODEL_FIELDS},
    rope=RopeConfig(rope_type=rope['rope_type'], **fields),
    # Not config.dtype, which is a torch.dtype where torch is installed.
    dtype=dtype or raw.get('dtype') or raw.get('torch_dtype') or 'float32',
  )


def _auto_config(raw: Mapping[str, Any]) -> Any:
  """transformers' LlamaConfig, its errors turned into ours."""
  # transformers warns on import that torch is missing; nothing here wants it.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  from huggingface_hub.errors import StrictDataclassError
  from transformers import AutoConfig

  raw = json.loads(json.dumps(raw))  # AutoConfig writes into its arguments.
  if raw.get('num_attention_heads') == 0:  # It would divide by it.
    raise InputError('num_attention_heads=0: expected an integer >= 1')
  if type(raw.get('rms_norm_eps')) is int:  # It wants a float, 0 included.
    raw['rms_norm_eps'] = float(raw['rms_norm_eps'])
  try:
    config = AutoConfig.for_model(**raw)
    # As its RoPE does once more: fields beside `rope_parameters` are set by now.
    config.standardize_rope_params()
    return config
  except (StrictDataclassError, KeyError, TypeError, ValueError) as error:
    raise InputError(one_line(error)) from error


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
  if raw.get('model_type') != 'llama':
    raise InputError(f"model_type={raw.get('model_type')!r}: expected 'llama'")
  if raw.get('quantization_config') is not None:
    method = raw['quantization_config']  # may name every layer
    raise InputError(
      f'quantization_config={method!r:.80}: quantized weights are not supported'
    )
  _refuse_partial_rotary('', raw)
  for name in ('rope_scaling', 'rope_parameters'):
    rope = raw.get(name)
    if rope is None:
      continue
    if not isinstance(rope, Mapping):
      raise InputError(f'{name}={rope!r}: expected an object or null')
    _refuse_rope(name, rope, raw)


def _refuse_rope(
  name: str, rope: Mapping[str, Any], raw: Mapping[str, Any]
) -> None:
  rope_type = rope.get('rope_type', rope.get('type', 'default'))
  if rope_type not in ROPE_TYPES:
    raise InputError(
      f'{name}.rope_type={rope_type!r}: expected one of {", ".join(ROPE_TYPES)}'
    )
  _refuse_partial_rotary(f'{name}.', rope)
  known = {field.name for field in dataclasses.fields(RopeConfig)}
  known |= {*_ROPE_UNREAD, 'partial_rotary_factor'}
  for field in rope.keys() - known:
    raise InputError(f'{name}.{field}={rope[field]!r}: no such field is known')
  field = 'original_max_position_embeddings'
  places = {f'{name}.{field}': rope}
  if field in _ROPE_FIELDS[rope_type]:
    places[field] = raw  # there it takes precedence, as in transformers
  for where, fields in places.items():
    value = fields.get(field, 1)
    if type(value) is not int or value < 1:
      raise InputError(f'{where}={value!r}: expected an integer >= 1')
  # null means something for yarn alone: the ratio of the two contexts.
  if rope_type != 'yarn' and rope.get('factor', 1) is None:
    raise InputError(f'{name}.factor=None: expected a number > 0')


def _refuse_partial_rotary(prefix: str, fields: Mapping[str, Any]) -> None:
  value = fields.get('partial_rotary_factor')
  if value is not None and value != 1:
    raise InputError(
      f'{prefix}partial_rotary_factor={value!r}: only 1 is supported'
    )


def generation_defaults(folder: pathlib.Path) -> SamplingConfig:
  """What generation_config.json says; end-of-text tokens else from config.json.

  Raises:
    InputError: a file that cannot be read, a wrong value, or a setting that is
      not supported.
  """
  said = SamplingConfig()
  path = pathlib.Path(folder) / _GENERATION
  if path.exists():
    said = from_generation_config(read_json(path), str(path))
  if said.eos_token_id is not None:
    return said
  eos = _eos(pathlib.Path(folder) / 'config.json')
  return dataclasses.replace(said, eos_token_id=eos)


def eos_defaults(folder: pathlib.Path) -> SamplingConfig:
  """End-of-text tokens alone, for who does without generation_config.json.

  They are that file's where it can be read and names some, else config.json's.

  Where neither names any there is none: transformers' `generate` takes none either,
  though its LlamaConfig has a 2 for a field that is missing.

  Raises:
    InputError: neither an integer, nor a list of them, nor null in config.json.
  """
  eos = None
  path = pathlib.Path(folder) / _GENERATION
  if path.exists():
    with contextlib.suppress(InputError):
      eos = _eos(path)
  if eos is None:
    eos = _eos(pathlib.Path(folder) / 'config.json')
  return SamplingConfig(eos_token_id=eos)


def _eos(path: pathlib.Path) -> tuple[int, ...] | None:
  fields = {'eos_token_id': read_json(path).get('eos_token_id')}
  return from_generation_config(fields, str(path)).eos_token_id


def to_dict(
  cfg: ModelConfig, special_tokens: Mapping[str, Any]
) -> dict[str, Any]:
  """config.json of a `LlamaForCausalLM`; `load_config` reads `cfg` back.

  Args:
    cfg: the model.
    special_tokens: `bos_token_id`, `eos_token_id`, `pad_token_id`; null where
      absent, since transformers would take 1 and 2 for a missing field.
  """
  rope = {'rope_type': cfg.rope.rope_type}
  for name in _ROPE_FIELDS[cfg.rope.rope_type]:
    value = getattr(cfg.rope, name)
    if value is not None:
      rope[name] = value
  names = ('bos_token_id', 'eos_token_id', 'pad_token_id')
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    **{name: getattr(cfg, name) for name in _MODEL_FIELDS},
    'rope_parameters': rope,
    'dtype': cfg.dtype,
    **{name: special_tokens.get(name) for name in names},
  }
