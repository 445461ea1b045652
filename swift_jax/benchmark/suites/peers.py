"""Compares Hugging Face's generate with ours, and llama.cpp if it is installed.

All use the same weights, prompts and cores, in float32. llama.cpp decodes plainly.
Only this suite imports torch, and only when it runs: torch is an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import importlib.util
import os
import pathlib
import time
from typing import Any

import numpy as np

from swift_jax.benchmark import llama_cpp_peer
from swift_jax.benchmark.decode_runs import Bench
from swift_jax.benchmark.measuring import Seconds, in_turn, paired_ratio, spread
from swift_jax.benchmark.report import Outcome, Table
from swift_jax.runtime.metrics import distinct_ngrams

_OURS, _PLAIN, _CPP = 'plain (ours)', 'plain (HF)', 'plain (llama.cpp)'
_LOOKUP_TOKENS = 10  # as in ours, and in Spec-Bench

Write = Callable[[Sequence[int]], list[int]]


def is_there() -> bool:
  """Whether torch is installed."""
  return importlib.util.find_spec('torch') is not None


def calm_threads() -> None:
  """Lets torch's threads sleep while they wait for work.

  It must be called before torch is imported, also by transformers. Threads that wait
  by spinning take the cores from each other, and from our threads. On two cores that
  other processes used too, spinning made torch several times slower.
  """
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')


def peers(
  bench: Bench,
  folder: pathlib.Path,
  progress: Callable[[str], None],
  threads: int | None = None,
) -> Outcome:
  """The suite `peers`: batch 1, greedy; all peers continue every prompt, in turns.

  Args:
    bench: our engine, the prompts and the settings.
    folder: the checkpoint's folder; our engine reads it as float32.
    progress: called with a line at each step.
    threads: number of threads of torch and of llama.cpp; None: the number of cores.
  """
  threads = threads or os.cpu_count() or 1
  progress('loading with transformers')
  writers = {_OURS: ours(bench), **theirs(folder, bench.new_tokens, threads)}
  lacking = llama_cpp_peer.lacking(bench.engine.cfg)
  if lacking:
    progress(f'llama.cpp is left out: {lacking}')
  else:
    progress('loading with llama.cpp')
    writers[_CPP] = llama_cpp_peer.writer(
      folder,
      bench.engine.cfg,
      max(map(len, bench.timed)) + bench.new_tokens,
      bench.new_tokens,
      threads,
    )
  for write in writers.values():
    # Compiles our programs, and warms the peers up.
    write(bench.timed[0])
  taken: Seconds = {name: [] for name in writers}
  texts: dict[str, list[list[int]]] = {name: [] for name in writers}
  for number, prompt in enumerate(bench.timed):
    progress(f'prompt {number + 1} of {len(bench.timed)}')
    for name in in_turn(list(writers), number):
      started = time.perf_counter()
      text = writers[name](prompt)
      taken[name].append(time.perf_counter() - started)
      texts[name].append(text)
  methods = {name: describe(name, taken, texts) for name in writers}
  rows = [[name, *found.values()] for name, found in methods.items()]
  heads = ['', *next(iter(methods.values()))]
  outcome = Outcome(
    summary={},
    figures={
      'threads': threads,
      'prompts': len(bench.timed),
      'seconds': taken,
      'methods': methods,
    },
    tables=[Table('greedy, batch 1, float32', heads, rows)],
  )
  for name, peer in {'hf': _PLAIN, 'llama_cpp': _CPP}.items():
    if peer in writers:
      outcome.add(f'plain_over_{name}', paired_ratio(taken, peer, _OURS))
      # The ratio is of totals over totals, as every other ratio of speeds.
      ratio = _speed(texts, taken, _OURS) / _speed(texts, taken, peer)
      outcome.summary[f'plain_over_{name}'] = ratio
  return outcome


def describe(
  name: str, taken: Seconds, texts: dict[str, list[list[int]]]
) -> dict[str, Any]:
  """One method's figures.

  `over_hf` is the method's tokens a second over those of Hugging Face's plain
  generate. `as_ours` counts the texts that equal our plain decoding's texts.
  `first_difference` is the earliest token at which a text differs.
  """
  own, base = texts[name], texts[_OURS]
  speed, peer = _speed(texts, taken, name), _speed(texts, taken, _PLAIN)
  grams = [distinct_ngrams(text) for text in own]
  known = [share for share in grams if share is not None]
  apart = [difference(a, b) for a, b in zip(own, base, strict=True) if a != b]
  return {
    'tokens_per_second': speed,
    'over_hf': speed / peer,
    'median_s': spread(taken[name]).median,
    'distinct_4grams': float(np.mean(known)) if known else None,
    'as_ours': len(own) - len(apart),
    'first_difference': min(apart, default=None),
  }


def _speed(
  texts: dict[str, list[list[int]]], taken: Seconds, name: str
) -> float:
  return sum(map(len, texts[name])) / sum(taken[name])


def difference(one: Sequence[int], two: Sequence[int]) -> int:
  """The place of the first token at which two texts differ, from 0."""
  pairs = enumerate(zip(one, two, strict=False))
  apart = (i for i, (a, b) in pairs if a != b)
  return next(apart, min(len(one), len(two)))


def ours(bench: Bench) -> Write:
  """Our plain decoding."""
  call = bench.call('plain', 1, 0.0)
  bench.engine.warmup(call, max(map(len, bench.timed)))
  return lambda prompt: bench.engine.generate([prompt], call)[0].tokens


def theirs(
  folder: pathlib.Path, new_tokens: int, threads: int
) -> dict[str, Write]:
  """Hugging Face's plain decoding, prompt lookup and early exit."""
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(threads)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  # Ours writes on past end-of-text tokens. In transformers these are a setting of
  # the model, which this config leaves out.
  model.generation_config = transformers.GenerationConfig(pad_token_id=0)
  half = max(1, model.config.num_hidden_layers // 2)
  kinds = {
    _PLAIN: {},
    'prompt lookup (HF)': {'prompt_lookup_num_tokens': _LOOKUP_TOKENS},
    'early exit (HF)': {'assistant_early_exit': half},
  }

  def writer(how: dict[str, Any]) -> Write:
    @torch.inference_mode()
    def write(prompt: Sequence[int]) -> list[int]:
      tokens = torch.tensor([list(prompt)])
      written = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=new_tokens,
        **how,
      )
      return written[0, len(prompt) :].tolist()

    return write

  return {name: writer(how) for name, how in kinds.items()}
