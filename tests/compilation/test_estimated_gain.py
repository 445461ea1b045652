"""Bytes, products and gains, each computed in a second way."""

import types

from flax import nnx
import jax
import numpy as np
import pytest
from small_run import CFG, small_run

from swift_jax.benchmark import measuring
from swift_jax.compilation import estimate
from swift_jax.compilation.programs import Shapes
from swift_jax.config.settings import MeshConfig
from swift_jax.model import llama
from swift_jax.model import skip_mask as skip_masks


@pytest.fixture(scope='module', params=[False, True], ids=['head', 'tied'])
def shapes(request):
  return Shapes(small_run(batch=3, tie_word_embeddings=request.param))


def test_bytes_of_a_plain_step_are_those_of_the_benchmark(shapes):
  cfg = shapes.run.cfg
  params = nnx.to_pure_dict(llama.init_model(cfg, 0)[1])
  model = types.SimpleNamespace(cfg=cfg, params=params)
  slots = shapes.target.capacity
  wanted = measuring.step_bytes(model, 3, slots) + 2 * shapes.logits(1)
  full = skip_masks.none_skipped(cfg.num_hidden_layers)
  assert estimate.moved(shapes, 1).of(full) == wanted


def test_products_are_those_that_xla_counts(shapes):
  cfg, width = shapes.run.cfg, 5
  full = skip_masks.none_skipped(cfg.num_hidden_layers)
  lowered = estimate._pass.lower(
    llama.abstract_model(cfg, 'gpu')[0],
    shapes.params,
    shapes.cache,
    jax.ShapeDtypeStruct((3, width), 'int32'),
    skip_masks.KnownMask.of(full),
  )
  counted = lowered.cost_analysis()['flops']
  # XLA counts norms, softmax and what does not multiply matrices too.
  assert 0.7 * counted < estimate.products(shapes, width).of(full) < counted


def test_what_is_skipped_is_not_moved(shapes):
  moved, layers = estimate.moved(shapes, 1), shapes.run.cfg.num_hidden_layers
  attn, mlp = np.zeros((2, layers), bool)
  attn[1], mlp[2:4] = True, True
  full = moved.of(skip_masks.none_skipped(layers))
  rest = moved.of(skip_masks.SkipMask(attn, mlp))
  assert full - rest == moved.attn + 2 * moved.mlp


def test_a_described_bandwidth_gives_a_plain_step_its_bytes():
  shapes = Shapes(small_run(bandwidth=1e9))
  (costs,) = estimate.costs(shapes).values()
  full = skip_masks.none_skipped(CFG.num_hidden_layers)
  bytes_of = estimate.moved(shapes, 1).of(full)
  assert costs.step_s == pytest.approx(bytes_of / 1e9)
  assert costs.draft(full.bits()) == pytest.approx(1)
  assert 1 <= costs.verify[0] < costs.verify[1]
  # Where products take longest, every token of a pass costs as much.
  shapes = Shapes(small_run(bandwidth=1e30, flops=1.0))
  (costs,) = estimate.costs(shapes).values()
  assert costs.verify == pytest.approx(estimate.WIDTHS)


@pytest.mark.parametrize('acceptance', [0.5, 0.9, 1.0])
@pytest.mark.parametrize('draft', [0.2, 0.6, 1.1])
def test_a_gain_is_that_of_rounds_that_are_played(acceptance, draft):
  verify, widths, longest, rounds = (1.0, 1.3), (8, 32), 12, 20_000
  found = estimate.gain(draft, verify, widths, longest, acceptance)
  rng = np.random.default_rng(0)
  speeds = [1.0]
  for n in range(1, longest + 1):
    right = rng.random((rounds, n)) < acceptance
    tokens = 1 + np.cumprod(right, axis=1).sum() / rounds
    speeds.append(tokens / (n * draft + verify[n >= 8]))
  assert found.speedup == pytest.approx(max(speeds), rel=0.01)
  assert speeds[found.draft_length] == pytest.approx(max(speeds), rel=0.01)


def test_a_mesh_splits_what_a_device_moves():
  one = estimate.moved(Shapes(small_run(batch=2)), 8)
  mesh = MeshConfig(1, 1)
  assert one == estimate.moved(Shapes(small_run(batch=2, mesh=mesh)), 8)
