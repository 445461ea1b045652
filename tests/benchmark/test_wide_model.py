"""A model made wider by zeros: more weights, the same text."""

import jax
from jax import tree_util
import numpy as np
import pytest
import tiny_model
from tiny_model import PROMPTS_OF_DIFFERENT_LENGTH as PROMPTS

from swift_jax.benchmark import wide_model
from swift_jax.errors import InputError


def test_a_wide_model_writes_the_same_text():
  engine = tiny_model.engine()
  wide = wide_model.widened(engine, 4)
  assert wide.cfg.hidden_size == 4 * tiny_model.CFG.hidden_size
  assert wide.cfg.num_attention_heads == 4 * tiny_model.CFG.num_attention_heads
  decode = tiny_model.decode('plain')
  one, two = (e.generate(PROMPTS, decode) for e in (engine, wide))
  assert [r.tokens for r in one] == [r.tokens for r in two]


def test_only_zeros_are_added():
  """The weights that are not zero are the narrow model's, norms scaled."""
  engine = tiny_model.engine()
  wide = wide_model.widened(engine, 4).model.params
  pairs = zip(
    tree_util.tree_leaves_with_path(engine.model.params),
    jax.tree.leaves(wide),
    strict=True,
  )
  for (path, narrow), padded in pairs:
    factor = 0.5 if path[-1].key == 'scale' else 1.0
    corner = padded[tuple(slice(n) for n in narrow.shape)]
    np.testing.assert_array_equal(corner, factor * narrow)
    assert np.count_nonzero(padded) == np.count_nonzero(narrow)
    assert padded.size >= narrow.size


@pytest.mark.parametrize('factor', [-4, 0, 2, 3, 8, 9])
def test_other_factors_would_round(factor):
  with pytest.raises(InputError, match=f'{factor}: expected a power of 4'):
    wide_model.widened_config(tiny_model.CFG, factor)
