"""A model that writes any chain of tokens, and tokenizers of both kinds.

Its sublayers add nothing, so that the next token is a function of the last one:
what a case needs of a text can be written down.
"""

from __future__ import annotations

import functools
import string

from flax import nnx
import jax
import numpy as np
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
)
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DraftConfig, ModelConfig
from swift_jax.model import llama, skip_mask
from swift_jax.runtime.engine import Engine

LETTERS = string.ascii_lowercase
SPECIAL = ('<unk>', '<s>', '</s>', '<|im_end|>')
FIRST_BYTE = len(SPECIAL)  # the tokens of the 256 bytes, in both tokenizers
SIZE = FIRST_BYTE + 256 + 2 * len(LETTERS) + 2
CFG = ModelConfig(
  vocab_size=SIZE,
  hidden_size=SIZE,  # the embedding of a token is the token
  intermediate_size=1,
  num_hidden_layers=3,
  num_attention_heads=1,
  num_key_value_heads=1,
  head_dim=2,
  max_position_embeddings=120,
)


@functools.cache
def byte_fallback() -> PreTrainedTokenizerFast:
  """Llama 2's kind: a word begins with a space; what is no token is bytes."""
  spaced = [('▁', letter) for letter in LETTERS]
  names = [*SPECIAL, *(f'<0x{byte:02X}>' for byte in range(256))]
  names += [*LETTERS, '▁', *map(''.join, spaced), 'é']
  vocab = {name: i for i, name in enumerate(names)}
  made = Tokenizer(
    models.BPE(vocab, spaced, unk_token='<unk>', byte_fallback=True)
  )
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  made.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  return _finished(made)


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
  """Llama 3's kind: a token is any bytes, some of them across characters."""
  symbol = bytes_to_unicode()
  lead, end = symbol[0xC3], symbol[0xA9]  # of é
  merges = [(letter, lead) for letter in LETTERS]
  merges += [(end, letter) for letter in LETTERS]
  merges += [(lead, end), (symbol[ord(' ')], 'a')]
  names = [*SPECIAL, *(symbol[byte] for byte in range(256))]
  vocab = {name: i for i, name in enumerate([*names, *map(''.join, merges)])}
  made = Tokenizer(models.BPE(vocab, merges))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  made.decoder = decoders.ByteLevel()
  return _finished(made)


def _finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
  tokenizer.add_special_tokens([AddedToken(n, special=True) for n in SPECIAL])
  assert tokenizer.get_vocab_size() == SIZE
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>'
  )


TOKENIZERS = {'byte fallback': byte_fallback(), 'byte level': byte_level()}
_SPELLED = {symbol: byte for byte, symbol in bytes_to_unicode().items()}


def joined(kind: str, tokens: list[int]) -> bytes:
  """The bytes of tokens, by their names alone."""
  data = b''
  for name in TOKENIZERS[kind].convert_ids_to_tokens(tokens):
    if name in SPECIAL:
      continue
    if kind == 'byte level':
      data += bytes(_SPELLED[symbol] for symbol in name)
    elif name.startswith('<0x'):
      data += bytes.fromhex(name[3:5])
    else:
      data += name.replace('▁', ' ').encode()
  return data


def certain(data: bytes) -> str:
  """The text of bytes without a last character that may still complete."""
  text = ''
  while True:
    try:
      return text + data.decode()
    except UnicodeDecodeError as error:
      text += data[: error.start].decode()
      if error.reason == 'unexpected end of data':
        return text
      text, data = text + '\ufffd', data[error.end :]


def ids(tokenizer: PreTrainedTokenizerFast, names: str) -> list[int]:
  """Token ids by name or, in hexadecimal, byte: `a g 0A F0 <|im_end|>`."""
  vocab = tokenizer.get_vocab()
  return [
    vocab[name] if name in vocab else FIRST_BYTE + int(name, 16)
    for name in names.split()
  ]


def engine(
  tokenizer: PreTrainedTokenizerFast | None,
  *chains: list[int],
  defaults: SamplingConfig | None = None,
  **draft: object,
) -> Engine:
  """An engine whose greedy text follows the chains; the last token of one, and
  what stands in none, repeats itself."""
  after: dict[int, int] = {}
  for chain in chains:
    for token, following in zip(chain, chain[1:], strict=False):
      assert after.setdefault(token, following) == following, token
  graphdef, abstract = llama.abstract_model(CFG)
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), nnx.to_pure_dict(abstract)
  )
  one_hot = np.eye(SIZE, dtype=np.float32)
  params['embed_tokens']['embedding'] = one_hot
  params['norm']['scale'] = np.ones(SIZE, np.float32)
  following = [after.get(token, token) for token in range(SIZE)]
  params['lm_head']['kernel'] = one_hot[following]
  settings = {'adaptive': False, 'max_draft_length': 5, **draft}
  settings = DraftConfig(verify_widths=(4, 8), **settings)
  params = jax.device_put(params)
  made = Engine(CFG, graphdef, params, tokenizer, defaults, settings)
  made.set_skip_mask(skip_mask.uniform(CFG.num_hidden_layers, 0.5))
  return made
