"""Logits and greedy text are Hugging Face's, feature by feature (float32).

Stored values are compared always; where torch is installed, the same cases run
live against it too.
"""

import functools
import json
import pathlib
import tempfile

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import cases
from safetensors.numpy import save_file

from swift_jax.checkpoint import hf_config, load
from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DecodeConfig
from swift_jax.model import kv_cache, rope, skip_mask
from swift_jax.runtime.engine import Engine

TOLERANCE = 1e-4


def _greedy(model, prompt, mask):
  """Prompt and greedy text int[P + NEW_TOKENS], a cached pass a token."""
  cfg, length = model.cfg, len(prompt)
  cache = kv_cache.empty(
    cfg.num_hidden_layers,
    1,
    cfg.num_key_value_heads,
    length + cases.NEW_TOKENS,
    cfg.head_dim,
    cfg.jax_dtype,
  )

  def advance(cache, tokens):
    hidden, updates = model(tokens[None], mask, cache=cache)
    cache = cache.write(updates).rollback(cache.length + len(tokens))
    return cache, jnp.argmax(model.logits(hidden[:, -1]), axis=-1)

  def step(carry, _):
    return advance(*carry), carry[1][0]

  carry = advance(cache, prompt)
  _, text = jax.lax.scan(step, carry, length=cases.NEW_TOKENS)
  return jnp.concatenate([prompt, text])


@functools.cache
def _ours(name):
  """Tokens [P + NEW_TOKENS] and their logits in one pass, from the files."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = cases.write(name, pathlib.Path(temporary))
    cfg = load.load_config(folder)
    graphdef, params = load.load_params(folder, cfg)
  mask = skip_mask.none_skipped(cfg.num_hidden_layers)

  @jax.jit
  def run(params, prompt, mask):
    model = nnx.merge(graphdef, params)
    tokens = _greedy(model, prompt, mask)
    hidden, _ = model(tokens[None], mask)
    return tokens, model.logits(hidden[0])

  return jax.device_get(run(params, cases.prompt(name), mask))


# Each compiles a model, so that by default one of each kind runs.
QUICK = {'all', 'tied', 'mqa', 'gelu', 'rope_llama3', 'rope_yarn'}
EACH_CASE = pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.nightly] * (name not in QUICK))
    for name in cases.CASES
  ],
)


@pytest.fixture(scope='module')
def stored():
  with np.load(cases.REFERENCE) as arrays:
    return dict(arrays)


@EACH_CASE
def test_stored(name, stored):
  tokens, logits = _ours(name)
  np.testing.assert_array_equal(tokens, stored[f'{name}/tokens'])
  np.testing.assert_allclose(
    logits[list(cases.STORED_POSITIONS)],
    stored[f'{name}/logits'],
    atol=TOLERANCE,
    rtol=0,
  )


@EACH_CASE
def test_live(name, tmp_path):
  """By one pass of torch over our text: it is greedy if every token is the
  argmax after the tokens before it."""
  pytest.importorskip('torch')
  from reference import hugging_face

  tokens, logits = _ours(name)
  theirs = hugging_face.logits(hugging_face.load(name, tmp_path), tokens)
  np.testing.assert_allclose(logits, theirs, atol=TOLERANCE, rtol=0)
  start = cases.PROMPT_LENGTH
  np.testing.assert_array_equal(
    tokens[start:], theirs[start - 1 : -1].argmax(-1)
  )


@pytest.mark.parametrize('head', ['other', 'same', 'alone'])
def test_tied_embeddings_and_a_head_live(head, tmp_path):
  """The weights decide as much as config.json whether the head is tied."""
  torch = pytest.importorskip('torch')
  from reference import hugging_face
  import transformers

  folder, weights = cases.write('tied', tmp_path), cases.tensors('tied')
  name = 'model.embed_tokens.weight'
  weights['lm_head.weight'] = weights[name][:: -1 if head == 'other' else 1]
  if head == 'alone':
    del weights[name]
  weights = {k: np.ascontiguousarray(v) for k, v in weights.items()}
  save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
  cfg = load.load_config(folder)
  graphdef, params = load.load_params(folder, cfg)
  tokens = cases.prompt('tied')
  mask = skip_mask.none_skipped(cfg.num_hidden_layers)
  model = nnx.merge(graphdef, params)
  logits = model.logits(model(tokens[None], mask)[0])[0]
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  )
  wanted = hugging_face.logits(theirs, tokens)
  np.testing.assert_allclose(logits, wanted, atol=TOLERANCE, rtol=0)
  assert cfg.tie_word_embeddings == (head != 'other')


@pytest.mark.parametrize(
  'given', [{}, {'eos_token_id': 3}, {'eos_token_id': None}]
)
def test_ends_of_text_live(given, tmp_path):
  """Where no file names one, transformers' `generate` has none either."""
  torch = pytest.importorskip('torch')
  import transformers

  folder = cases.write('gqa', tmp_path)
  raw = json.loads((folder / 'config.json').read_text())
  del raw['eos_token_id']
  (folder / 'config.json').write_text(json.dumps({**raw, **given}))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  prepared, _ = theirs._prepare_generation_config(None)
  ours = hf_config.generation_defaults(folder).eos_token_id
  assert ours == (prepared.eos_token_id and (prepared.eos_token_id,))


_YARN = {'type': 'yarn', 'factor': 16.0, 'original_max_position_embeddings': 64}
_LLAMA3 = {
  'type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,
}


@pytest.mark.parametrize(
  'scaling, beside',
  [
    ({**_YARN, 'finetuned': True}, {}),
    ({**_YARN, 'attn_factor': 0.7}, {}),
    ({**_YARN, 'attn_factor': 0.7, 'attention_factor': 1.3}, {}),
    ({**_YARN, 'attn_factor': 2, 'mscale': 2.0, 'mscale_all_dim': 0.5}, {}),
    ({**_YARN, 'mscale': 2.0}, {}),
    ({**_YARN, 'attention_factor': 0}, {}),
    ({**_YARN, 'beta_fast': 0, 'beta_slow': None}, {}),
    ({**_YARN, 'factor': 0.5}, {}),
    (_YARN, {'original_max_position_embeddings': 32}),
    ({**_YARN, 'factor': None}, {'original_max_position_embeddings': 32}),
    ({**_YARN, 'rope_type': 'default'}, {}),
    (_LLAMA3, {'original_max_position_embeddings': 16}),
    ({**_LLAMA3, 'attention_factor': 3.0, 'finetuned': False}, {}),
    ({**_LLAMA3, 'rope_type': 'linear'}, {'rope_theta': 500.0}),
  ],
)
def test_rope_parameters_live(scaling, beside, tmp_path):
  """Frequencies and the factor on cos and sin, for all settings of a config."""
  pytest.importorskip('torch')
  from transformers import AutoConfig
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  raw = {**cases.config('gqa'), 'head_dim': 64, 'rope_parameters': None}
  raw |= {'rope_scaling': scaling, **beside}
  (tmp_path / 'config.json').write_text(json.dumps(raw))
  theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
  cfg = load.load_config(tmp_path)
  frequencies, factor = rope.rope_frequencies(cfg.rope, cfg.head_dim)
  wanted = theirs.inv_freq.numpy()
  np.testing.assert_allclose(frequencies, wanted, rtol=1e-5)
  assert factor == pytest.approx(theirs.attention_scaling, rel=1e-9)


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_log_probabilities_are_hugging_faces(stored, tmp_path):
  """At the places that are stored; where torch is installed, at all places."""
  name, start = 'all', cases.PROMPT_LENGTH
  folder = cases.write(name, tmp_path)
  cfg = load.load_config(folder)
  engine = Engine(cfg, *load.load_params(folder, cfg))
  sampling = SamplingConfig(max_new_tokens=cases.NEW_TOKENS, logprobs=4)
  decode = DecodeConfig(method='plain', sampling=sampling)
  (result,) = engine.generate(cases.prompt(name).tolist(), decode)
  tokens = stored[f'{name}/tokens']
  assert result.tokens == tokens[start:].tolist()
  theirs = dict(
    zip(cases.STORED_POSITIONS, stored[f'{name}/logits'], strict=True)
  )
  try:
    from reference import hugging_face
  except ImportError:
    pass
  else:
    live = hugging_face.logits(hugging_face.load(name, tmp_path), tokens)
    theirs |= dict(enumerate(live))
  # Logits of a place are those of the token that comes next.
  places = [i for i in theirs if start <= i + 1 < len(tokens)]
  assert len(places) in (2, cases.NEW_TOKENS)
  for place in places:
    wanted, at = _log_softmax(theirs[place]), place + 1 - start
    top = dict(result.logprobs.top[at])
    best = np.argsort(-wanted)[:4]
    values = [result.logprobs.chosen[at], *top.values()]
    wanted = [wanted[tokens[place + 1]], *wanted[best]]
    assert values == pytest.approx(wanted, abs=TOLERANCE)
    assert set(top) == set(best.tolist())
