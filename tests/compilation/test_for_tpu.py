"""libtpu's compiler, where it is installed, on four layers as wide as a real model's."""

import dataclasses

import pytest
from small_run import small_run

from swift_jax.compilation import child, targets
from swift_jax.compilation.programs import Shapes
from swift_jax.config import shapes as published
from swift_jax.config.settings import DraftConfig, MeshConfig, SearchConfig
from swift_jax.model.skip_mask import KnownMask

pytest.importorskip('libtpu')
pytestmark = pytest.mark.nightly

LAYERS = 4  # of two layers libtpu makes no loop, and copies slices


@pytest.fixture(scope='module')
def run():
  wide = dataclasses.replace(
    published.SHAPES['llama2_7b'], num_hidden_layers=LAYERS
  )
  return dataclasses.replace(
    small_run(batch=2, mesh=MeshConfig(1, 2), context=900),
    cfg=wide,
    machine=targets.find('v5e:2x2'),
    draft=DraftConfig(),
    search=SearchConfig(),
  )


@pytest.fixture(scope='module')
def compiled(run):
  names = ['prefill', 'plain', 'rounds', 'score', 'importance', child.COSTS]
  return dict(zip(names, child.results(run, names), strict=True))


def test_it_is_traced_for_the_target(run):
  shapes = Shapes(run)
  assert shapes.target.drafts_stay_gated and shapes.cache.is_stacked
  assert isinstance(shapes.target.none_skipped, KnownMask)
  assert 'known' not in shapes.names


def test_sizes_are_those_of_the_shapes(run, compiled):
  least = sum(Shapes(run).parts.values())
  for name in ('plain', 'score'):
    program = compiled[name]
    assert not program.refused
    assert least <= program.arguments < 1.1 * least  # padding adds a little
  # It does not take the head.
  head = 2 * run.cfg.vocab_size * run.cfg.hidden_size // 2
  assert compiled['prefill'].arguments < 1.01 * (least - head)


def test_nothing_is_copied(run, compiled):
  """Temporaries are activations and logits.

  What a gate's branch slices outside of itself would be a copy, so that here a
  skipped sublayer's weights are not read.
  """
  parts = Shapes(run).parts
  for name in ('prefill', 'plain', 'rounds', 'score', 'importance'):
    program = compiled[name]
    assert program.temporaries < 0.2 * parts['weights'], name
    assert not program.copied_weights, name
    # The derivative copies the block of keys that it goes back through.
    assert not program.copied_cache or name == 'importance', name
  # Of a draft's pass at least the two gates, and the blocks of the cache.
  assert compiled['rounds'].conditionals > compiled['plain'].conditionals + 2


def test_a_known_mask_takes_no_gates(compiled):
  # What is left reads a block of the cache or not, and looks for penalties.
  assert compiled['plain'].conditionals <= 2


def test_the_program_does_not_grow_with_depth(run, compiled):
  cfg = dataclasses.replace(run.cfg, num_hidden_layers=4 * LAYERS)
  (deep,) = child.results(dataclasses.replace(run, cfg=cfg), ['plain'])
  plain = compiled['plain']
  assert deep.code < 1.1 * plain.code
  assert deep.collectives == plain.collectives
  assert deep.arguments > 1.5 * plain.arguments


def test_each_sublayer_has_its_all_reduce(compiled):
  """A loop's body counts once."""
  count, nbytes = compiled['plain'].collectives['all-reduce']
  assert count >= 2 and nbytes >= 2 * 2 * 4096 * 2


def test_the_compilers_own_estimate_rises_with_the_work(run, compiled):
  costs = compiled[child.COSTS]
  assert set(costs) == {'compiler', 'bandwidth'}
  for one in costs.values():
    assert 1e-5 < one.step_s < 1 and one.attn > 0 and one.mlp > 0
    assert 1 <= one.verify[0] <= one.verify[1]
