"""Reads and writes Hugging Face's config.json and generation_config.json.

Settings that the model does not support are refused by name. No setting is ignored
that would change a logit in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

from swift_jax.config.rope import ROPE_TYPES, RopeConfig
from swift_jax.config.sampling import SamplingConfig, from_generation_config
from swift_jax.config.settings import (
  DTYPES,
  ModelConfig,
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
# Fields that its RoPE types do not read though public files have them: the older
# name of `rope_type`, and arguments of YaRN's original code.
_ROPE_UNREAD = ('type', 'finetuned', 'attn_factor')
_GENERATION = 'generation_config.json'
_LFS = b'version https://git-lfs.github.com/spec/'
_MODEL_FIELDS = tuple(
  field.name
  for field in dataclasses.fields(ModelConfig)
  if field.name
  not in ('rope', 'dtype', 'weights', 'kv_copies', 'vocab_padding')
)


def one_line(error: Exception) -> str:
  """The message of another package's error, as one line."""
  return ' '.join(str(error).split()) or type(error).__name__


def refuse_pointer(path: pathlib.Path) -> None:
  """Refuses a file that is a pointer of Git LFS, not the file itself.

  Raises:
    InputError: the file is a pointer, which Git leaves in place of a large file.
  """
  try:
    with open(path, 'rb') as file:
      start = file.read(len(_LFS))
  except OSError:  # the caller, who reads the file, raises this error
    return
  if start == _LFS:
    raise InputError(
      f'{path}: a Git LFS pointer, not the file; run `git lfs pull` there'
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    InputError: the file is missing, cannot be read, or holds no JSON object.
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
  """Reads config.json in `folder`, as transformers' AutoConfig does.

  Args:
    folder: the folder with config.json.
    dtype: bfloat16, float16 or float32; None: config.json's dtype, or float32 if
      config.json has none.

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
    # For Hugging Face a beta of null or 0 means the default.
    if name in rope and not (name.startswith('beta') and not rope[name])
  }
  if fields.get('factor', 1) is None:
    fields['factor'] = (
      config.max_position_embeddings / rope['original_max_position_embeddings']
    )
  return ModelConfig(
    **{name: getattr(config, name) for name in _MODEL_FIELDS},
    rope=RopeConfig(rope_type=rope['rope_type'], **fields),
    # config.dtype is of no use: it is a torch.dtype where torch is installed.
    dtype=dtype or raw.get('dtype') or raw.get('torch_dtype') or 'float32',
  )


def _auto_config(raw: Mapping[str, Any]) -> Any:
  """transformers' LlamaConfig, its errors turned into ours."""
  # transformers warns on import that torch is missing; torch is not needed here.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  from huggingface_hub.errors import StrictDataclassError
  from transformers import AutoConfig

  raw = json.loads(json.dumps(raw))  # AutoConfig writes into its arguments.
  if raw.get('num_attention_heads') == 0:  # AutoConfig would divide by it.
    raise InputError('num_attention_heads=0: expected an integer >= 1')
  if type(raw.get('rms_norm_eps')) is int:  # AutoConfig takes only a float.
    raw['rms_norm_eps'] = float(raw['rms_norm_eps'])
  try:
    config = AutoConfig.for_model(**raw)
    # transformers' RoPE repeats this call too: by now the fields beside
    # `rope_parameters` are set.
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
    places[field] = (
      raw  # the field beside the object goes before, as in transformers
    )
  for where, fields in places.items():
    value = fields.get(field, 1)
    if type(value) is not int or value < 1:
      raise InputError(f'{where}={value!r}: expected an integer >= 1')
  # Only yarn gives null a meaning: the ratio of the two contexts.
  if rope_type != 'yarn' and rope.get('factor', 1) is None:
    raise InputError(f'{name}.factor=None: expected a number > 0')


def _refuse_partial_rotary(prefix: str, fields: Mapping[str, Any]) -> None:
  value = fields.get('partial_rotary_factor')
  if value is not None and value != 1:
    raise InputError(
      f'{prefix}partial_rotary_factor={value!r}: only 1 is supported'
    )


def generation_defaults(folder: pathlib.Path) -> SamplingConfig:
  """The settings of generation_config.json.

  End-of-text tokens that it does not name come from config.json.

  Raises:
    InputError: a file cannot be read, a value is wrong, or a setting is not
      supported.
  """
  settings = SamplingConfig()
  path = pathlib.Path(folder) / _GENERATION
  if path.exists():
    settings = from_generation_config(read_json(path), str(path))
  if settings.eos_token_id is not None:
    return settings
  eos = _eos(pathlib.Path(folder) / 'config.json')
  return dataclasses.replace(settings, eos_token_id=eos)


def eos_defaults(folder: pathlib.Path) -> SamplingConfig:
  """The end-of-text tokens alone, for callers that do not use the model's settings.

  They come from generation_config.json if it can be read and names some, else from
  config.json. If neither file names any, there are none. transformers' `generate`
  has none then either, though its LlamaConfig fills a missing field with 2.

  Raises:
    InputError: the field in config.json is not an integer, a list of integers, or
      null.
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
  """The config.json of a `LlamaForCausalLM`, from which `load_config` reads `cfg`.

  Args:
    cfg: the model.
    special_tokens: `bos_token_id`, `eos_token_id`, `pad_token_id`. An absent one is
      written as null, since transformers would fill a missing field with 1 or 2.
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
