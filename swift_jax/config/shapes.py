"""The shapes of published Llama models, by the names of `configs/llama.py`.

They serve where no weights are read. RoPE's parameters are the defaults: no shape and
no cost depends on them.
"""

from __future__ import annotations

from swift_jax.config.settings import ModelConfig

# Layers, hidden size, MLP, heads, key/value heads, vocabulary, context.
_SIZES = {
  'codellama_13b': (40, 5120, 13824, 40, 40, 32016, 16384),
  'codellama_34b': (48, 8192, 22016, 64, 8, 32000, 16384),
  'deepseek_coder_33b': (62, 7168, 19200, 56, 8, 32256, 16384),
  'llama2_7b': (32, 4096, 11008, 32, 32, 32000, 4096),
  'llama2_13b': (40, 5120, 13824, 40, 40, 32000, 4096),
  'llama2_70b': (80, 8192, 28672, 64, 8, 32000, 4096),
  'llama3_70b': (80, 8192, 28672, 64, 8, 128256, 8192),
  'llama3_1_8b': (32, 4096, 14336, 32, 8, 128256, 131072),
  'llama3_2_1b': (16, 2048, 8192, 32, 8, 128256, 131072),
  'llama3_2_3b': (28, 3072, 8192, 24, 8, 128256, 131072),
  'yi_34b': (60, 7168, 20480, 56, 8, 64000, 4096),
}
_TIED = ('llama3_2_1b', 'llama3_2_3b')

SHAPES = {
  name: ModelConfig(
    vocab_size=vocabulary,
    hidden_size=width,
    intermediate_size=inner,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    head_dim=width // heads,
    max_position_embeddings=context,
    tie_word_embeddings=name in _TIED,
    dtype='bfloat16',
  )
  for name, (
    layers,
    width,
    inner,
    heads,
    kv_heads,
    vocabulary,
    context,
  ) in _SIZES.items()
}
