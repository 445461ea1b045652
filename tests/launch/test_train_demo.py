"""The trainer's launcher from corpus to a folder that the engine reads."""

import contextlib
import json
import os

from absl.testing import flagsaver
from cli import common
from ml_collections import ConfigDict
import pytest
import train_demo

from swift_jax.demo import corpus
from swift_jax.errors import InputError
from swift_jax.files import atomic
from swift_jax.model import skip_mask
from swift_jax.runtime.engine import Engine

OVERRIDES = {
  'model': {
    'vocab_size': 300,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 4,
    'num_attention_heads': 2,
    'num_key_value_heads': 1,
    'head_dim': 10,
  },
  'train': {'steps': 1, 'batch_size': 2, 'seq_len': 16, 'optimizer': 'adamw'},
}


@pytest.fixture
def smaller(monkeypatch):
  """A third of the corpus and a short search."""
  monkeypatch.setattr(train_demo, 'SWAPS', 2)
  # Cannot be done once jax has run, as it may have here.
  monkeypatch.setattr(train_demo, '_split_cpu', lambda devices: None)
  every = corpus.source_files()
  monkeypatch.setattr(corpus, 'source_files', lambda: every[::3])


def run(workdir, output):
  config = common.merge(ConfigDict(OVERRIDES), train_demo.SECTIONS)
  with flagsaver.flagsaver(workdir=workdir, output=output):
    train_demo.flags.FLAGS.mark_as_parsed()
    train_demo.main(config)


def test_from_corpus_to_engine(tmp_path, smaller, capsys):
  output = tmp_path / 'model'
  run(str(tmp_path / 'work'), str(output))
  card = (output / 'README.md').read_text()
  assert '1 steps of 2 x 16' in card
  assert 'stochastic depth | yes' in card
  assert '{' not in card
  assert card in capsys.readouterr().out
  engine = Engine.from_pretrained(str(output))
  assert engine.cfg.dtype == 'bfloat16'
  (sets,) = json.loads((output / 'skip_sets.json').read_text()).values()
  found = skip_mask.from_lists(**sets, num_layers=4)
  assert found.num_skipped() == skip_mask.num_to_skip(4, 0.45) == 1
  text = 'def f(x):\n  return x\n'
  assert engine.tokenizer.decode(engine.encode([text])[0]) == text


@pytest.mark.parametrize('flag', ['workdir', 'output'])
def test_folders_that_cannot_be_written_are_named_before_training(
  tmp_path, flag
):
  (tmp_path / 'file').touch()
  folders = {'workdir': str(tmp_path), 'output': str(tmp_path / 'out')}
  folders[flag] = str(tmp_path / 'file')
  with pytest.raises(InputError, match=f'--{flag}=.*file: cannot be written'):
    run(**folders)


@pytest.mark.parametrize('flag', ['workdir', 'output'])
def test_folders_are_one_runs(tmp_path, flag):
  folders = {name: str(tmp_path / name) for name in ('workdir', 'output')}
  with contextlib.ExitStack() as stack:
    if flag == 'workdir':
      stack.enter_context(atomic.folder(folders['workdir'], 'x'))
    else:
      stack.enter_context(train_demo.claimed(folders['output']))
    said = f'--{flag}={tmp_path}/{flag}: cannot be written: another run'
    with pytest.raises(InputError, match=said):
      run(**folders)
  assert os.listdir(tmp_path) == []


def test_a_workdir_is_needed(tmp_path):
  with pytest.raises(InputError, match='--workdir'):
    run(None, str(tmp_path))
