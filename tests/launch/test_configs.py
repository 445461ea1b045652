"""Every config file loads, overrides only what exists, and says how it is run."""

import ast
import pathlib
import re

from cli import common
from ml_collections import ConfigDict
import pytest
import train_demo

from swift_jax.config.settings import DecodeConfig, DraftConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.model import skip_mask
from swift_jax.search.files import cached_sets

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'configs').glob('*.py'))
MODELS = {
  'codellama_13b',
  'codellama_34b',
  'deepseek_coder_33b',
  'llama2_13b',
  'llama2_13b_chat',
  'llama2_70b',
  'llama2_70b_chat',
  'llama2_7b',
  'llama2_7b_chat',
  'llama3_1_8b',
  'llama3_2_1b',
  'llama3_2_3b',
  'llama3_70b',
  'yi_34b',
}


def sections(file: pathlib.Path):
  is_training = file.stem == 'train_demo'
  return train_demo.SECTIONS if is_training else common.SECTIONS


def docstring(file: pathlib.Path) -> str:
  return ast.get_docstring(ast.parse(file.read_text())) or ''


def test_there_is_one_for_each_model():
  names = {file.stem for file in FILES}
  assert names == MODELS | {'demo', 'tiny', 'train_demo'}


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_config_loads(file):
  overrides = common.read_config(str(file))
  merged = common.merge(overrides, sections(file))
  assert merged.is_locked
  for name, cls in sections(file).items():
    made = common.section(merged, name, cls)
    for field, value in overrides.get(name, {}).items():
      assert getattr(made, field) == value
  assert f'--config=configs/{file.name}' in docstring(file)
  assert 'Expect' in docstring(file)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_what_the_docstring_counts_is_right(file):
  """Layers and skipped sublayers, by the function that the search uses."""
  said = re.search(
    r'has (\d+) layers: (\d+) of its\s+(\d+) free sublayers', docstring(file)
  )
  assert (said is not None) == (file.stem in MODELS)
  if said:
    layers, skipped, free = map(int, said.groups())
    ratio = common.read_config(str(file)).search.skip_ratio
    assert free == skip_mask.num_free(layers)
    assert skipped == skip_mask.num_to_skip(layers, ratio)


def test_an_empty_config_is_the_defaults():
  merged = common.merge(ConfigDict(), common.SECTIONS)
  assert common.section(merged, 'decode') == DecodeConfig()
  assert common.section(merged, 'draft') == DraftConfig()
  assert common.section(merged, 'search') == SearchConfig()


@pytest.mark.parametrize(
  'overrides, said',
  [
    ({'draft': {'nope': 1}}, 'config.draft.nope=1: no such field'),
    ({'nope': {'x': 1}}, 'config.nope: no such section.*draft'),
    ({'draft': 1}, 'config.draft=1: expected a section'),
    ({'draft': {'max_draft_length': 'x'}}, "config.draft.max_draft_length='x'"),
    ({'compilation_cache_dir': 3}, 'config.compilation_cache_dir=3'),
  ],
)
def test_what_does_not_exist_is_named(overrides, said):
  with pytest.raises(InputError, match=said):
    common.merge(ConfigDict(overrides), common.SECTIONS)


def test_published_sets_are_those_that_docstrings_name():
  named = re.findall(
    r'--config\.search\.cache_name=(\S+)', ' '.join(map(docstring, FILES))
  )
  assert set(named) == {s.name for s in cached_sets.read('published')}
