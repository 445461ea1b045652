"""Tiny random Llamas, one for each feature, as Hugging Face folders.

Weights follow from the case's name and the tensor's, so that nothing but logits
and tokens is stored. Names and shapes are written out here, apart from the
package's own, and transformers loads them too. Biases and norms are random, and
axes that differ have different sizes: a wrong axis cannot pass.
"""

import json
import pathlib
from typing import Any
import zlib

import numpy as np

PROMPT_LENGTH = 7
NEW_TOKENS = 200
# Positions, after prompt and text, whose logits are stored.
STORED_POSITIONS = (0, 3, 17, 101, 206)
REFERENCE = pathlib.Path(__file__).parent / 'reference.npz'

BASE = {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'vocab_size': 101,
  'hidden_size': 84,
  'intermediate_size': 53,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': None,
  'hidden_act': 'silu',
  'max_position_embeddings': 256,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': False,
  'attention_bias': False,
  'mlp_bias': False,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0},
  'bos_token_id': None,
  'eos_token_id': None,
  'torch_dtype': 'float32',
}

_YARN = {
  'rope_type': 'yarn',
  'rope_theta': 10000.0,
  'factor': 4.0,
  'original_max_position_embeddings': 64,
}
# What each case changes in BASE; a null removes nothing, it is a null in JSON.
CASES: dict[str, dict[str, Any]] = {
  'gqa': {},
  'mha': {'num_key_value_heads': None},
  'mqa': {'num_key_value_heads': 1},
  'head_dim': {'head_dim': 10},
  'tied': {'tie_word_embeddings': True},
  'attention_bias': {'attention_bias': True},
  'mlp_bias': {'mlp_bias': True},
  'rms_norm_eps': {'rms_norm_eps': 0.3},
  'swish': {'hidden_act': 'swish'},
  'gelu': {'hidden_act': 'gelu'},
  'gelu_new': {'hidden_act': 'gelu_new'},
  'gelu_pytorch_tanh': {'hidden_act': 'gelu_pytorch_tanh'},
  'relu': {'hidden_act': 'relu'},
  'rope_theta': {'rope_parameters': {'rope_theta': 300.0}},
  'rope_theta_old': {'rope_parameters': None, 'rope_theta': 300.0},
  'rope_linear_old': {
    'rope_parameters': None,
    'rope_theta': 1000.0,
    'rope_scaling': {'type': 'linear', 'factor': 2.5},
  },
  'rope_llama3': {
    'rope_parameters': {
      'rope_type': 'llama3',
      'rope_theta': 5000.0,
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 64,
    }
  },
  'rope_yarn': {'rope_parameters': _YARN},
  'rope_yarn_attention_factor': {
    'rope_parameters': {
      **_YARN,
      'attention_factor': 1.7,
      'beta_fast': 4.0,
      'beta_slow': 0.25,
    }
  },
  'rope_yarn_mscale': {
    'rope_parameters': {**_YARN, 'mscale': 2.0, 'mscale_all_dim': 0.7}
  },
  'rope_yarn_no_truncate': {'rope_parameters': {**_YARN, 'truncate': False}},
  'rope_yarn_null_factor': {'rope_parameters': {**_YARN, 'factor': None}},
  'all': {
    'num_hidden_layers': 3,
    'num_key_value_heads': 3,
    'head_dim': 22,
    'tie_word_embeddings': True,
    'attention_bias': True,
    'mlp_bias': True,
    'hidden_act': 'gelu_pytorch_tanh',
    'rms_norm_eps': 1e-3,
    'rope_parameters': {**_YARN, 'truncate': False, 'beta_fast': 8.0},
  },
}


def config(name: str) -> dict[str, Any]:
  """The case's config.json."""
  return {**BASE, **CASES[name]}


def _shapes(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  width, inner, vocab = (
    cfg[name] for name in ('hidden_size', 'intermediate_size', 'vocab_size')
  )
  heads = cfg['num_attention_heads']
  head_dim = cfg['head_dim'] or width // heads
  kv_width = (cfg['num_key_value_heads'] or heads) * head_dim
  linear = {
    'self_attn.q_proj': (heads * head_dim, width),
    'self_attn.k_proj': (kv_width, width),
    'self_attn.v_proj': (kv_width, width),
    'self_attn.o_proj': (width, heads * head_dim),
    'mlp.gate_proj': (inner, width),
    'mlp.up_proj': (inner, width),
    'mlp.down_proj': (width, inner),
  }
  shapes = {'model.embed_tokens.weight': (vocab, width)}
  for i in range(cfg['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    for norm in ('input_layernorm', 'post_attention_layernorm'):
      shapes[f'{layer}{norm}.weight'] = (width,)
    for name, shape in linear.items():
      shapes[f'{layer}{name}.weight'] = shape
      has_bias = 'attention_bias' if 'attn' in name else 'mlp_bias'
      if cfg[has_bias]:
        shapes[f'{layer}{name}.bias'] = shape[:1]
  shapes['model.norm.weight'] = (width,)
  if not cfg['tie_word_embeddings']:
    shapes['lm_head.weight'] = (vocab, width)
  return shapes


def random(*names: str) -> np.random.RandomState:
  """A stream that numpy promises not to change."""
  return np.random.RandomState(zlib.crc32('/'.join(names).encode()))


def _tensor(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
  values = random(case, name).standard_normal(shape)
  if name.endswith('norm.weight'):
    values = 1 + 0.3 * values
  elif name.endswith('bias'):
    values = 0.3 * values
  elif 'embed_tokens' not in name:
    # Logits with a spread of some units: ties are rare and text varies.
    gain = 3.0 if 'lm_head' in name else 1.0
    values = gain * values / np.sqrt(shape[1])
  else:
    values = 0.3 * values
  return values.astype(np.float32)


def tensors(name: str) -> dict[str, np.ndarray]:
  """Every weight under Hugging Face's name, [out, in]."""
  return {k: _tensor(name, k, s) for k, s in _shapes(config(name)).items()}


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
  """The case as a Hugging Face folder."""
  from safetensors.numpy import save_file

  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config(name)))
  save_file(tensors(name), folder / 'model.safetensors', {'format': 'pt'})
  return folder


def prompt(name: str) -> np.ndarray:
  """The case's prompt, int32[PROMPT_LENGTH]."""
  draws = random(name, 'prompt').randint(BASE['vocab_size'], size=PROMPT_LENGTH)
  return draws.astype(np.int32)
