"""What is no text is refused by its name, wherever it comes from.

Half a character, as \\ud83d alone, comes out of JSON, and of bytes that are no UTF-8
on a command line; no tokenizer and no file takes it.
"""

import copy
import json
import re

import chain_model
import pytest

from swift_jax.checkpoint import hf_config
from swift_jax.config.checks import require_text
from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import SearchConfig
from swift_jax.errors import InputError
from swift_jax.evaluation import answers
from swift_jax.files import atomic
from swift_jax.runtime.engine import Engine
from swift_jax.search.files import cached_sets

HALF = 'a\ud83d'
TEMPLATE = '{% for m in messages %}{{ m.content }}{% endfor %}'


@pytest.fixture(scope='module', params=['byte_fallback', 'byte_level'])
def engine(request):
  tokenizer = copy.copy(getattr(chain_model, request.param)())
  tokenizer.chat_template = TEMPLATE
  return chain_model.engine(tokenizer)


def said(call, *arguments):
  with pytest.raises(InputError) as caught:
    call(*arguments)
  return str(caught.value)


@pytest.mark.parametrize(
  'prompts, name',
  [
    (HALF, 'prompt 0'),
    (['a', 'b', [5], HALF], 'prompt 3'),
    ([{'role': 'user', 'content': HALF}], "prompt 0: messages[0]['content']"),
    (
      ['a', [{'role': 'tool', 'content': 'a', 'calls': [{'x': [1, HALF]}]}]],
      "prompt 1: messages[0]['calls'][0]['x'][1]",
    ),
    ([{'role': HALF, 'content': 'a'}], "prompt 0: messages[0]['role']"),
  ],
)
def test_prompts(engine, prompts, name):
  wanted = f"{name}='a\\ud83d': expected whole characters"
  assert said(engine.generate, prompts) == wanted


def test_a_text_alone(engine):
  assert said(engine.encode_text, HALF).startswith("text='a\\ud83d': expected")
  assert said(engine.encode_text, [5, 6]) == 'text=[5, 6]: expected a string'


def test_answers():
  for name in ('category', 'model_id'):
    fields = {'question_id': 1, name: HALF}
    line = said(answers.parse, json.dumps(fields).encode(), 'x.jsonl, line 2')
    assert line.startswith('x.jsonl, line 2: not JSON: ')


def test_whole_characters_are_taken(engine):
  assert engine.encode('a\U0001f642é')
  assert engine.encode([{'role': 'user', 'content': 'a', 'n': [None, 1.5]}])


def test_settings():
  wanted = "stop_strings[1]='a\\ud83d': expected whole characters"
  with pytest.raises(InputError, match=re.escape(f'sampling.{wanted}')):
    SamplingConfig(stop_strings=('b', HALF))
  wanted = 'search.cache_name='
  assert said(cached_sets.check_name, HALF, 'search.cache_name').startswith(
    "search.cache_name='a\\ud83d'"
  )


def test_a_models_file(tmp_path):
  fields = {'stop_strings': ['b', HALF]}
  (tmp_path / 'generation_config.json').write_text(json.dumps(fields))
  line = said(hf_config.generation_defaults, tmp_path)
  wanted = "stop_strings[1]='a\\ud83d': expected whole characters"
  assert line == f'{tmp_path / "generation_config.json"}: {wanted}'


@pytest.mark.parametrize('field', ['save', 'record', 'cache'])
def test_paths(field):
  search = SearchConfig(**{field: HALF})
  line = said(lambda: Engine.from_pretrained('demo', search=search))
  assert line == f"search.{field}='a\\ud83d': not a path"


def test_bytes_that_are_no_text_may_be_a_path(tmp_path):
  """As a shell gives them to Python."""
  path = f'{tmp_path}/a\udcff'
  atomic.replace(atomic.writable(path, 'x'), 'content', 'x')
  assert atomic.read(path, 'x') == b'content'


def test_long_texts_are_shown_around_the_place():
  text = 'x' * 500 + HALF + 'y' * 500
  line = said(require_text, 'name', text)
  wanted = f"name='{'x' * 19}a\\ud83d{'y' * 20}': expected whole characters"
  assert line == wanted
