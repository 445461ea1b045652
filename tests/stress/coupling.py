"""How often a draft that shares the target's noise is right, and who foretells it.

  python tests/stress/coupling.py [TEMPERATURE]     .6; the demo model, a minute

The draft is the demo with the skip set that comes with it, the places are those of
texts that the target draws. Printed are the share of places where the two agree if
their draws share Gumbel noise, and the most that any coupling can reach (1 minus
the total variation); then how well two figures tell right drafts from wrong ones:
the draft's largest probability, and the softmax of its noisy scores.
"""

import pathlib
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from swift_jax import DecodeConfig, Engine, SamplingConfig, SearchConfig
from swift_jax.benchmark import prompts as benchmark_prompts
from swift_jax.checkpoint.hub import DEMO_MODEL

PROMPTS, NEW_TOKENS, DRAWS = 16, 128, 20


def area(values: np.ndarray, right: np.ndarray) -> float:
  """Area under the curve of hits over false alarms: .5 tells nothing, 1 all."""
  ranks = stats.rankdata(values)
  hits = right.sum()
  above = ranks[right].sum() - hits * (hits + 1) / 2
  return float(above / (hits * (len(right) - hits)))


def distributions(engine: Engine, temperature: float) -> list[np.ndarray]:
  """Log-probabilities of the target and of the draft, [places, V] each."""
  model = engine.model
  prompts = benchmark_prompts.prompts_of(engine, benchmark_prompts.programs())
  sampling = SamplingConfig(
    temperature=temperature,
    top_k=0,
    max_new_tokens=NEW_TOKENS,
    use_generation_config=False,
  )
  decode = DecodeConfig('plain', ignore_eos=True, sampling=sampling)

  @jax.jit
  def log_probs(params, tokens, mask):
    decoder = nnx.merge(model.graphdef, params)
    logits = decoder.logits(decoder(tokens, mask)[0])
    return jax.nn.log_softmax(logits / temperature)[0]

  found = [[], []]
  for result in engine.generate(prompts[-PROMPTS:], decode):
    text = jnp.asarray([[*result.prompt, *result.tokens]])
    generated = slice(len(result.prompt) - 1, -1)
    masks = model.none_skipped, model.put(engine.skip_mask)
    for rows, mask in zip(found, masks, strict=True):
      rows.append(np.asarray(log_probs(model.params, text, mask))[generated])
  return [np.concatenate(rows) for rows in found]


def main(temperature: float = 0.6) -> None:
  search = SearchConfig(cache=str(pathlib.Path(DEMO_MODEL) / 'skip_sets.json'))
  engine = Engine.from_pretrained('demo', dtype='float32', search=search)
  target, draft = distributions(engine, temperature)
  most = np.minimum(np.exp(target), np.exp(draft)).sum(-1).mean()
  rng = np.random.default_rng(0)
  right, noisy = [], []
  for _ in range(DRAWS):
    noise = rng.gumbel(size=target.shape).astype(np.float32)
    scores = draft + noise
    right.append(scores.argmax(-1) == (target + noise).argmax(-1))
    noisy.append(np.asarray(jax.nn.softmax(scores)).max(-1))
  right, noisy = np.concatenate(right), np.concatenate(noisy)
  certain = np.tile(np.exp(draft).max(-1), DRAWS)
  print(f'{len(target)} places at temperature {temperature:g}')
  print(f'right, with shared noise     {right.mean():.3f}')
  print(f'right, the most possible     {most:.3f}')
  print(f'area, largest probability    {area(certain, right):.3f}')
  print(f'area, softmax of the scores  {area(noisy, right):.3f}')


if __name__ == '__main__':
  main(*map(float, sys.argv[1:]))
