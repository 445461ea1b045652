"""Which setting applies, where it came from, and what is said of it."""

import dataclasses

import pytest
from transformers import GenerationConfig

from swift_jax.config import sampling as sampling_config
from swift_jax.config.sampling import (
  DEFAULTS,
  FIELDS,
  SamplingConfig,
  from_generation_config,
  resolve,
)
from swift_jax.errors import InputError

FILE = 'generation_config.json'
WHERE = f'some/folder/{FILE}'
# By field: what the caller gives and what the file says; neither is the default.
VALUES = {
  'do_sample': (True, True),
  'temperature': (0.6, 0.7),
  'top_k': (3, 5),
  'top_p': (0.9, 0.8),
  'min_p': (0.1, 0.2),
  'repetition_penalty': (1.1, 1.2),
  'eos_token_id': ((2,), (3, 5)),
  'stop_strings': (('a',), ('b', 'c')),
  'max_new_tokens': (7, 11),
  'min_new_tokens': (2, 4),
  'seed': (3, 5),
}
NOTHING = SamplingConfig()


def test_every_field_has_values_to_tell_apart():
  assert tuple(VALUES) == FIELDS
  names = [field.name for field in dataclasses.fields(SamplingConfig)]
  others = ['use_generation_config', 'skip_special_tokens', 'logprobs']
  assert names == [*FIELDS, *others]
  for name, values in VALUES.items():
    assert DEFAULTS[name] not in values


# ---- precedence


@pytest.mark.parametrize('name', FIELDS)
def test_the_caller_precedes_the_file_and_that_the_default(name):
  by_caller, by_file = VALUES[name]
  caller, file = (SamplingConfig(**{name: v}) for v in (by_caller, by_file))
  for given, model, wanted in [
    (caller, file, (by_caller, 'given')),
    (caller, NOTHING, (by_caller, 'given')),
    (NOTHING, file, (by_file, FILE)),
    (NOTHING, NOTHING, (DEFAULTS[name], 'default')),
  ]:
    resolved = resolve(given, model)
    found = getattr(resolved.config, name), resolved.sources[name]
    assert found == wanted


@pytest.mark.parametrize('name', FIELDS)
def test_a_field_moves_no_other(name):
  given = SamplingConfig(**{name: VALUES[name][0]})
  config = resolve(given, NOTHING).config
  moved = {n for n in FIELDS if getattr(config, n) != DEFAULTS[n]}
  # Only a temperature says something of another field.
  wanted = {name, 'do_sample'} if name == 'temperature' else {name}
  assert moved == wanted


@pytest.mark.parametrize('name', FIELDS)
def test_a_default_that_is_given_precedes_the_file(name):
  """0, False and empty are values; only None is not given."""
  given = SamplingConfig(**{name: DEFAULTS[name]})
  model = SamplingConfig(**{name: VALUES[name][1]})
  resolved = resolve(given, model)
  assert getattr(resolved.config, name) == DEFAULTS[name]
  assert resolved.sources[name] == 'given'


def test_all_fields_are_set_at_once():
  model = SamplingConfig(**{name: v for name, (_, v) in VALUES.items()})
  resolved = resolve(NOTHING, model)
  assert resolved.config == model
  assert set(resolved.sources.values()) == {FILE}
  resolved = resolve(SamplingConfig(use_generation_config=False), model)
  without = {**DEFAULTS, 'eos_token_id': model.eos_token_id}
  assert resolved.config == SamplingConfig(
    **without, use_generation_config=False
  )
  sources = resolved.sources
  assert sources.pop('eos_token_id') == FILE  # a model's own in any case
  assert set(sources.values()) == {'default'}
  # What is resolved has no gap that a file could fill.
  again = resolve(resolve(NOTHING, NOTHING).config, model).config
  assert again == SamplingConfig(**DEFAULTS)


def test_log_probabilities_are_the_callers_business_alone():
  for given in (None, 0, 5):
    model = SamplingConfig(top_p=0.8, logprobs=3)
    resolved = resolve(SamplingConfig(logprobs=given), model)
    assert resolved.config.logprobs == given
    assert 'logprobs' not in resolved.sources
    # They make no other text, so nothing is said of them.
    assert 'logprobs' not in resolved.describe()
    assert not resolved.is_remarkable
  fields = {'logprobs': 'x', 'output_scores': True, 'output_logits': True}
  assert from_generation_config(fields, WHERE) == NOTHING


# ---- sampling or greedy

SAMPLING_FILE = SamplingConfig(do_sample=True, temperature=0.6)
GREEDY_FILE = SamplingConfig(do_sample=False)


@pytest.mark.parametrize(
  'given, model, temperature',
  [
    # 0 is greedy, whatever the file says.
    ({'temperature': 0}, SAMPLING_FILE, None),
    ({'temperature': 0}, NOTHING, None),
    # Above 0 is sampling, whatever the file says.
    ({'temperature': 0.3}, GREEDY_FILE, 0.3),
    ({'temperature': 0.3}, NOTHING, 0.3),
    ({'temperature': 0.3}, SAMPLING_FILE, 0.3),
    # do_sample is plainer than that.
    ({'temperature': 0.3, 'do_sample': False}, SAMPLING_FILE, None),
    ({'do_sample': False}, SAMPLING_FILE, None),
    ({'do_sample': True}, GREEDY_FILE, 1.0),
    ({'do_sample': True}, SAMPLING_FILE, 0.6),
    # The file alone.
    ({}, SAMPLING_FILE, 0.6),
    ({}, SamplingConfig(do_sample=True), 1.0),
    ({}, SamplingConfig(temperature=0.6), None),
    ({'use_generation_config': False}, SAMPLING_FILE, None),
    ({'use_generation_config': False, 'do_sample': True}, SAMPLING_FILE, 1.0),
    # Settings of draws ask for none.
    ({'top_p': 0.9, 'top_k': 3, 'min_p': 0.1, 'seed': 1}, NOTHING, None),
  ],
)
def test_whether_tokens_are_drawn(given, model, temperature):
  config = resolve(SamplingConfig(**given), model).config
  assert config.samples == (temperature is not None)
  if config.samples:
    assert config.temperature == temperature


# ---- settings that contradict each other


@pytest.mark.parametrize(
  'given, model, said',
  [
    (
      {'min_new_tokens': 9, 'max_new_tokens': 8},
      {},
      ['min_new_tokens=9', 'max_new_tokens=8 (given)'],
    ),
    (
      {'min_new_tokens': 9},
      {'max_new_tokens': 8},
      ['min_new_tokens=9', f'max_new_tokens=8 ({FILE})'],
    ),
    (
      {'min_new_tokens': 129},
      {},
      ['min_new_tokens=129', 'max_new_tokens=128 (default)'],
    ),
    (
      {'max_new_tokens': 0},
      {'min_new_tokens': 1},
      ['min_new_tokens=1', 'max_new_tokens=0 (given)'],
    ),
  ],
)
def test_more_tokens_at_least_than_at_most(given, model, said):
  with pytest.raises(InputError) as error:
    resolve(SamplingConfig(**given), SamplingConfig(**model))
  for part in said:
    assert part in str(error.value)


def test_as_many_tokens_at_least_as_at_most():
  given = SamplingConfig(min_new_tokens=8, max_new_tokens=8)
  assert resolve(given, NOTHING).config.min_new_tokens == 8
  given = SamplingConfig(max_new_tokens=8, use_generation_config=False)
  model = SamplingConfig(min_new_tokens=9)
  assert resolve(given, model).config.min_new_tokens == 0


# ---- what is said


def described(model=NOTHING, **given):
  resolved = resolve(SamplingConfig(**given), model)
  line = resolved.describe()
  assert '\n' not in line
  return line, resolved.is_remarkable


def test_the_silent_top_k_is_named_where_tokens_are_drawn():
  line, is_remarkable = described(temperature=0.6)
  assert line.startswith('sampling: temperature=0.6,')
  assert 'top_k=50 (default)' in line and is_remarkable
  line, is_remarkable = described()
  assert line.startswith('greedy decoding: ')
  assert 'top_k' not in line and not is_remarkable
  line, is_remarkable = described(temperature=0.0)
  assert 'top_k' not in line and not is_remarkable


def test_what_was_asked_for_is_nothing_to_remark():
  for top_k in (0, 7):
    line, is_remarkable = described(temperature=0.6, top_k=top_k)
    assert f'top_k={top_k},' in line and not is_remarkable
  line, is_remarkable = described(repetition_penalty=1.2, max_new_tokens=3)
  assert 'repetition_penalty=1.2,' in line and 'max_new_tokens=3' in line
  assert not is_remarkable


@pytest.mark.parametrize(
  'name', ['temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty']
)
def test_what_the_file_changes_is_named_with_the_file(name):
  value = VALUES[name][1]
  model = SamplingConfig(**{name: value})
  line, is_remarkable = described(model, do_sample=True)
  assert f'{name}={value} ({FILE})' in line and is_remarkable
  line, is_remarkable = described(
    model, do_sample=True, top_k=0, use_generation_config=False
  )
  assert FILE not in line and not is_remarkable


@pytest.mark.parametrize(
  'name', ['repetition_penalty', 'min_new_tokens', 'stop_strings']
)
def test_what_changes_greedy_text_too_is_named(name):
  value = VALUES[name][1]
  line, is_remarkable = described(SamplingConfig(**{name: value}))
  assert line.startswith('greedy decoding: ')
  assert f'{name}={value!r} ({FILE})' in line and is_remarkable


def test_a_file_that_draws_is_remarked_upon():
  model = SamplingConfig(do_sample=True, top_k=0)
  line, is_remarkable = described(model)
  assert line.startswith('sampling: ') and is_remarkable
  assert not described(model, do_sample=True)[1]
  # Greedy text has an end; that is no remark.
  model = SamplingConfig(eos_token_id=3)
  line, is_remarkable = described(model)
  assert 'eos' not in line and not is_remarkable


@pytest.mark.parametrize(
  'given, idle',
  [
    ({'top_p': 0.9}, 'top_p=0.9'),
    ({'top_k': 7}, 'top_k=7'),
    ({'min_p': 0.1}, 'min_p=0.1'),
    ({'temperature': 0.6, 'do_sample': False}, 'temperature=0.6'),
    ({'top_k': 7, 'top_p': 0.9}, 'top_k=7, top_p=0.9'),
  ],
)
def test_what_means_nothing_to_greedy_decoding_is_named(given, idle):
  line, is_remarkable = described(**given)
  assert line.startswith('greedy decoding: ')
  assert line.endswith(f'; without effect: {idle}') and is_remarkable
  # It has an effect where tokens are drawn.
  given = {'temperature': 0.6, 'top_k': 0, **given, 'do_sample': True}
  line, is_remarkable = described(**given)
  assert 'without effect' not in line and not is_remarkable


def test_what_would_change_nothing_anyway_is_not_idle():
  line, is_remarkable = described(top_p=1.0, top_k=0, min_p=0.0, seed=3)
  assert 'without effect' not in line and not is_remarkable
  # What the file says of draws is for those who draw.
  model = SamplingConfig(temperature=0.6, top_p=0.9)
  line, is_remarkable = described(model)
  assert 'top_p' not in line and not is_remarkable


# ---- generation_config.json


def refusal(fields, where=WHERE):
  with pytest.raises(InputError) as error:
    from_generation_config(fields, where)
  said = str(error.value)
  assert said.startswith(f'{where}: ') and '\n' not in said
  return said.removeprefix(f'{where}: ')


def test_what_the_file_says_is_taken():
  fields = {name: v for name, (_, v) in VALUES.items() if name != 'seed'}
  fields = {k: list(v) if type(v) is tuple else v for k, v in fields.items()}
  found = from_generation_config({**fields, 'seed': 3, 'x': 'y'}, WHERE)
  wanted = {name: v for name, (_, v) in VALUES.items()}
  assert found == SamplingConfig(**{**wanted, 'seed': None})
  assert from_generation_config({}, WHERE) == NOTHING
  assert from_generation_config(dict.fromkeys(fields), WHERE) == NOTHING


@pytest.mark.parametrize('eos, wanted', [(2, (2,)), ([2], (2,)), ([], ())])
def test_one_end_or_several(eos, wanted):
  found = from_generation_config({'eos_token_id': eos}, WHERE)
  assert found.eos_token_id == wanted


@pytest.mark.parametrize('name', sampling_config._UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(name):
  neutral = sampling_config._UNSUPPORTED[name]
  for value in (7, 0.5, [[1, 2]], True):
    if value in neutral:  # True is 1
      continue
    said = refusal({'temperature': 0.6, name: value})
    assert said.startswith(f'{name}={value!r} is not supported')
    assert 'sampling.use_generation_config=False' in said
  for value in (None, *neutral):
    found = from_generation_config({'top_k': 3, name: value}, WHERE)
    assert found == SamplingConfig(top_k=3)


@pytest.mark.parametrize(
  'name, value',
  [
    ('do_sample', 'yes'),
    ('temperature', -1),
    ('temperature', '0.6'),
    ('top_k', 1.5),
    ('top_p', 0),
    ('top_p', 1.5),
    ('min_p', 2),
    ('repetition_penalty', 0),
    ('eos_token_id', -1),
    ('eos_token_id', '</s>'),
    ('stop_strings', 5),
    ('stop_strings', ''),
    ('max_new_tokens', -1),
    ('min_new_tokens', True),
  ],
)
def test_a_wrong_value_is_refused_with_the_file(name, value):
  assert refusal({name: value}).startswith(f'{name}={value!r}: expected ')


def test_there_may_be_any_number_of_ends():
  many = list(range(300))
  found = from_generation_config({'eos_token_id': many}, WHERE)
  assert found.eos_token_id == tuple(many)
  said = refusal({'eos_token_id': [*many, -1]})
  assert said.startswith('eos_token_id=(0, 1, 2, ') and len(said) < 200
  assert said.endswith(': expected a token id or several')


def test_a_wrong_value_in_a_list_is_refused_with_the_file():
  assert refusal({'eos_token_id': [2, -1]}).startswith('eos_token_id=(2, -1)')
  assert refusal({'stop_strings': ['a\n', '']}).startswith('stop_strings=')


def test_the_files_name_is_said_as_it_is():
  where = f'my.sampling.models/{FILE}'
  assert refusal({'top_k': -1}, where).startswith('top_k=-1: ')


# ---- Hugging Face's own table

# Names that do nothing to what we write: other kinds of models, what is returned,
# how it is computed, what only beams or an assistant read, and max_length, which
# max_new_tokens takes the place of.
OTHER_NAMES = {
  *('bos_token_id', 'pad_token_id', 'decoder_start_token_id'),
  *('output_attentions', 'output_hidden_states', 'output_logits'),
  *('output_scores', 'return_dict_in_generate', 'transformers_version'),
  *('use_cache', 'cache_config', 'cache_implementation', 'max_cache_len'),
  *('compile_config', 'disable_compile', 'continuous_batching_config'),
  *('low_memory', 'prefill_chunk_size', 'max_length', 'renormalize_logits'),
  *('early_stopping', 'length_penalty'),
  *('is_assistant', 'num_assistant_tokens', 'num_assistant_tokens_schedule'),
  *('assistant_confidence_threshold', 'assistant_early_exit'),
  *('assistant_ensemble_weight', 'assistant_lookbehind', 'target_lookbehind'),
  *('prompt_lookup_num_tokens', 'max_matching_ngram_size'),
  *('speculation_type', 'use_mtp'),
}


def test_defaults_are_hugging_faces():
  theirs = GenerationConfig._get_default_generation_params()
  common = [name for name in FIELDS if name in theirs]
  assert {'do_sample', 'temperature', 'top_k', 'top_p'} < set(common)
  for name in common:
    assert DEFAULTS[name] == theirs[name], name
  # The others are off, as theirs are where none is set; but a text must end.
  config = GenerationConfig()
  for name in set(FIELDS) - set(common) - {'seed'}:
    assert getattr(config, name) is None, name
  off = set(FIELDS) - set(common) - {'seed', 'max_new_tokens'}
  assert not any(DEFAULTS[name] for name in off)


def test_a_file_with_their_defaults_is_taken():
  theirs = GenerationConfig._get_default_generation_params()
  found = from_generation_config(theirs, WHERE)
  assert resolve(NOTHING, found).config == SamplingConfig(**DEFAULTS)
  # Not by chance: it names what we do not support, at values that do nothing.
  assert len(theirs.keys() & sampling_config._UNSUPPORTED.keys()) > 10


def test_every_setting_of_theirs_is_read_refused_or_harmless():
  theirs = {n for n in vars(GenerationConfig()) if not n.startswith('_')}
  read = set(FIELDS) - {'seed'}
  refused = set(sampling_config._UNSUPPORTED)
  assert not refused & OTHER_NAMES
  assert theirs - read - refused - OTHER_NAMES == set()
