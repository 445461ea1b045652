"""After warm-up nothing compiles again, and nothing moves in secret."""

import dataclasses
import json

from compilations import Compilations
import jax
import numpy as np
import pytest
import tiny_model
from tiny_model import CFG, PROMPTS_OF_DIFFERENT_LENGTH

from swift_jax.model import skip_mask as skip_masks
from swift_jax.runtime.engine import Engine


def test_new_settings_compile_nothing():
  jax.clear_caches()  # other tests may have compiled the same
  rng = np.random.default_rng(0)
  compilations = Compilations()
  tiny_model.engine(confidence_threshold=0.3).warmup(tiny_model.decode(), 12)
  tiny_model.engine().warmup(tiny_model.decode('plain'), 12)
  warm = compilations.count
  assert warm > 0
  engine = tiny_model.engine(confidence_threshold=0.3)
  engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  for limit, threshold, cap in ((3, 0.0, 1), (40, 0.7, 25), (17, 1.0, 4)):
    engine = tiny_model.engine(
      skip_masks.from_bits(tiny_model.random_bits(rng, 0.4)),
      (int(rng.integers(CFG.vocab_size)),),
      confidence_threshold=threshold,
      max_draft_length=cap,
    )
    prompts = [
      rng.integers(0, CFG.vocab_size, size).tolist()
      for size in rng.integers(1, 30, 2)
    ]
    for method in ('plain', 'swift'):
      engine.generate(prompts, tiny_model.decode(method, max_new_tokens=limit))
  assert compilations.count == warm


def test_new_sampling_settings_compile_nothing():
  """Temperature, cuts, penalties, seeds, ends and stop strings are traced."""
  mask = skip_masks.uniform(CFG.num_hidden_layers, 0.4)
  letters = tiny_model.Letters()
  engine = tiny_model.engine(mask, (), letters, confidence_threshold=0.3)
  compilations = Compilations()
  for method in ('plain', 'swift'):
    engine.warmup(tiny_model.decode(method, temperature=0.5), 12)
  warm = compilations.count
  assert warm > 0
  for settings in (
    {'temperature': 1.3, 'top_k': 0, 'seed': 2**32 - 1},
    {'temperature': 0.7, 'top_k': 3, 'top_p': 0.9, 'min_p': 0.1},
    {'temperature': 1, 'repetition_penalty': 1.2, 'min_new_tokens': 4},
    {'temperature': 1, 'eos_token_id': (1, 2), 'stop_strings': ('a',)},
  ):
    for method in ('plain', 'swift'):
      with jax.transfer_guard('disallow'):
        engine.generate(
          PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode(method, **settings)
        )
  assert compilations.count == warm


@pytest.mark.parametrize(
  'method', ['plain', pytest.param('swift', marks=pytest.mark.nightly)]
)
def test_shorter_prompts_and_limits_compile_nothing(method):
  """Prompts and limits that would fit a smaller cache use the warm one."""
  cfg = dataclasses.replace(CFG, max_position_embeddings=400)
  engine = Engine(cfg, *tiny_model.weights(cfg))
  engine.set_skip_mask(skip_masks.uniform(CFG.num_hidden_layers, 0.4))
  compilations = Compilations()
  longest = tiny_model.decode(method, max_new_tokens=30)
  engine.warmup(longest, 150)
  warm = compilations.count
  assert warm > 0
  for length in (150, 1, 40, 149):
    engine.generate([[3] * length], longest)
  engine.generate([[3] * 20], tiny_model.decode(method, max_new_tokens=2))
  assert compilations.count == warm
  # The counter counts: what the warm cache cannot hold does compile.
  engine.generate([[3] * 300], longest)
  assert compilations.count > warm


SEARCHES = {
  'random': {},
  'gp': {'bayes_interval': 1},
  'map': {'scoring': 'map', 'importance': False},
  'paper': {'recipe': 'paper'},
}


def test_a_search_compiles_while_warming_up_and_never_again():
  """Scoring in both ways, sensitivities and the process: not one program more
  after 10 evaluations, after 100, from a state, and on another stream."""
  jax.clear_caches()
  compilations = Compilations()
  for name, settings in SEARCHES.items():
    before = compilations.count
    endless = {'target_matchness': 1.0, 'patience': 999}
    engine = tiny_model.engine(search={**endless, **settings})
    engine.warmup(tiny_model.decode(), 20)
    warm, searcher = compilations.count, engine.searcher
    # Each one needs something that those before it did not compile.
    assert warm > before or name == 'map'
    for evaluations in (10, 100):
      while searcher.evaluations < evaluations:
        engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
      assert compilations.count == warm, (name, evaluations)
    searcher.restore(json.loads(json.dumps(searcher.state())))
    searcher.rest()
    if name != 'paper':  # which never restarts
      searcher._restart()
    engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
    assert compilations.count == warm, name
    assert searcher.restarts == (name != 'paper')


@pytest.mark.parametrize('name', SEARCHES)
def test_every_transfer_is_explicit(name):
  """Of passes, sensitivities and the process once it has started."""
  engine = tiny_model.engine(search=SEARCHES[name])
  with jax.transfer_guard('disallow'):
    engine.generate(PROMPTS_OF_DIFFERENT_LENGTH, tiny_model.decode())
  searcher = engine.searcher
  assert searcher.iterations > 0  # the search's transfers too
  assert (searcher._surrogate is not None) == (name == 'gp')
  assert (searcher._importance is not None) == (name in ('random', 'gp'))
