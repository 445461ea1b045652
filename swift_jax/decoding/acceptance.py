"""The rule by which a drawn token is accepted, so that the target's law stays.

One token. Let `target_probs` be the target's distribution of the next token and
`draft_probs` the one that a candidate x was drawn from. Accept x with probability
a(x) = min(1, target[x] / draft[x]); otherwise draw from the residual, which is
max(target - draft, 0) over its sum. The probability that y comes out is

  draft[y] a(y) + (1 - sum_x draft[x] a(x)) residual[y]
  = min(draft[y], target[y]) + max(target[y] - draft[y], 0)  =  target[y],

since both 1 - sum min(draft, target) and sum max(target - draft, 0) are the mass
that target has above draft (Leviathan et al., 2211.17192, appendix A.1; Chen et
al., 2302.01318, theorem 1).

Several candidates. After a refusal what remains is to draw from the residual: the
same task, with the residual as target and the next candidate's distribution as
draft. So the same step is right again, and again, and after the last refusal one
draws from the last residual (SpecInfer, 2305.09781, theorem 4.2). Candidates are
drawn without replacement: given x_1 .. x_{r-1}, the next one comes from draft_probs
without these, renormalised, and that is the distribution its step must use.

What it takes, beside these steps: given everything that was looked at until then,
a candidate must be distributed as its step believes. So how many candidates a place
has, and which of them a tree has room for, may depend on the candidates before and
on other places, not on the candidate itself. And every uniform is used once.

These functions work in the precision of their arguments.
"""

from __future__ import annotations

import jax.numpy as jnp

from swift_jax.typing import Array, Float, Int


def probability_of(
  probs: Float[Array, '*n v'], token: Int[Array, '*n']
) -> Float[Array, '*n']:
  """The probability of one token in each distribution."""
  return jnp.take_along_axis(probs, token[..., None], axis=-1)[..., 0]


def accept_probability(
  target_probs: Float[Array, '*n v'],
  draft_probs: Float[Array, '*n v'],
  token: Int[Array, '*n'],
) -> Float[Array, '*n']:
  """min(1, target / draft) at a token that was drawn from `draft_probs`."""
  target = probability_of(target_probs, token)
  draft = probability_of(draft_probs, token)
  ratio = target / jnp.where(draft > 0, draft, 1)
  # What was not drawn (a draft whose logits overflowed has no distribution) is no
  # candidate: refused, and the target itself is then drawn from.
  return jnp.where(draft > 0, jnp.minimum(1, ratio), 0)


def refuse(
  target_probs: Float[Array, '*n v'],
  draft_probs: Float[Array, '*n v'],
  token: Int[Array, '*n'],
) -> tuple[Float[Array, '*n v'], Float[Array, '*n v']]:
  """Target and draft after the refusal of a candidate.

  Returns:
    The residual, and the distribution of the next candidate: the draft's without
    this token (all zero where it has no other).
  """
  excess = jnp.maximum(target_probs - draft_probs, 0)
  mass = excess.sum(-1, keepdims=True)
  # Equal distributions refuse nothing, but for rounding: then either will do. Nor
  # does a draft without a distribution take anything off the target.
  residual = jnp.where(
    mass > 0, excess / jnp.where(mass > 0, mass, 1), target_probs
  )
  is_token = jnp.arange(draft_probs.shape[-1]) == token[..., None]
  others = jnp.where(is_token, 0, draft_probs)
  rest = others.sum(-1, keepdims=True)
  return residual, others / jnp.where(rest > 0, rest, 1)
