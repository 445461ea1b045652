"""Plain decoding by llama.cpp: the same weights and cache, both in float32.

Only this module imports gguf and llama_cpp, and only when the suite `peers` runs.
BUILD.md says how they are installed: without OpenMP. With OpenMP llama.cpp would
run on torch's copy of that library. The suite lets torch's threads sleep while they
wait, and llama.cpp is half as fast with such threads. Its own threads spin, and end
with each pass.

The loop calls llama.cpp's own functions. The package's class `Llama` takes as long,
and so does numpy's argmax in place of llama.cpp's sampler.
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
from swift_jax.config.rope import RopeConfig
from swift_jax.config.settings import ModelConfig
from swift_jax.model.rope import rope_frequencies

# Hugging Face's names of modules and GGUF's; first modules outside layers, then a
# layer's.
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
  """The reason why llama.cpp cannot run this model; empty if it can."""
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
  """A checkpoint's tensor in llama.cpp's order and float32.

  RoPE turns the pairs (i, i + H/2) of a head in Hugging Face's order and the pairs
  (2i, 2i + 1) in llama.cpp's. So the rows of q and k are reordered.

  Args:
    name: Hugging Face's name of the tensor.
    tensor: [out, in], or [out] for a bias or a norm.
  """
  tensor = tensor.astype(np.float32)
  if re.search(r'\.[qk]_proj\.', name):
    pairs = tensor.reshape(-1, 2, cfg.head_dim // 2, *tensor.shape[1:])
    tensor = pairs.swapaxes(1, 2).reshape(tensor.shape)
  return np.ascontiguousarray(tensor)


def tensors(
  folder: pathlib.Path, cfg: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
  """All tensors of the GGUF file, with GGUF's names."""
  from safetensors import safe_open

  infos = weight_files.read_headers(folder, cfg.tie_word_embeddings)
  for name in load.expected_weights(cfg, None):
    with safe_open(infos[name].file, 'numpy') as opened:
      tensor = opened.get_tensor(infos[name].name)
    yield gguf_name(name), gguf_tensor(name, tensor, cfg)
  # Divisors of the plain frequencies: every kind of RoPE has this form.
  ours, _ = rope_frequencies(cfg.rope, cfg.head_dim)
  plain = RopeConfig(rope_theta=cfg.rope.rope_theta)
  factors = rope_frequencies(plain, cfg.head_dim)[0] / ours
  yield 'rope_freqs.weight', factors.astype(np.float32)


def write_gguf(
  file: pathlib.Path, folder: pathlib.Path, cfg: ModelConfig
) -> None:
  """Writes the checkpoint in `folder` as one GGUF file, without a vocabulary."""
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
  """A function that writes `new_tokens` after a prompt, greedily.

  Args:
    folder: the checkpoint's folder.
    cfg: its config, for which `lacking` gives no reason.
    slots: slots of the cache, enough for a prompt and its text.
    threads: number of llama.cpp's threads.
  """
  import llama_cpp as cpp

  logging.getLogger('llama-cpp-python').setLevel(logging.CRITICAL)
  with tempfile.TemporaryDirectory() as scratch:
    file = pathlib.Path(scratch) / 'model.gguf'
    write_gguf(file, folder, cfg)
    loading = cpp.llama_model_default_params()
    loading.use_mmap = False  # the file is removed after loading
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
