"""Settings: whatever is not valid is refused by field and value."""

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax import config
from swift_jax.config import DecodeConfig, DraftConfig, SearchConfig
from swift_jax.errors import InputError
from swift_jax.training import TrainConfig

POSITIVE = [
  (DraftConfig, 'draft', 'max_draft_length'),
  (SearchConfig, 'search', 'context_window'),
  (SearchConfig, 'search', 'num_candidates'),
  (SearchConfig, 'search', 'opt_interval'),
  (SearchConfig, 'search', 'patience'),
  (DecodeConfig, 'decode', 'batch_size'),
  (DecodeConfig, 'decode', 'prefill_chunk'),
  (DecodeConfig, 'decode', 'rounds_per_dispatch'),
  (TrainConfig, 'train', 'steps'),
  (TrainConfig, 'train', 'batch_size'),
]
SHARES = [
  (DraftConfig, 'draft', 'confidence_threshold'),
  (SearchConfig, 'search', 'skip_ratio'),
  (SearchConfig, 'search', 'target_matchness'),
]


@pytest.mark.parametrize('kind, section, field', POSITIVE)
@pytest.mark.parametrize('value', [0, -3, 1.5, 'x', None, True])
def test_whole_numbers(kind, section, field, value):
  with pytest.raises(InputError) as error:
    kind(**{field: value})
  assert f'{section}.{field}={value!r}' in str(error.value)


@given(
  st.sampled_from(SHARES),
  st.one_of(
    st.floats().filter(lambda x: not 0 <= x <= 1), st.text(), st.none()
  ),
)
def test_shares(which, value):
  kind, section, field = which
  with pytest.raises(InputError) as error:
    kind(**{field: value})
  assert f'{section}.{field}={value!r}' in str(error.value)


@pytest.mark.parametrize(
  'changes, named',
  [
    ({'tree_widths': (3, 2)}, 'draft.tree_widths=(3, 2)'),
    ({'tree_widths': (3, 2, 1, 0)}, 'draft.tree_widths=0'),
    ({'tree_bounds': (0.5, 0.4, 0.9)}, 'draft.tree_bounds=(0.5, 0.4, 0.9)'),
    ({'tree_bounds': (0.5, math.nan, 0.9)}, 'draft.tree_bounds=nan'),
    ({'verify_widths': (8, 4)}, 'draft.verify_widths=(8, 4)'),
    ({'verify_widths': ()}, 'draft.verify_widths=()'),
    ({'verify_widths': (4, 25)}, 'draft.verify_widths=(4, 25)'),
    ({'tree': 1}, 'draft.tree=1'),
  ],
)
def test_draft_shapes(changes, named):
  with pytest.raises(InputError) as error:
    DraftConfig(**changes)
  assert named in str(error.value)


@pytest.mark.parametrize(
  'kind, changes, named',
  [
    (DecodeConfig, {'method': 'greedy'}, "decode.method='greedy'"),
    (DecodeConfig, {'max_new_tokens': -1}, 'decode.max_new_tokens=-1'),
    (DecodeConfig, {'stop_strings': ('a', '')}, "decode.stop_strings=''"),
    (DecodeConfig, {'ignore_eos': 'no'}, "decode.ignore_eos='no'"),
    (SearchConfig, {'enabled': 0}, 'search.enabled=0'),
    (SearchConfig, {'seed': -1}, 'search.seed=-1'),
    (SearchConfig, {'cache': 3}, 'search.cache=3'),
    (TrainConfig, {'optimizer': 'sgd'}, "train.optimizer='sgd'"),
    (TrainConfig, {'max_drop_rate': 1.0}, 'train.max_drop_rate=1.0'),
  ],
)
def test_other_fields(kind, changes, named):
  with pytest.raises(InputError) as error:
    kind(**changes)
  assert named in str(error.value)


def test_defaults_are_the_papers():
  draft, search = DraftConfig(), SearchConfig()
  assert (draft.max_draft_length, draft.confidence_threshold) == (25, 0.8)
  assert draft.tree_widths == (10, 5, 3, 1)
  assert (search.skip_ratio, search.context_window) == (0.45, 50)
  assert (search.max_iterations, search.patience) == (1000, 300)
  assert search.target_matchness == 0.93
  for cfg in (draft, search, DecodeConfig()):
    assert dataclasses.is_dataclass(cfg) and hash(cfg)
  assert config.DTYPES == ('bfloat16', 'float16', 'float32')
