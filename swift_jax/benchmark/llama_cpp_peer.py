"""Plain decoding by llama.cpp: the same weights and cache, both in float32.

Only here are gguf and llama_cpp imported, and only when the suite `peers` runs.
They are installed as BUILD.md says, without OpenMP: with it llama.cpp would run on
torch's copy of that library, and where threads wait asleep, as the suite has torch's
wait, it is half as fast. Its own threads spin, and end with each pass.

The loop is over llama.cpp's own functions; the package's class `Llama`, and numpy's
argmax in place of its sampler, take as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import importlib.util
import logging
import pathlib
import re
import tempfile

import numpy as np

from swift_jax.checkpoint import load, weight_files
from swift_jax.config.settings import ModelConfig, RopeConfig
from swift_jax.model.layers import rope_frequencies

# Modules as Hugging Face and as GGUF name them; those of a layer come second.
_WHOLE = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
}
_LAYER = {
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def lacking(cfg: ModelConfig) -> str:
  """What keeps llama.cpp from running this model; empty if nothing does."""
  if cfg.hidden_act not in ('silu', 'swish'):
    return f'hidden_act={cfg.hidden_act!r}, and its Llama has silu'
  for package in ('gguf', 'llama_cpp'):
    if importlib.util.find_spec(package) is None:
      return f'{package} is not there'
  import llama_cpp

  if b'OPENMP = 1' in llama_cpp.llama_print_system_info():
    return 'built with OpenMP, whose threads would wait as those of torch do'
  return ''


def gguf_name(name: str) -> str:
  """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
  module, _, kind = name.rpartition('.')
  layer = re.fullmatch(r'model\.layers\.(\d+)\.(.+)', module)
  if layer is None:
    return f'{_WHOLE[module]}.{kind}'
  return f'blk.{layer[1]}.{_LAYER[layer[2]]}.{kind}'


def gguf_tensor(name: str, tensor: np.ndarray, cfg: ModelConfig) -> np.ndarray:
  """A tensor of a checkpoint as llama.cpp wants it, in float32.

  RoPE turns the pairs (i, i + H/2) of a head in Hugging Face's order and
  (2i, 2i + 1) in llama.cpp's, so the rows that make q and k change places.

  Args:
    name: Hugging Face's.
    tensor: [out, in], or [out] of a bias or a norm.
  """
  tensor = tensor.astype(np.float32)
  if re.search(r'\.[qk]_proj\.', name):
    pairs = tensor.reshape(-1, 2, cfg.head_dim // 2, *tensor.shape[1:])
    tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
  return np.ascontiguousarray(tensor)


def tensors(
  folder: pathlib.Path, cfg: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
  """Every tensor of the file, by GGUF's names."""
  from safetensors import safe_open

  infos = weight_files.read_headers(folder, cfg.tie_word_embeddings)
  for name in load.expected_weights(cfg, None):
    with safe_open(infos[name].file, 'numpy') as opened:
      tensor = opened.get_tensor(infos[name].name)
    yield gguf_name(name), gguf_tensor(name, tensor, cfg)
  # What each frequency is divided by: every kind of RoPE in one form.
  ours, _ = rope_frequencies(cfg.rope, cfg.head_dim)
  plain = RopeConfig(rope_theta=cfg.rope.rope_theta)
  factors = rope_frequencies(plain, cfg.head_dim)[0] / ours
  yield 'rope_freqs.weight', factors.astype(np.float32)


def write_gguf(
  file: pathlib.Path, folder: pathlib.Path, cfg: ModelConfig
) -> None:
  """The checkpoint in `folder` as one GGUF file, without a vocabulary."""
  import gguf

  writer = gguf.GGUFWriter(file, 'llama')
  writer.add_tokenizer_model('no_vocab')
  writer.add_vocab_size(cfg.vocab_size)
  writer.add_context_length(cfg.max_position_embeddings)
  writer.add_embedding_length(cfg.hidden_size)
  writer.add_feed_forward_length(cfg.intermediate_size)
  writer.add_block_count(cfg.num_hidden_layers)
  writer.add_head_count(cfg.num_attention_heads)
  writer.add_head_count_kv(cfg.num_key_value_heads)
  writer.add_key_length(cfg.head_dim)
  writer.add_value_length(cfg.head_dim)
  writer.add_rope_dimension_count(cfg.head_dim)
  writer.add_rope_freq_base(cfg.rope.rope_theta)
  writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
  for name, tensor in tensors(folder, cfg):
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def writer(
  folder: pathlib.Path,
  cfg: ModelConfig,
  slots: int,
  new_tokens: int,
  threads: int,
) -> Callable[[Sequence[int]], list[int]]:
  """Writes `new_tokens` after a prompt, greedily.

  Args:
    folder: the checkpoint.
    cfg: its config, for which nothing is `lacking`.
    slots: of the cache, for a prompt and what is written.
    threads: that llama.cpp computes with.
  """
  import llama_cpp as cpp

  logging.getLogger('llama-cpp-python').setLevel(logging.CRITICAL)
  with tempfile.TemporaryDirectory() as scratch:
    file = pathlib.Path(scratch) / 'model.gguf'
    write_gguf(file, folder, cfg)
    loading = cpp.llama_model_default_params()
    loading.use_mmap = False  # the file goes
    model = cpp.llama_model_load_from_file(str(file).encode(), loading)
  settings = cpp.llama_context_default_params()
  settings.n_ctx = settings.n_batch = slots
  settings.n_threads = settings.n_threads_batch = threads
  settings.type_k = settings.type_v = cpp.GGML_TYPE_F32
  # Flash attention would round the cache to half precision.
  settings.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
  _, settings.yarn_attn_factor = rope_frequencies(cfg.rope, cfg.head_dim)
  context = model and cpp.llama_init_from_model(model, settings)
  if not context:
    raise RuntimeError(f'llama.cpp does not load {folder}')
  memory = cpp.llama_get_memory(context)
  greedy = cpp.llama_sampler_init_greedy()

  def next_token(tokens: Sequence[int]) -> int:
    array = (cpp.llama_token * len(tokens))(*tokens)
    batch = cpp.llama_batch_get_one(array, len(tokens))
    if code := cpp.llama_decode(context, batch):
      raise RuntimeError(f'llama_decode: {code}')
    return cpp.llama_sampler_sample(greedy, context, -1)

  def write(prompt: Sequence[int]) -> list[int]:
    cpp.llama_memory_clear(memory, False)
    written = [next_token(prompt)]
    while len(written) < new_tokens:
      written.append(next_token(written[-1:]))
    return written

  return write
