"""Every config file loads, overrides only what exists, and says how it is run."""

import ast
import pathlib
import re
import runpy

from absl import flags
from cli import common
from ml_collections import ConfigDict, config_flags
import pytest
import train_demo

from swift_jax.config.settings import DecodeConfig, DraftConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.model import skip_mask
from swift_jax.search.files import cached_sets

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'configs'
LLAMA = FOLDER / 'llama.py'
# Each with its layers, as its config.json on the hub says.
MODELS = {
  'codellama_13b': 40,
  'codellama_34b': 48,
  'deepseek_coder_33b': 62,
  'llama2_13b': 40,
  'llama2_13b_chat': 40,
  'llama2_70b': 80,
  'llama2_70b_chat': 80,
  'llama2_7b': 32,
  'llama2_7b_chat': 32,
  'llama3_1_8b': 32,
  'llama3_2_1b': 16,
  'llama3_2_3b': 28,
  'llama3_70b': 80,
  'yi_34b': 60,
}
OTHERS = ('demo', 'tiny', 'train_demo')
# Behind `--config=`, from the checkout's root.
CONFIGS = [
  *(f'configs/llama.py:{name}' for name in MODELS),
  *(f'configs/{name}.py' for name in OTHERS),
]
TEXTS = {'.ipynb', '.md', '.py', '.sh', '.yaml'}

each_model = pytest.mark.parametrize('name', MODELS)


def docstring(file: pathlib.Path) -> str:
  return ast.get_docstring(ast.parse(file.read_text())) or ''


def rows() -> dict[str, tuple[int, int, int, str]]:
  """The table of the docstring, by the model's name."""
  found = re.findall(
    r'^  (\w+) +(\d+) +(\d+) +(\d+)  (\S+)$', docstring(LLAMA), re.M
  )
  return {name: (*map(int, of[:3]), of[3]) for name, *of in found}


def test_there_is_one_for_each_model():
  files = {file.stem for file in FOLDER.glob('*.py')}
  assert files == {'llama', *OTHERS}
  assert runpy.run_path(str(LLAMA))['MODELS'].keys() == MODELS.keys()


@pytest.mark.parametrize('config', CONFIGS)
def test_config_loads(config):
  overrides = common.read_config(f'{ROOT}/{config}')
  is_training = config == 'configs/train_demo.py'
  sections = train_demo.SECTIONS if is_training else common.SECTIONS
  merged = common.merge(overrides, sections)
  assert merged.is_locked
  for name, cls in sections.items():
    made = common.section(merged, name, cls)
    for field, value in overrides.get(name, {}).items():
      assert getattr(made, field) == value
  file, _, _ = config.partition(':')
  assert f'--config={file}' in docstring(ROOT / file)
  assert 'Expect' in docstring(ROOT / file)
  # The flag library reads the same from the same flag.
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  values(['program', f'--config={ROOT}/{config}'])
  assert values.config.to_dict() == overrides.to_dict()


@each_model
def test_a_name_is_that_of_its_model(name):
  """`llama2_13b_chat` is `Llama-2-13b-chat-hf`, whoever gives it out."""
  config = common.read_config(f'{LLAMA}:{name}')
  _, _, model = config.model.path.lower().partition('/')
  words = re.split(r'[-_.]', model)
  spelt = ''.join(w for w in words if w not in ('meta', 'hf', 'base'))
  assert spelt == name.replace('_', '')
  assert config.model.dtype == 'bfloat16'


@each_model
def test_what_the_docstring_counts_is_right(name):
  """Layers and skipped sublayers, by the function that the search uses."""
  layers, free, skipped, _ = rows()[name]
  ratio = common.read_config(f'{LLAMA}:{name}').search.skip_ratio
  assert layers == MODELS[name]
  assert free == skip_mask.num_free(layers)
  assert skipped == skip_mask.num_to_skip(layers, ratio)


def test_published_sets_are_those_that_the_docstring_names():
  published = {entry.name: entry for entry in cached_sets.read('published')}
  named = {name: row[3] for name, row in rows().items() if row[3] != '-'}
  assert sorted(named.values()) == sorted(published)
  for name, set_name in named.items():
    published[set_name].mask(MODELS[name])  # refused where it does not fit
    model, _, _ = set_name.partition('/')
    assert model.replace('-', '') == name.replace('_', '')
  (example,) = re.findall(r'\.cache_name=(\S+)', docstring(LLAMA))
  assert example in published


@pytest.mark.parametrize(
  'name, said',
  [
    ('', ': a name is missing'),
    (':', ':: a name is missing'),
    (':llama2', ":llama2: no model is called 'llama2'"),
    (':llama2_7b.py', ":llama2_7b.py: no model is called 'llama2_7b.py'"),
  ],
)
def test_a_name_that_is_missing_or_unknown_is_refused(launch, name, said):
  status, out, err = launch(f'--config={LLAMA}{name}', '--prompt=x')
  assert (status, out) == (2, '')
  known, _, names = err.partition(' with one of ')
  expected = 'expected configs/llama.py:NAME'
  assert known == f'generate.py: --config={LLAMA}{said}; {expected}'
  assert sorted(names.removesuffix('\n').split(', ')) == sorted(MODELS)


def test_a_colon_may_stand_in_the_name_of_a_folder(tmp_path):
  (tmp_path / 'a:b').mkdir()
  file = tmp_path / 'a:b' / 'llama.py'
  file.write_text(LLAMA.read_text())
  config = common.read_config(f'{file}:yi_34b')
  assert config == common.read_config(f'{LLAMA}:yi_34b')


def test_names_that_files_give_are_known():
  """Documents, launchers and the files for clouds; not all of them are run."""
  files = [*ROOT.glob('*.md'), *FOLDER.iterdir()]
  for folder in ('docs', 'launch', 'notebooks'):
    files += (ROOT / folder).rglob('*.*')
  texts = [file.read_text() for file in files if file.suffix in TEXTS]
  named = re.findall(r'configs/llama\.py(?!`)(?::(\w+))?', '\n'.join(texts))
  assert len(named) > 10 and {*named} <= {*MODELS, 'NAME'}


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
