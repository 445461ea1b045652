"""Random parameters, a tokenizer of any size, and what Git LFS leaves in place."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from swift_jax.config.settings import ModelConfig
from swift_jax.model import llama

CFG = ModelConfig(
  vocab_size=53,
  hidden_size=30,
  intermediate_size=37,
  num_hidden_layers=3,
  num_attention_heads=6,
  num_key_value_heads=3,
  head_dim=14,
  attention_bias=True,
)
POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n'


def random_params(cfg=CFG, seed=0):
  """Random everywhere, biases and norms too."""
  _, abstract = llama.abstract_model(cfg)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype),
    nnx.to_pure_dict(abstract),
  )


def assert_same_bits(ours, theirs):
  def compare(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

  jax.tree.map(compare, ours, theirs)


def make_tokenizer(size):
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  words = ['<unk>', '</s>', *(f'w{i}' for i in range(2, size))]
  vocabulary = {word: i for i, word in enumerate(words)}
  model = tokenizers.models.WordLevel(vocabulary, unk_token='<unk>')
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token='<unk>', eos_token='</s>'
  )
