"""What transformers and torch make of a case. Needs the `parity` extra."""

import pathlib
from typing import Any

import numpy as np
import torch
import transformers

from reference import cases


def load(name: str, folder: pathlib.Path) -> Any:
  """The case as transformers loads it, float32."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    cases.write(name, folder), dtype=torch.float32, attn_implementation='eager'
  )


@torch.no_grad()
def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
  """Logits [T, V] of tokens int[T], without a cache."""
  return (
    model(torch.tensor(tokens)[None].long(), use_cache=False).logits[0].numpy()
  )


@torch.no_grad()
def greedy(model: Any, prompt: np.ndarray) -> np.ndarray:
  """Prompt and greedy text, int[P + NEW_TOKENS], with the cache."""
  tokens = torch.tensor(prompt)[None].long()
  cache, new = None, tokens
  for _ in range(cases.NEW_TOKENS):
    out = model(new, cache=cache, use_cache=True)
    cache, new = out.cache, out.logits[:, -1:].argmax(-1)
    tokens = torch.cat([tokens, new], dim=1)
  return tokens[0].numpy()
