"""Skip masks: counts, conversions between the forms, and refusals."""

from hypothesis import given
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from swift_jax.errors import InputError
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.skip_mask import SkipMask

LAYERS = st.integers(3, 90)
RATIOS = st.floats(0, 1)


def rows(mask: SkipMask) -> list[list[bool]]:
  return [np.asarray(mask.attn).tolist(), np.asarray(mask.mlp).tolist()]


@given(LAYERS, RATIOS, st.integers(0, 2**32 - 1))
def test_masks_respect_the_ratio_and_the_ends(layers, ratio, seed):
  wanted = int(2 * (layers - 2) * ratio)
  free = skip_masks.num_free(layers)
  bits = skip_masks.random(np.random.default_rng(seed), free, wanted)
  for mask in skip_masks.uniform(layers, ratio), skip_masks.from_bits(bits):
    # It refuses a skipped first or last layer.
    assert (skip_masks.checked_bits(mask, layers) == mask.bits()).all()
    assert mask.num_layers == layers
    assert mask.num_skipped() == wanted
    assert mask.skip_ratio() == wanted / (2 * (layers - 2))


@given(LAYERS, RATIOS)
def test_uniform_spreads_over_depth_and_over_both_kinds(layers, ratio):
  mask = skip_masks.uniform(layers, ratio)
  in_order = np.stack(rows(mask), axis=1)[1:-1].reshape(-1)
  halves = in_order[: layers - 2].sum(), in_order[layers - 2 :].sum()
  assert abs(int(halves[0]) - int(halves[1])) <= 1


@given(LAYERS, RATIOS, st.integers(0, 2**32 - 1))
def test_every_form_leads_back(layers, ratio, seed):
  sizes = skip_masks.num_free(layers), skip_masks.num_to_skip(layers, ratio)
  bits = skip_masks.random(np.random.default_rng(seed), *sizes)
  mask = skip_masks.from_bits(bits)
  lists = mask.to_lists()
  assert (mask.bits() == bits).all()
  assert rows(skip_masks.from_lists(**lists, num_layers=layers)) == rows(mask)
  drawn = [line.split()[1] for line in mask.blocks().splitlines()]
  assert [[c == '░' for c in line] for line in drawn] == rows(mask)


def test_random_masks_are_uniform():
  """Each free sublayer is skipped equally often: 3 of 6, five deviations."""
  rng, draws = np.random.default_rng(0), 2000
  counts = sum(skip_masks.random(rng, 6, 3) for _ in range(draws))
  np.testing.assert_allclose(counts, draws / 2, atol=5 * (draws / 4) ** 0.5)


@pytest.mark.parametrize('layers', [0, 1, 2])
def test_models_without_a_free_sublayer(layers):
  assert skip_masks.num_free(layers) == 0
  assert skip_masks.none_skipped(layers).skip_ratio() == 0
  assert skip_masks.num_to_skip(layers, 1.0) == 0


@given(seed=st.integers(0, 99), skipped=st.integers(1, 13))
def test_a_neighbour_differs_by_one_exchange(seed, skipped):
  rng = np.random.default_rng(seed)
  bits = skip_masks.random(rng, 14, skipped)
  before = bits.copy()
  near = skip_masks.neighbour(rng, bits)
  assert (bits == before).all()
  assert (near & ~before).sum() == (before & ~near).sum() == 1


def test_several_masks_keep_the_candidate_axis():
  masks = [skip_masks.uniform(7, 0.4), skip_masks.none_skipped(7)]
  several = skip_masks.from_bits(np.stack([mask.bits() for mask in masks]))
  found = list(zip(several.attn, several.mlp, strict=True))
  assert [rows(SkipMask(*pair)) for pair in found] == list(map(rows, masks))


@pytest.mark.parametrize(
  'lists, said',
  [
    ({'attention': [0], 'mlp': []}, 'attention layer 0 is the first'),
    ({'attention': [], 'mlp': [6]}, 'mlp layer 6 is the first or the last'),
    ({'attention': [7], 'mlp': []}, 'layer 7 is not in a model of 7'),
    ({'attention': [-1], 'mlp': []}, 'layer -1'),
    ({'attention': [2, 2], 'mlp': []}, 'attention layer 2 comes twice'),
    ({'attention': [], 'mlp': [True]}, 'mlp holds True'),
    ({'attention': [], 'mlp': ['3']}, "mlp holds '3'"),
    ({'attention': [1.0], 'mlp': []}, 'attention holds 1.0'),
  ],
)
def test_bad_lists_are_named(lists, said):
  with pytest.raises(InputError, match=said):
    skip_masks.from_lists(**lists, num_layers=7)


@pytest.mark.parametrize(
  'attn, mlp, said',
  [
    (np.zeros(6, bool), np.zeros(7, bool), r'attn: expected bool\[7\].*\[6\]'),
    (np.zeros(7, bool), np.zeros((1, 7), bool), r'mlp: .*bool\[1, 7\]'),
    (np.zeros(7, int), np.zeros(7, bool), r'attn: .*got int64\[7\]'),
    (np.eye(7, dtype=bool)[0], np.zeros(7, bool), 'attn: layer 0 is'),
    (np.zeros(7, bool), np.eye(7, dtype=bool)[6], 'mlp: layer 6 is'),
  ],
)
def test_masks_that_do_not_fit_are_named(attn, mlp, said):
  with pytest.raises(InputError, match=said):
    skip_masks.checked_bits(SkipMask(attn, mlp), 7)


def test_a_mask_shows_its_layers_in_one_line():
  mask = skip_masks.from_lists([1, 3], [2], 5)
  assert repr(mask) == 'SkipMask(attention=[1, 3], mlp=[2], num_layers=5)'
  several = skip_masks.from_bits(np.stack([mask.bits()] * 2))
  assert repr(several) == 'SkipMask(attn=bool[2, 5], mlp=bool[2, 5])'


def test_what_stands_for_a_mask_shows_too():
  """On a device, as shares, traced, or with other objects as leaves."""
  mask = skip_masks.none_skipped(40)
  rows = 'SkipMask(attn={0}[40], mlp={0}[40])'
  assert repr(jax.device_put(mask)) == rows.format('bool')
  shares = SkipMask(mask.attn.astype('f4'), mask.mlp.astype('f4'))
  assert repr(shares) == rows.format('float32')
  seen = []
  jax.eval_shape(lambda mask: seen.append(repr(mask)), mask)
  assert seen == [rows.format('bool')]
  names = jax.tree.map(lambda _: None, mask)
  assert repr(names) == 'SkipMask(attn=None, mlp=None)'
