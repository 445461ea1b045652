"""The trainer learns, and goes on exactly where it stopped."""

import contextlib
import gc

from flax import nnx
from full_disk import files_up_to
import jax
import numpy as np
import pytest

from swift_jax.config.settings import ModelConfig
from swift_jax.demo import corpus, measuring, training
from swift_jax.demo.training import TrainConfig
from swift_jax.errors import InputError
from swift_jax.model import skip_mask

MODEL = ModelConfig(
  vocab_size=29,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=3,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=10,
  tie_word_embeddings=True,
)
TOKENS = np.tile(np.arange(23), 60)
SETTINGS = {
  'batch_size': 4,
  'seq_len': 12,
  'warmup': 2,
  'eval_every': 50,
  'save_every': 2,
  'eval_rows': 4,
}


@pytest.fixture(scope='module', autouse=True)
def compile_once(tmp_path_factory):
  """Every run jits functions of its own; what they compile to is the same."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = [getattr(jax.config, name) for name in names]
  jax.config.update(names[0], str(tmp_path_factory.mktemp('compiled')))
  jax.config.update(names[1], 0.1)
  yield
  for name, value in zip(names, before, strict=True):
    jax.config.update(name, value)


def train(directory, must_stop=lambda: False, **changes):
  cfg = TrainConfig(**{**SETTINGS, 'steps': 4, **changes})
  return training.train(MODEL, cfg, TOKENS, TOKENS, directory, must_stop)[1:]


@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_loss_falls(tmp_path, optimizer):
  run = {'steps': 60, 'save_every': 60, 'other_lr': 0.02}
  _, figures = train(tmp_path / 'ckpt', optimizer=optimizer, **run)
  assert figures['loss'] < 1.0 < np.log(29)
  assert figures['tokens'] == 60 * 4 * 12


@pytest.mark.nightly
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
  straight, _ = train(tmp_path / 'straight')
  real = training.rows

  def two_batches(tokens, cfg, step):
    batches = real(tokens, cfg, step)
    yield next(batches)
    yield next(batches)
    raise KeyboardInterrupt

  monkeypatch.setattr(training, 'rows', two_batches)
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / 'stopped')
  # Step 2 is in the checkpoint; two more batches end the run.
  resumed, figures = train(tmp_path / 'stopped')
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)
  # What is finished is evaluated only.
  again, same = train(tmp_path / 'stopped')
  jax.tree.map(np.testing.assert_array_equal, again, straight)
  assert same == figures and figures['seconds'] > 0


def test_a_run_that_is_told_to_stop_saves_its_step(tmp_path):
  straight, _ = train(tmp_path / 'straight')
  answers = iter([False, False, True])
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / 'told', lambda: next(answers))
  # Not the second step, which is saved anyway.
  assert (tmp_path / 'told' / '3').is_dir()
  resumed, _ = train(tmp_path / 'told')
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)


# Orbax's threads find the loop closed for which a save that failed has called them.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_full_disk_is_one_line_and_keeps_what_was_saved(
  tmp_path, capfd, monkeypatch
):
  real = training.ocp.training.Checkpointer.save

  def save(self, step, state, **how):
    with files_up_to(100) if step == 4 else contextlib.nullcontext():
      return real(self, step, state, **how)

  with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
    patch.setattr(training.ocp.training.Checkpointer, 'save', save)
    train(tmp_path / 'full')
  said = str(caught.value)
  assert said.startswith(f'{tmp_path}/full: step 4 cannot be written: ')
  assert said.endswith('; earlier checkpoints are whole') and '\n' not in said
  assert 'Traceback' not in capfd.readouterr().err
  straight, _ = train(tmp_path / 'straight')
  resumed, _ = train(tmp_path / 'full')
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)
  gc.collect()


def test_drops_follow_depth_and_spare_the_ends():
  cfg = TrainConfig(max_drop_rate=0.6)
  masks = [training.drop_mask(cfg, 11, step) for step in range(2000)]
  rates = np.mean([[mask.attn, mask.mlp] for mask in masks], axis=0)
  wanted = 0.6 * np.arange(11) / 10
  wanted[-1] = 0
  # A standard error of at most .011.
  assert np.abs(rates - wanted).max() < 0.05
  assert (rates[:, [0, -1]] == 0).all()
  # A function of seed and step alone, so that a run can go on.
  again = training.drop_mask(cfg, 11, 3)
  np.testing.assert_array_equal(again.attn, masks[3].attn)


def test_every_epoch_reads_each_window_once():
  cfg = TrainConfig(batch_size=2, seq_len=5)
  tokens = np.arange(1000)
  per_epoch = (1000 - 6 - 4) // 5 // 2
  batches = training.rows(tokens, cfg, 0)
  rows = [next(batches) for _ in range(2 * per_epoch)]
  starts = np.concatenate(rows[:per_epoch])[:, 0]
  assert len(set(starts.tolist())) == 2 * per_epoch
  # Going on in the middle gives the same rows, in the second epoch too.
  for step in (1, per_epoch - 1, per_epoch, per_epoch + 3):
    again = next(training.rows(tokens, cfg, step))
    np.testing.assert_array_equal(again, rows[step])


@pytest.mark.parametrize('count', range(206, 217))
def test_every_batch_is_full_whatever_the_offset(count):
  cfg = TrainConfig(batch_size=4, seq_len=5)
  batches = training.rows(np.arange(count), cfg, 0)
  for _ in range(100):  # ten epochs
    assert next(batches).shape == (4, 6)


def test_the_schedule_rises_holds_and_falls_to_zero():
  rate = training.schedule(TrainConfig(steps=100, warmup=10, decay=0.4), 0.02)
  rates = jax.jit(jax.vmap(rate))(np.array([0, 5, 10, 60, 80, 100]))
  np.testing.assert_allclose(rates, [0, 0.01, 0.02, 0.02, 0.01, 0], atol=1e-7)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
  with pytest.raises(InputError, match='train.matrix_lr=1e\\+30'):
    train(tmp_path / 'ckpt', matrix_lr=1e30, warmup=0)


def test_loss_is_the_mean_cross_entropy():
  graphdef, params = training.llama.init_model(MODEL, 0)
  rows = np.random.default_rng(0).integers(0, 29, (2, 9))
  mask = skip_mask.none_skipped(3)
  loss = training.make_loss(graphdef)(params, rows, mask)
  model = nnx.merge(graphdef, params)
  logits = np.asarray(model.logits(model(rows[:, :-1], mask)[0]), np.float64)
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  picked = np.take_along_axis(probs, rows[:, 1:, None], -1)
  np.testing.assert_allclose(loss, -np.log(picked).mean(), rtol=1e-5)


def test_the_found_skip_set_is_no_worse_than_the_start():
  graphdef, params = training.llama.init_model(MODEL, 0)
  rows = np.random.default_rng(0).integers(0, 29, (3, 12))
  matchness = measuring.make_matchness(graphdef)
  full, start = skip_mask.none_skipped(3), skip_mask.uniform(3, 0.5)
  found = measuring.find_skip_set(graphdef, params, rows, 3, 0.5, 5)
  assert found.num_skipped() == start.num_skipped() == 1
  assert matchness(params, rows, full, full) == 1
  before = matchness(params, rows, start, full)
  assert matchness(params, rows, found, full) >= before


def test_corpus_is_split_by_file():
  train, held_out = corpus.documents(False), corpus.documents(True)
  train, held_out = set(train), set(held_out)
  assert len(train) > 300 and len(held_out) >= 5
  assert not train & held_out
  assert all(len(text) >= 200 for text in held_out)


@pytest.mark.parametrize(
  'field, value',
  [
    ('optimizer', 'sgd'),
    ('max_drop_rate', 1.0),
    ('max_drop_rate', -0.1),
    ('steps', 0),
    ('batch_size', 1.5),
    ('save_every', -1),
    ('eval_rows', 0),
    ('matrix_lr', float('nan')),
    ('other_lr', -1.0),
    ('decay', 1.5),
    ('warmup', -1),
    ('seed', -1),
  ],
)
def test_bad_settings_are_named(field, value):
  with pytest.raises(InputError, match=f'train.{field}={value!r}'):
    TrainConfig(**{field: value})
