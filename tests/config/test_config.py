"""Whatever is invalid is refused, by the name a user writes and the value."""

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from swift_jax.config.rope import RopeConfig
from swift_jax.config.sampling import MAX_LOGPROBS, SamplingConfig
from swift_jax.config.settings import (
  MAX_NGRAM,
  DecodeConfig,
  DraftConfig,
  MeshConfig,
  ModelConfig,
  SearchConfig,
)
from swift_jax.errors import InputError

MODEL = {
  'vocab_size': 101,
  'hidden_size': 22,
  'intermediate_size': 37,
  'num_hidden_layers': 5,
  'num_attention_heads': 6,
  'num_key_value_heads': 3,
  'head_dim': 8,
}
# What stands before a field's name in errors: its class and required fields.
PREFIXES = {
  '': (ModelConfig, MODEL),
  'rope_parameters.': (RopeConfig, {}),
  'decode.': (DecodeConfig, {}),
  'draft.': (DraftConfig, {}),
  'mesh.': (MeshConfig, {}),
  'sampling.': (SamplingConfig, {}),
  'search.': (SearchConfig, {}),
}

NO_NAME = st.text(max_size=5).filter(lambda s: not s.isidentifier())
NO_NUMBER = st.sampled_from([math.nan, math.inf, -math.inf, True, None, '1'])
NO_BOOL = st.sampled_from([0, 1, 'true', None])
NO_STRING = st.sampled_from([None, 1, ('a',)])
NEGATIVE = st.floats(max_value=0, exclude_max=True)
NOT_POSITIVE = NO_NUMBER | st.floats(max_value=0)
NO_SHARE = NO_NUMBER | NEGATIVE | st.floats(min_value=1, exclude_min=True)
# These may be None, but not any other thing that is no number.
NOT_OPTIONAL = NEGATIVE | st.sampled_from([math.nan, math.inf, '1', True])


def no_int(low: int) -> st.SearchStrategy:
  return NO_NUMBER | st.integers(max_value=low - 1) | st.floats()


INVALID = {
  **dict.fromkeys(MODEL, no_int(1)),
  'max_position_embeddings': no_int(1),
  'kv_copies': no_int(1),
  'vocab_padding': no_int(0),
  'rms_norm_eps': NO_SHARE,
  'hidden_act': NO_NAME,
  'dtype': NO_NAME,
  'weights': NO_STRING | st.sampled_from(['int4', 'INT8', ' ']),
  'tie_word_embeddings': NO_BOOL,
  'attention_bias': NO_BOOL,
  'mlp_bias': NO_BOOL,
  'rope_parameters.rope_type': NO_NAME,
  'rope_parameters.rope_theta': NOT_POSITIVE,
  'rope_parameters.factor': NOT_POSITIVE,
  'rope_parameters.low_freq_factor': NOT_POSITIVE,
  'rope_parameters.high_freq_factor': NOT_POSITIVE,
  'rope_parameters.original_max_position_embeddings': no_int(1),
  'rope_parameters.beta_fast': NOT_POSITIVE,
  'rope_parameters.beta_slow': NOT_POSITIVE,
  'rope_parameters.attention_factor': NOT_OPTIONAL,
  'rope_parameters.mscale': NOT_OPTIONAL,
  'rope_parameters.mscale_all_dim': NOT_OPTIONAL,
  'rope_parameters.truncate': NO_BOOL,
  'decode.method': NO_NAME,
  'decode.ignore_eos': NO_BOOL,
  'decode.batch_size': no_int(1),
  'decode.prefill_chunk': no_int(1),
  'decode.rounds_per_dispatch': no_int(1),
  'decode.phase_interval': no_int(0),
  'draft.max_draft_length': no_int(1),
  'mesh.data': no_int(1),
  'mesh.tensor': no_int(1),
  'mesh.across_processes': NO_BOOL,
  'draft.lookup_length': no_int(1),
  'draft.lookup_ngram': no_int(1) | st.integers(MAX_NGRAM + 1),
  'draft.confidence_threshold': NO_SHARE,
  'draft.adaptive': NO_BOOL,
  'draft.copy': NO_BOOL,
  'draft.tree': NO_BOOL,
  'draft.tree_widths': st.sampled_from(
    [None, (), (1,), (4, 3, 2, 0), (4, 3, 2, 1.5), (5, 4, 3, 2, 1)]
  ),
  'draft.tree_bounds': st.sampled_from(
    [(0.5, 0.4, 0.9), (0.5, 0.5, 0.9), (0.1, 0.2, math.nan), (0, 0.5, 2)]
  ),
  'draft.verify_widths': st.sampled_from(
    [(), (25,), (0, 32), (32, 16), (32, 32), (4, 8), (32.0,)]
  ),
  'search.enabled': NO_BOOL,
  'search.importance': NO_BOOL,
  'search.restart': NO_BOOL,
  'search.recipe': NO_NAME,
  'search.skip_ratio': NO_SHARE,
  'search.context_window': no_int(1),
  'search.num_candidates': no_int(2),
  'search.scoring': NO_NAME,
  'search.opt_interval': no_int(1),
  'search.time_budget': NO_SHARE,
  'search.bayes_interval': no_int(0),
  'search.max_iterations': no_int(0),
  'search.patience': no_int(1),
  'search.target_matchness': NO_SHARE,
  'search.cache': NO_STRING,
  'search.cache_name': NO_STRING,
  'search.save': NO_STRING,
  'search.record': NO_STRING,
  'search.seed': no_int(0),
  'sampling.do_sample': st.sampled_from(['yes', 1, 0.5]),
  'sampling.temperature': st.sampled_from([-0.1, math.nan, math.inf, 'hot']),
  'sampling.top_k': st.sampled_from([-1, 1.5, True, 'all']),
  'sampling.top_p': st.sampled_from([0, 2, -0.5, math.nan, 'all']),
  'sampling.min_p': st.sampled_from([-0.1, 1.5, math.nan, '0']),
  'sampling.repetition_penalty': st.sampled_from([0, -1, math.inf, 'no']),
  'sampling.eos_token_id': st.sampled_from(
    [-1, (2, -1), (1.5,), 'eos', True, (*range(99), -1)]
  ),
  'sampling.stop_strings': st.sampled_from([('',), ('a', ''), (1,), '', 5]),
  'sampling.max_new_tokens': st.sampled_from([-1, 1.5, True, 'many']),
  'sampling.min_new_tokens': st.sampled_from([-1, 1.5, True, 'few']),
  'sampling.seed': st.sampled_from([-1, 1.5, True, 'lucky', 2**32]),
  'sampling.use_generation_config': NO_BOOL,
  'sampling.skip_special_tokens': NO_BOOL,
  'sampling.logprobs': st.sampled_from(
    [-1, 1.5, True, False, '5', MAX_LOGPROBS + 1]
  ),
}


def test_every_field_has_invalid_values_to_try():
  fields = {
    prefix + field.name
    for prefix, (cls, _) in PREFIXES.items()
    for field in dataclasses.fields(cls)
    if not dataclasses.is_dataclass(field.default)
  }
  assert fields == INVALID.keys()


@pytest.mark.parametrize('name', INVALID)
@given(data=st.data())
def test_an_invalid_value_is_refused_by_name_and_value(name, data):
  value = data.draw(INVALID[name])
  prefix = next(p for p in reversed(PREFIXES) if name.startswith(p))
  cls, required = PREFIXES[prefix]
  with pytest.raises(InputError) as error:
    cls(**{**required, name.removeprefix(prefix): value})
  said = str(error.value)
  parts = value if isinstance(value, tuple) else ()
  assert name in said
  assert any(repr(shown) in said for shown in (value, *parts))
  assert '\n' not in said


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'num_key_value_heads': 4}, 'num_key_value_heads=4: .*heads=6'),
    ({'head_dim': 7}, 'head_dim=7: expected an even number'),
  ],
)
def test_heads_that_do_not_go_together(changes, said):
  with pytest.raises(InputError, match=said):
    ModelConfig(**{**MODEL, **changes})


@pytest.mark.parametrize(
  'changes, said',
  [
    ({'tree_bounds': ()}, r'tree_widths=\(10, 5, 3, 1\): expected 1 widths'),
    ({'tree_widths': (3, 1)}, r'tree_widths=\(3, 1\): expected 4 widths for 3'),
    ({'max_draft_length': 32}, r'verify_widths=.*max_draft_length=32'),
  ],
)
def test_draft_settings_that_do_not_go_together(changes, said):
  with pytest.raises(InputError, match=said):
    DraftConfig(**changes)


@pytest.mark.parametrize(
  'changes, said',
  [
    (
      {'rope_type': 'llama3', 'low_freq_factor': 4.0},
      'high_freq_factor=4.0: .*low_freq_factor=4.0',
    ),
    ({'rope_type': 'yarn', 'rope_theta': 1.0}, 'rope_theta=1.0: .* yarn'),
  ],
)
def test_rope_values_that_divide_by_zero(changes, said):
  with pytest.raises(InputError, match=said):
    RopeConfig(**changes)


def test_settings_that_came_as_lists_are_hashable():
  """Configs are static arguments of jit; a ConfigDict may hand over lists."""
  cfg = DraftConfig(verify_widths=[4, 32])
  assert cfg == DraftConfig(verify_widths=(4, 32))
  assert hash(cfg) == hash(DraftConfig(verify_widths=(4, 32)))
  assert hash(SamplingConfig(stop_strings=['a'])) is not None


def test_defaults_are_the_papers():
  draft, search = DraftConfig(), SearchConfig()
  assert (draft.max_draft_length, draft.confidence_threshold) == (25, 0.8)
  assert draft.tree_widths == (10, 5, 3, 1)
  assert (search.skip_ratio, search.context_window) == (0.45, 50)
  assert (search.max_iterations, search.patience) == (1000, 300)
  assert search.target_matchness == 0.93
