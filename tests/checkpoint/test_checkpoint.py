"""Checkpoints: what goes in comes out bit for bit; what is wrong is named."""

import dataclasses
import json
import os
import shutil

from checkpoints import (
  CFG,
  POINTER,
  assert_same_bits,
  make_tokenizer,
  random_params,
)
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import cases
from safetensors.numpy import load_file, save_file

from swift_jax.checkpoint import (
  export,
  hf_config,
  hub,
  load,
  orbax_files,
  weight_files,
)
from swift_jax.config.rope import RopeConfig
from swift_jax.config.settings import ModelConfig
from swift_jax.errors import InputError
from swift_jax.model import llama, skip_mask
from swift_jax.runtime import prompts
from swift_jax.runtime.engine import Engine

EMBEDDING, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
YARN = RopeConfig('yarn', factor=4.0, original_max_position_embeddings=32)
LLAMA3 = RopeConfig('llama3', factor=4.0, original_max_position_embeddings=32)


@pytest.fixture
def folder(tmp_path):
  return cases.write('gqa', tmp_path / 'model')


def edit_config(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
  tensors = load_file(folder / 'model.safetensors')
  change(tensors)
  save_file(tensors, folder / 'model.safetensors')


def refused(*fragments):
  """One line with all of this in it."""

  class Refused:
    def __enter__(self):
      self.raises = pytest.raises(InputError)
      self.info = self.raises.__enter__()

    def __exit__(self, *exc):
      done = self.raises.__exit__(*exc)
      message = str(self.info.value)
      assert '\n' not in message
      for fragment in fragments:
        assert str(fragment) in message, message
      return done

  return Refused()


# config.json


@pytest.mark.parametrize(
  ('changes', 'fragments'),
  [
    ({'model_type': 'mistral'}, ["model_type='mistral'", 'llama']),
    ({'model_type': None}, ['model_type=None']),
    (
      {'quantization_config': {'quant_method': 'gptq'}},
      ['quantization_config=', 'gptq'],
    ),
    (
      {'rope_parameters': {'rope_type': 'dynamic', 'factor': 2.0}},
      ["rope_parameters.rope_type='dynamic'", 'yarn'],
    ),
    (
      {'rope_scaling': {'type': 'longrope', 'factor': 2.0}},
      ["rope_scaling.rope_type='longrope'"],
    ),
    ({'rope_scaling': 'linear'}, ["rope_scaling='linear'"]),
    (
      {'rope_parameters': {'rope_type': 'linear'}},
      ['rope_parameters', 'linear', 'factor'],
    ),
    (
      {'rope_parameters': {'rope_type': 'linear', 'factor': 'two'}},
      ["rope_parameters.factor='two'"],
    ),
    (
      {'rope_parameters': {'rope_type': 'linear', 'factor': None}},
      ['rope_parameters.factor=None'],
    ),
    (
      {
        'rope_parameters': {
          'rope_type': 'yarn',
          'factor': None,
          'original_max_position_embeddings': 0,
        }
      },
      ['rope_parameters.original_max_position_embeddings=0'],
    ),
    (
      {'rope_parameters': {'rope_type': 'linear', 'factor': -1.0}},
      ['rope_parameters.factor=-1.0'],
    ),
    (
      {'rope_parameters': {'rope_theta': None}},
      ['rope_parameters.rope_theta=None'],
    ),
    (
      {'rope_parameters': {'rope_type': 'default', 'mrope_section': [2, 3]}},
      ['rope_parameters.mrope_section=[2, 3]'],
    ),
    (
      {
        'rope_parameters': {
          'rope_type': 'yarn',
          'factor': 2.0,
          'original_max_position_embeddings': None,
        }
      },
      ['rope_parameters.original_max_position_embeddings=None'],
    ),
    (
      {
        'rope_parameters': {
          'rope_type': 'llama3',
          'factor': 2.0,
          'low_freq_factor': 4.0,
          'high_freq_factor': 4.0,
          'original_max_position_embeddings': 32,
        }
      },
      ['rope_parameters.high_freq_factor=4.0', 'low_freq_factor=4.0'],
    ),
    (
      {
        'rope_parameters': {
          'rope_type': 'yarn',
          'factor': 2.0,
          'truncate': 'no',
        }
      },
      ["rope_parameters.truncate='no'"],
    ),
    (
      {
        'original_max_position_embeddings': None,
        'rope_parameters': {'rope_type': 'yarn', 'factor': None},
      },
      ['original_max_position_embeddings=None'],
    ),
    ({'partial_rotary_factor': 0.5}, ['partial_rotary_factor=0.5']),
    (
      {
        'rope_parameters': {
          'rope_type': 'default',
          'partial_rotary_factor': 0.5,
        }
      },
      ['rope_parameters.partial_rotary_factor=0.5'],
    ),
    ({'hidden_act': 'quick_gelu'}, ["hidden_act='quick_gelu'"]),
    ({'num_attention_heads': 0}, ['num_attention_heads=0']),
    ({'num_key_value_heads': 4}, ['num_key_value_heads=4', 'heads=6']),
    ({'num_key_value_heads': 0}, ['num_key_value_heads=0']),
    ({'head_dim': 7}, ['head_dim', '7']),
    ({'hidden_size': 'wide'}, ['hidden_size', "'wide'"]),
    ({'hidden_size': 85}, ['hidden size (85)', '(6)']),
    ({'vocab_size': -5}, ['vocab_size=-5']),
    ({'num_hidden_layers': 2.5}, ['num_hidden_layers', '2.5']),
    ({'num_hidden_layers': True}, ['num_hidden_layers', 'True']),
    ({'rms_norm_eps': -1e-5}, ['rms_norm_eps=-1e-05']),
    ({'rms_norm_eps': '1e-5'}, ['rms_norm_eps', "'1e-5'"]),
    ({'rms_norm_eps': float('nan')}, ['rms_norm_eps=nan']),
    ({'mlp_bias': 'yes'}, ['mlp_bias', "'yes'"]),
    ({'torch_dtype': 'float8_e4m3fn'}, ["dtype='float8_e4m3fn'"]),
  ],
)
def test_config_is_refused_by_name(folder, changes, fragments):
  edit_config(folder, **changes)
  with refused(folder / 'config.json', *fragments):
    load.load_config(folder)


def test_a_long_value_is_shown_in_short(folder):
  method = {'ignore': [f'model.layers.{i}.mlp' for i in range(99)]}
  edit_config(folder, quantization_config=method)
  with pytest.raises(InputError) as error:
    load.load_config(folder)
  assert len(str(error.value)) < len(str(folder)) + 200


def test_config_file_is_missing_or_broken(folder):
  path = folder / 'config.json'
  path.write_text('{"model_type": ')
  with refused(path, 'line 1'):
    load.load_config(folder)
  path.write_text('[1]')
  with refused(path, '[1]'):
    load.load_config(folder)
  path.write_text('[' * 100_000)
  with refused(path, 'recursion'):
    load.load_config(folder)
  path.write_bytes(b'\xff\xfe{}')
  with refused(path, 'utf-8'):
    load.load_config(folder)
  path.write_text(POINTER)
  with refused(path, 'a Git LFS pointer', '`git lfs pull`'):
    load.load_config(folder)
  path.unlink()
  with refused(path, 'no such file'):
    load.load_config(folder)
  path.mkdir()
  with refused(path, 'directory'):
    load.load_config(folder)


def test_config_as_old_and_new_files_say_it(folder):
  edit_config(
    folder,
    rope_parameters=None,
    rope_scaling={'type': 'linear', 'factor': 4},
    rope_theta=1000,
    rms_norm_eps=0,
    num_key_value_heads=None,
    torch_dtype='bfloat16',
  )
  old = load.load_config(folder)
  assert old.rope == RopeConfig('linear', 1000, 4)
  assert old.num_key_value_heads == 6 and old.head_dim == 14
  assert old.dtype == 'bfloat16' and old.rms_norm_eps == 0
  edit_config(
    folder,
    rope_scaling=None,
    rope_parameters={'rope_type': 'linear', 'rope_theta': 1000, 'factor': 4},
    dtype='bfloat16',
    torch_dtype=None,
  )
  assert load.load_config(folder) == old
  assert load.load_config(folder, 'float16').dtype == 'float16'
  edit_config(folder, dtype=None)
  assert load.load_config(folder).dtype == 'float32'
  with refused("dtype='int8'"):
    load.load_config(folder, 'int8')


def test_original_context_falls_back_to_the_context(folder):
  rope = {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 2.0}
  edit_config(folder, rope_parameters=rope, max_position_embeddings=96)
  rope = load.load_config(folder).rope
  assert rope.original_max_position_embeddings == 96


@pytest.mark.parametrize(
  'field, value', [('finetuned', True), ('attn_factor', 0.7)]
)
@pytest.mark.parametrize('kind', ['yarn', 'linear'])
def test_rope_fields_that_transformers_does_not_read(
  folder, kind, field, value
):
  rope = {'type': kind, 'factor': 16.0}
  configs = []
  for more in ({}, {field: value}):
    edit_config(folder, rope_parameters=None, rope_scaling={**rope, **more})
    configs.append(load.load_config(folder))
  assert configs[0] == configs[1] and configs[0].rope.rope_type == kind


def test_original_context_beside_the_rope_parameters(folder):
  """It takes precedence when transformers computes the frequencies."""
  rope = {'rope_type': 'yarn', 'factor': 2.0}
  rope['original_max_position_embeddings'] = 64
  edit_config(folder, rope_parameters=rope, original_max_position_embeddings=32)
  rope = load.load_config(folder).rope
  assert rope.original_max_position_embeddings == 32
  edit_config(folder, rope_parameters={'rope_type': 'default'})
  edit_config(folder, original_max_position_embeddings=None)
  assert load.load_config(folder).rope == RopeConfig()


# Every field is read: changing it moves the logits, or the parameters' shapes.

SHAPES = {
  'vocab_size': 59,
  'hidden_size': 36,
  'intermediate_size': 41,
  'num_hidden_layers': 4,
  'num_attention_heads': 3,
  'num_key_value_heads': 2,
  'head_dim': 16,
  'tie_word_embeddings': True,
  'attention_bias': False,
  'mlp_bias': True,
  'dtype': 'bfloat16',
}
VALUES = {
  'rms_norm_eps': 0.1,
  'hidden_act': 'relu',
  'rope': RopeConfig('linear', factor=3.0),
}
# Read where config.json is: the context that RoPE was trained for, and the
# engine's limit. The test above sees the first move.
ELSEWHERE = {
  'max_position_embeddings',
  'weights',
  'kv_copies',
  'vocab_padding',
}
ROPES = {
  'rope_type': (YARN, 'linear'),
  'rope_theta': (YARN, 500.0),
  'factor': (YARN, 8.0),
  'low_freq_factor': (LLAMA3, 2.0),
  'high_freq_factor': (LLAMA3, 8.0),
  'original_max_position_embeddings': (LLAMA3, 64),
  'beta_fast': (
    dataclasses.replace(YARN, original_max_position_embeddings=2048),
    2.0,
  ),
  'beta_slow': (YARN, 0.1),
  'attention_factor': (YARN, 2.0),
  'mscale': (dataclasses.replace(YARN, mscale_all_dim=0.5), 3.0),
  'mscale_all_dim': (dataclasses.replace(YARN, mscale=0.5), 3.0),
  'truncate': (YARN, False),
}


def small(rope=YARN):
  return dataclasses.replace(CFG, num_hidden_layers=1, rope=rope)


def logits(cfg):
  graphdef, _ = llama.abstract_model(cfg)
  mask = skip_mask.none_skipped(1)

  @jax.jit
  def run(params):
    model = nnx.merge(graphdef, params)
    tokens = jnp.arange(11)[None] * 3
    return model.logits(model(tokens, mask, 20 * jnp.arange(11)[None])[0])

  return run(random_params(cfg))


def test_every_field_is_in_a_table():
  names = {field.name for field in dataclasses.fields(ModelConfig)}
  assert names == SHAPES.keys() | VALUES.keys() | ELSEWHERE
  assert ROPES.keys() == {f.name for f in dataclasses.fields(RopeConfig)}


@pytest.mark.parametrize('name', SHAPES)
def test_field_moves_shapes(name):
  cfg = dataclasses.replace(CFG, **{name: SHAPES[name]})
  if name == 'num_key_value_heads':
    cfg = dataclasses.replace(cfg, num_attention_heads=6)

  def shapes(cfg):
    return str(nnx.to_pure_dict(llama.abstract_model(cfg)[1]))

  assert shapes(cfg) != shapes(CFG)


@pytest.mark.parametrize('name', [*VALUES, *ROPES])
def test_field_moves_logits(name):
  if name in VALUES:
    base = small(RopeConfig())
    changed = dataclasses.replace(base, **{name: VALUES[name]})
  else:
    rope, value = ROPES[name]
    base = small(rope)
    changed = small(dataclasses.replace(rope, **{name: value}))
  moved = np.abs(logits(base) - logits(changed)).max()
  assert np.isfinite(moved) and moved > 1e-3


# End-of-text tokens and tokenizer


def eos_token_ids(folder):
  return hf_config.generation_defaults(folder).eos_token_id


def test_eos_token_ids(folder):
  assert eos_token_ids(folder) is None  # a null
  edit_config(folder, eos_token_id=2)
  assert eos_token_ids(folder) == (2,)
  generation = folder / 'generation_config.json'
  generation.write_text('{"eos_token_id": null}')
  assert eos_token_ids(folder) == (2,)
  generation.write_text('{"eos_token_id": [5, 7]}')
  assert eos_token_ids(folder) == (5, 7)
  generation.write_text('{"eos_token_id": "</s>"}')
  with refused(generation, "eos_token_id='</s>'"):
    eos_token_ids(folder)


@pytest.mark.parametrize(
  'content, wanted',
  [
    ('{"eos_token_id": 7, "num_beams": 4}', (7,)),
    ('{"num_beams": 4}', (2,)),
    ('{"eos_token_id": "</s>"}', (2,)),
    ('{"eos_token_id": ', (2,)),
    ('[1]', (2,)),
    (POINTER, (2,)),
    ('{"eos_token_id": []}', ()),
  ],
)
def test_ends_of_text_for_who_does_not_use_the_file(folder, content, wanted):
  edit_config(folder, eos_token_id=2)
  (folder / 'generation_config.json').write_text(content)
  assert hf_config.eos_defaults(folder).eos_token_id == wanted
  if content == POINTER:
    with refused(folder / 'generation_config.json', 'a Git LFS pointer'):
      hf_config.generation_defaults(folder)


def test_tokenizer(folder):
  cfg = load.load_config(folder)
  with refused(folder, 'no tokenizer.json'):
    hub.load_tokenizer(folder, cfg)
  make_tokenizer(101).save_pretrained(folder)
  tokenizer = hub.load_tokenizer(folder, cfg)
  assert tokenizer('w5 w100')['input_ids'] == [5, 100]
  make_tokenizer(102).save_pretrained(folder)
  with refused(folder, 'token 101', 'vocab_size=101'):
    hub.load_tokenizer(folder, cfg)
  tokenizer = make_tokenizer(101)
  tokenizer.add_special_tokens({'pad_token': '<pad>'})  # token 101
  tokenizer.save_pretrained(folder)
  assert hub.load_tokenizer(folder, cfg).pad_token_id == 101
  (folder / 'tokenizer.json').write_text('{"version": ')
  with refused(folder, 'tokenizer cannot be read'):
    hub.load_tokenizer(folder, cfg)
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    tokenizer.save_pretrained(folder)
    (folder / name).write_text(POINTER)
    with refused(folder / name, 'a Git LFS pointer'):
      hub.load_tokenizer(folder, cfg)


@pytest.mark.parametrize(
  'template, said',
  [
    ('{% if', ['TemplateSyntaxError']),
    (POINTER, ['chat_template.jinja: a Git LFS pointer', '`git lfs pull`']),
  ],
)
def test_a_broken_chat_template_stops_only_a_chat(folder, template, said):
  make_tokenizer(101).save_pretrained(folder)
  (folder / 'chat_template.jinja').write_text(template)
  cfg = load.load_config(folder)
  tokenizer = hub.load_tokenizer(folder, cfg)
  assert prompts.encode(0, 'w5 w7', tokenizer, cfg, print) == [5, 7]
  messages = [{'role': 'user', 'content': 'w5'}]
  with refused('the chat template refuses', *said):
    prompts.encode(0, messages, tokenizer, cfg, print)


# Round trips


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('max_shard_bytes', [10**9, 9000])
def test_export_and_load_give_the_same_bits(tmp_path, dtype, max_shard_bytes):
  cfg = dataclasses.replace(CFG, dtype=dtype, rope=YARN)
  params, folder = random_params(cfg), tmp_path / 'a' / 'b'
  export.export_hf(folder, cfg, params, max_shard_bytes=max_shard_bytes)
  assert load.load_config(folder) == cfg
  graphdef, loaded = load.load_params(folder, cfg)
  assert_same_bits(params, loaded)
  nnx.merge(graphdef, loaded)
  files = sorted(folder.glob('*.safetensors'))
  assert (len(files) > 1) == (max_shard_bytes < 10**9)
  assert all(f.stat().st_size < 2 * max_shard_bytes for f in files)
  assert os.listdir(tmp_path / 'a') == ['b']  # No temporary folder is left.


@pytest.mark.parametrize(
  'changes',
  [
    {'tie_word_embeddings': True, 'mlp_bias': True, 'attention_bias': False},
    {'rope': LLAMA3, 'rms_norm_eps': 1e-5, 'hidden_act': 'gelu'},
    {'rope': RopeConfig('linear', 5e5, 4.0)},
    {'rope': dataclasses.replace(YARN, truncate=False, attention_factor=1.5)},
    {'rope': dataclasses.replace(YARN, mscale=1.0, mscale_all_dim=0.5)},
  ],
)
def test_config_comes_back_equal(tmp_path, changes):
  cfg = dataclasses.replace(CFG, num_hidden_layers=1, **changes)
  export.export_hf(tmp_path / 'm', cfg, random_params(cfg))
  assert load.load_config(tmp_path / 'm') == cfg


def test_export_writes_tokenizer_and_special_tokens(tmp_path):
  cfg = dataclasses.replace(CFG, num_hidden_layers=1)
  params = random_params(cfg)
  export.export_hf(tmp_path, cfg, params, make_tokenizer(53))
  assert eos_token_ids(tmp_path) == (1,)
  assert hub.load_tokenizer(tmp_path, cfg)('w5')['input_ids'] == [5]
  generation = {'eos_token_id': [3, 4]}
  export.export_hf(tmp_path, cfg, params, None, generation)
  assert eos_token_ids(tmp_path) == (3, 4)


def test_export_into_a_folder_replaces_weights_and_keeps_the_rest(tmp_path):
  (tmp_path / 'README.md').write_text('model card')
  export.export_hf(tmp_path, CFG, random_params(), max_shard_bytes=9000)
  params = random_params(seed=1)
  export.export_hf(tmp_path, CFG, params)
  assert sorted(os.listdir(tmp_path)) == [
    'README.md',
    'config.json',
    'model.safetensors',
  ]
  assert_same_bits(params, load.load_params(tmp_path, CFG)[1])


def test_export_that_fails_leaves_nothing(tmp_path):
  odd = dataclasses.replace(CFG, hidden_size=31)
  with refused('hidden size (31)'):
    export.export_hf(tmp_path / 'm', odd, random_params(odd))
  unread = dataclasses.replace(CFG, rope=RopeConfig(factor=2.0))
  with refused('rope.factor=2.0', 'default'):
    export.export_hf(tmp_path / 'm', unread, random_params())
  assert os.listdir(tmp_path) == []
  (tmp_path / 'file').write_text('')
  with refused(tmp_path / 'file', 'cannot be written'):
    export.export_hf(tmp_path / 'file', CFG, random_params())
  with refused(tmp_path / 'file' / 'm', 'cannot be written'):
    export.export_hf(tmp_path / 'file' / 'm', CFG, random_params())
  assert os.listdir(tmp_path) == ['file']


def test_orbax_round_trip(tmp_path):
  cfg = dataclasses.replace(CFG, dtype='bfloat16')
  params, directory = random_params(cfg), tmp_path / 'orbax'
  orbax_files.save_params(directory, params)
  graphdef, restored = orbax_files.restore_params(directory, cfg)
  assert_same_bits(params, restored)
  nnx.merge(graphdef, restored)
  with refused(directory, 'exists already'):
    orbax_files.save_params(directory, params)
  other = dataclasses.replace(cfg, intermediate_size=41, mlp_bias=True)
  with refused(
    directory,
    '12 parameters do not fit',
    'layers/0/mlp/down_proj/kernel: expected (41, 30), found (37, 30)',
    'layers/0/mlp/down_proj/bias: expected (30,), found None',
    'and 9 more',
  ):
    orbax_files.restore_params(directory, other)
  with refused(tmp_path / 'none', 'not an Orbax checkpoint'):
    orbax_files.restore_params(tmp_path / 'none', cfg)


def test_fingerprint(tmp_path):
  params = random_params()
  export.export_hf(tmp_path, CFG, params, max_shard_bytes=9000)
  loaded = load.load_params(tmp_path, CFG)[1]
  prints = [
    load.fingerprint(CFG, params),
    load.fingerprint(CFG, random_params(seed=1)),
    load.fingerprint(dataclasses.replace(CFG, rope=YARN), params),
  ]
  assert load.fingerprint(CFG, loaded) == prints[0]
  assert len(set(prints)) == 3 and len(prints[0]) == 16


# Weights


def loaded(folder):
  return load.load_params(folder, load.load_config(folder))


def test_other_dtypes_are_cast(folder):
  wanted = loaded(folder)[1]['norm']['scale']
  cfg = load.load_config(folder, 'bfloat16')
  half = load.load_params(folder, cfg)[1]['norm']['scale']
  assert_same_bits(half, wanted.astype(jnp.bfloat16))
  edit_weights(
    folder, lambda t: t.update({k: v.astype('f8') for k, v in t.items()})
  )
  assert_same_bits(loaded(folder)[1]['norm']['scale'], wanted)


def test_tensors_that_do_not_fit_are_named(folder):
  def change(tensors):
    del tensors['model.norm.weight']
    tensors['model.layers.0.mlp.up_proj.weight'] = np.zeros((53, 85), 'f4')
    tensors['model.layers.1.self_attn.q_proj.weight'] = np.zeros((84, 84), 'i8')
    tensors['score.weight'] = np.zeros((2, 84), 'f4')

  edit_weights(folder, change)
  with refused(
    folder,
    '4 tensors',
    'missing model.norm.weight [84]',
    'model.layers.0.mlp.up_proj.weight: expected [53, 84], found [53, 85]',
    'model.layers.1.self_attn.q_proj.weight: dtype I64',
    'unexpected score.weight [2, 84]',
  ):
    loaded(folder)


def test_of_many_that_do_not_fit_the_first_of_each_kind_are_named(folder):
  def change(tensors):
    for name in [n for n in tensors if '.mlp.' in n]:
      tensors[f'odd.{name}'] = tensors.pop(name)

  edit_weights(folder, change)
  with refused(
    '12 tensors do not fit',
    'missing model.layers.0.mlp.down_proj.weight [84, 53]',
    'and 3 more missing; unexpected odd.model.layers.0.mlp.down_proj.weight',
    'and 3 more unexpected',
  ):
    loaded(folder)


def renamed(new_name):
  def change(tensors):
    for name in list(tensors):
      tensors[new_name(name)] = tensors.pop(name)

  return change


@pytest.mark.parametrize(
  'begin, instead, said',
  [
    ('base_model.model.', '', "all 21 tensors begin with 'base_model.model.'"),
    ('_orig_mod.', '', "all 21 tensors begin with '_orig_mod.' before"),
    ('model.', '', "all 21 tensors begin with 'model.' before"),
    (
      'model.language_model.',
      'model.',
      "20 of 21 tensors begin with 'model.language_model.' where 'model.' is",
    ),
    ('', 'model.', "20 of 21 tensors lack 'model.' before their names: save"),
  ],
)
def test_names_behind_a_prefix_make_one_short_line(
  folder, begin, instead, said
):
  def new_name(name):
    if not name.startswith(instead):
      return name
    return begin + name.removeprefix(instead)

  edit_weights(folder, renamed(new_name))
  with pytest.raises(InputError) as error:
    loaded(folder)
  line = str(error.value)
  assert line.startswith(f'{folder}: {said}')
  assert '\n' not in line and len(line) < len(str(folder)) + 200
  assert ('merge the adapter' in line) == bool(begin)


def test_an_adapter_alone_is_named_by_its_prefix(folder):
  edit_weights(
    folder,
    renamed(
      lambda n: f'base_model.model.{n}'.replace('.weight', '.lora_A.weight')
    ),
  )
  with refused("all 21 tensors begin with 'base_model.model.'", 'merge'):
    loaded(folder)


def test_names_of_another_scheme_are_no_prefix(folder):
  """Meta's own: but for the last norm no name would be right."""

  def new_name(name):
    name = name.removeprefix('model.').replace('_proj.', '.w.')
    return name.replace('layernorm', 'norm').replace('embed_', 'tok_')

  edit_weights(folder, renamed(new_name))
  with refused('40 tensors do not fit config.json: missing', 'unexpected'):
    loaded(folder)


def test_head_and_buffers_that_may_be_there(folder):
  buffer = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.zeros(7, 'f4')}
  edit_weights(folder, lambda t: t.update(buffer))
  loaded(folder)
  edit_weights(folder, lambda t: t.pop(HEAD))
  with refused('missing lm_head.weight [101, 84]'):
    loaded(folder)
  edit_config(folder, tie_word_embeddings=True)
  assert 'lm_head' not in loaded(folder)[1]


def test_a_head_that_is_the_embedding_is_tied(folder):
  edit_config(folder, tie_word_embeddings=True)
  edit_weights(folder, lambda t: t.update({HEAD: t[EMBEDDING].copy()}))
  assert load.load_config(folder).tie_word_embeddings
  params = loaded(folder)[1]
  assert 'lm_head' not in params
  wanted = load_file(folder / 'model.safetensors')[HEAD]
  assert_same_bits(params['embed_tokens']['embedding'], jnp.asarray(wanted))


@pytest.mark.parametrize('block_bytes', [2**24, 1])
@pytest.mark.parametrize('row', [0, 57, 100])
def test_a_head_that_differs_is_a_head(
  folder, tmp_path, monkeypatch, caplog, block_bytes, row
):
  """Whatever config.json says: without it logits would be others."""
  monkeypatch.setattr(weight_files, '_BLOCK_BYTES', block_bytes)
  head = cases.tensors('gqa')[EMBEDDING].copy()
  head[row, 3] += 1
  edit_config(folder, tie_word_embeddings=True)
  edit_weights(folder, lambda t: t.update({HEAD: head}))
  cfg = load.load_config(folder)
  assert not cfg.tie_word_embeddings
  assert f'{folder}: config.json has tie_word_embeddings=true' in caplog.text
  params = load.load_params(folder, cfg)[1]
  assert_same_bits(params['lm_head']['kernel'], jnp.asarray(head.T))
  export.export_hf(tmp_path / 'again', cfg, params)
  assert load.load_config(tmp_path / 'again') == cfg
  assert_same_bits(loaded(tmp_path / 'again')[1], params)


def test_an_engine_says_that_a_head_is_its_own(folder):
  head = cases.tensors('gqa')[EMBEDDING] + 1
  edit_config(folder, tie_word_embeddings=True)
  edit_weights(folder, lambda t: t.update({HEAD: head}))
  line, _ = Engine.from_pretrained(str(folder)).remarks
  assert line.startswith(f'{folder}: config.json has tie_word_embeddings=true')


def test_a_head_of_another_shape_is_not_dropped(folder):
  edit_config(folder, tie_word_embeddings=True)
  edit_weights(folder, lambda t: t.update({HEAD: np.zeros((102, 84), 'f4')}))
  with refused('lm_head.weight: expected [101, 84], found [102, 84]'):
    loaded(folder)


def test_tied_embeddings_by_the_heads_name_alone(folder):
  edit_config(folder, tie_word_embeddings=True)
  edit_weights(folder, lambda t: t.pop(HEAD))
  graphdef, wanted = loaded(folder)
  edit_weights(folder, lambda t: t.update({HEAD: t.pop(EMBEDDING)}))
  assert load.load_config(folder).tie_word_embeddings
  again, params = loaded(folder)
  assert again == graphdef
  assert_same_bits(params, wanted)
  edit_weights(folder, lambda t: t.pop(HEAD))
  with refused('1 tensors', 'missing model.embed_tokens.weight [101, 84]'):
    loaded(folder)


@pytest.mark.parametrize('keep', [0, 5, 100, -3])
def test_truncated_file(folder, keep):
  file = folder / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:keep])
  with refused(file, 'truncated or corrupt'):
    loaded(folder)


def test_corrupt_file(folder):
  file = folder / 'model.safetensors'
  file.write_bytes(b'\x93NUMPY' * 50)
  with refused(file, 'truncated or corrupt'):
    loaded(folder)
  edit_config(folder, tie_word_embeddings=True)  # which has the head looked at
  with refused(file, 'truncated or corrupt'):
    loaded(folder)
  file.write_text(POINTER)
  with refused(file, 'a Git LFS pointer, not the file; run `git lfs pull`'):
    loaded(folder)


@pytest.fixture
def sharded(tmp_path):
  folder = tmp_path / 'sharded'
  export.export_hf(folder, CFG, random_params(), max_shard_bytes=9000)
  return folder


def test_only_the_files_of_the_index_are_read(sharded):
  (sharded / 'consolidated.safetensors').write_bytes(b'not read')
  (sharded / 'model-00099-of-00099.safetensors').write_bytes(b'not read')
  assert_same_bits(loaded(sharded)[1], random_params())


def test_single_file_is_taken_before_the_index(sharded, tmp_path):
  params = random_params(seed=1)
  export.export_hf(tmp_path / 'single', CFG, params)
  shutil.copy(tmp_path / 'single' / 'model.safetensors', sharded)
  assert_same_bits(loaded(sharded)[1], params)


def test_file_that_the_index_names_is_missing(sharded):
  file = sorted(sharded.glob('*.safetensors'))[2]
  file.unlink()
  with refused(file, 'no such file'):
    loaded(sharded)
  file.write_text(POINTER)
  with refused(file, 'a Git LFS pointer'):
    loaded(sharded)


def edit_index(folder, **weight_map):
  path = folder / 'model.safetensors.index.json'
  value = json.loads(path.read_text())
  value['weight_map'] |= weight_map
  path.write_text(json.dumps(value))
  return path


@pytest.mark.parametrize('file', ['model-00001-of', 'none.safetensors'])
def test_an_index_may_name_a_tied_head_that_is_not_there(tmp_path, file):
  cfg = dataclasses.replace(CFG, tie_word_embeddings=True)
  params = random_params(cfg)
  export.export_hf(tmp_path, cfg, params, max_shard_bytes=9000)
  names = sorted(tmp_path.glob(f'{file}*')) or [tmp_path / file]
  index = edit_index(tmp_path, **{HEAD: names[0].name})
  assert load.load_config(tmp_path) == cfg
  assert_same_bits(loaded(tmp_path)[1], params)
  edit_config(tmp_path, tie_word_embeddings=False)
  with refused(tmp_path, file if 'none' in file else '1 tensors named but not'):
    loaded(tmp_path)
  edit_config(tmp_path, tie_word_embeddings=True)
  first = sorted(tmp_path.glob('model-00001-of*'))[0].name
  edit_index(tmp_path, **{f'odd.{i}': first for i in range(9)})
  with refused(index, '9 tensors named but not there: odd.0 in', 'and 6 more'):
    loaded(tmp_path)


@pytest.mark.parametrize(
  'file',
  [
    '../other/x.safetensors',
    'a/../../x.safetensors',
    '/x.safetensors',
    'C:\\x.safetensors',
    '..\\x.safetensors',
    'x\0.safetensors',
    '\ud800.safetensors',
    '',
  ],
)
def test_index_that_leads_outside_the_folder(sharded, file):
  index = edit_index(sharded, **{'model.norm.weight': file})
  with refused(
    index, f'model.norm.weight in {file!r}: expected a file in this'
  ):
    loaded(sharded)


def test_shards_may_be_links_and_lie_in_folders(sharded, tmp_path):
  names = json.loads((sharded / weight_files.INDEX).read_text())['weight_map']
  (sharded / 'parts').mkdir()
  for i, file in enumerate(sorted(sharded.glob('*.safetensors'))):
    file.rename(tmp_path / f'blob{i}')
    (sharded / 'parts' / file.name).symlink_to(tmp_path / f'blob{i}')
  edit_index(sharded, **{name: f'parts/{file}' for name, file in names.items()})
  assert_same_bits(loaded(sharded)[1], random_params())


def test_broken_index(sharded):
  index = sharded / 'model.safetensors.index.json'
  value = json.loads(index.read_text())
  value['weight_map']['model.odd.weight'] = value['weight_map'].pop(
    'model.norm.weight'
  )
  index.write_text(json.dumps(value))
  with refused(index, 'model.odd.weight in model-'):
    loaded(sharded)
  index.write_text('{"weight_map": [1]}')
  with refused(index, 'weight_map=[1]'):
    loaded(sharded)
  index.write_text('{')
  with refused(index):
    loaded(sharded)
  index.write_text(POINTER)
  with refused(index, 'a Git LFS pointer'):
    loaded(sharded)
  index.unlink()
  with refused(index, 'no such file', 'model-00001-of'):
    loaded(sharded)


def test_tensor_in_two_files(sharded):
  first, second = sorted(sharded.glob('*.safetensors'))[:2]
  tensors = load_file(first)
  save_file(tensors | load_file(second), second)
  with refused(second, next(iter(tensors)), first.name):
    loaded(sharded)


def test_pickled_weights_are_refused(folder):
  (folder / 'model.safetensors').unlink()
  with refused(folder, 'no *.safetensors', 'save_pretrained'):
    loaded(folder)
  (folder / 'pytorch_model.bin').write_bytes(b'\x80')
  with refused(folder / 'pytorch_model.bin', 'save_pretrained', 'convert'):
    loaded(folder)


def test_links_and_relative_paths(folder, tmp_path, monkeypatch):
  """The hub's cache is links to blobs whose names have no ending."""
  (folder / 'model.safetensors').rename(tmp_path / 'blob')
  (folder / 'model.safetensors').symlink_to('../blob')
  monkeypatch.chdir(tmp_path)
  loaded(hub.resolve('model'))


# Where it comes from


def test_resolve(folder, tmp_path, monkeypatch):
  assert hub.resolve(str(folder)) == folder
  with refused(tmp_path / 'none', 'no such folder'):
    hub.resolve(str(tmp_path / 'none'))
  with refused(folder / 'config.json', 'a file'):
    hub.resolve(str(folder / 'config.json'))
  with refused('~nobody-of-this-name/x', 'cannot be read'):
    hub.resolve('~nobody-of-this-name/x')
  with refused('a' * 300, 'cannot be read'):
    hub.resolve('a' * 300)
  asked = {}

  def download(name, **patterns):
    asked[name] = patterns
    return str(folder)

  monkeypatch.setattr('huggingface_hub.snapshot_download', download)
  assert hub.resolve('meta-llama/Llama-3.2-1B') == folder
  patterns = asked['meta-llama/Llama-3.2-1B']['allow_patterns']
  assert '*.safetensors' in patterns
  assert not {'*', '*.bin', '*.pt', '*.pth', '*.pkl'} & set(patterns)


def test_hub_that_does_not_answer():
  with refused('no-such-org/no-such-model', 'no such folder', 'hub'):
    hub.resolve('no-such-org/no-such-model')


@pytest.mark.parametrize(
  'kind, said',
  [
    ('GatedRepoError', 'ask for access on https://huggingface.co/some/model'),
    ('RepositoryNotFoundError', 'if it is private, `hf auth login`'),
    ('LocalEntryNotFoundError', 'give the path of a folder with the model'),
  ],
)
def test_what_to_do_about_the_hub(monkeypatch, kind, said):
  from huggingface_hub import errors

  def download(*_, **__):
    error = getattr(errors, kind)
    raise error.__new__(error)  # some are made from a response of the hub

  monkeypatch.setattr('huggingface_hub.snapshot_download', download)
  with refused('some/model', 'not to be had from the hub', said):
    hub.resolve('some/model')


def test_a_folder_without_a_checkpoint(tmp_path):
  with refused(tmp_path / 'config.json', 'no such file', 'Hugging Face check'):
    load.load_config(tmp_path)
