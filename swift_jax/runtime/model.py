"""The target, and all that is kept from text to text about drafting with it."""

from __future__ import annotations

import jax

from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DraftConfig, ModelConfig
from swift_jax.decoding import drafting, policy
from swift_jax.decoding.drafting import DraftShapes
from swift_jax.model.llama import GraphDef, Params
from swift_jax.pacing import costs
from swift_jax.pacing.clock import Clock
from swift_jax.pacing.costs import PassCosts
from swift_jax.pacing.specialised import Specialised
from swift_jax.parallel.target import Target
from swift_jax.search.scorer import Scorer

# Batch, shapes and kind of sampling.
_Key = tuple[int, DraftShapes, tuple[bool, ...]]


class Model(Target):
  """The target on its devices, with all that a dispatch needs.

  Attributes:
    dispatches: of speculative rounds so far, over all texts, so that the rounds
      that are timed in halves come from anywhere in a text.
    shapes, settings: static and traced settings of drafts; the traced ones are
      on the device.
    scorer: scores candidate masks.
    evidence: what was learnt of drafts in the texts so far, on the host.
    keeps_costs: measured costs are read from and written to the user's folder.
    measured: costs of passes, by batch, shapes and kind of sampling. Those of one
      cache capacity serve the others; the clock corrects them.
    specialised: draft programs without gates, where gates are not quick.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    graphdef: GraphDef,
    params: Params,
    draft: DraftConfig,
    mesh: jax.sharding.Mesh | None = None,
  ):
    super().__init__(cfg, graphdef, params, mesh)
    self.dispatches = 0
    self.shapes, settings = drafting.split_config(draft, cfg.vocab_size)
    self.settings: drafting.DraftSettings = self.put(settings)
    self.scorer = Scorer(self)
    self.evidence = policy.start()
    self.keeps_costs = True
    self.measured: dict[_Key, PassCosts] = {}
    self._clocks: dict[_Key, Clock] = {}
    self.specialised = Specialised(self, self.settings)

  def clock(
    self, batch: int, shapes: DraftShapes, sampling: SamplingConfig
  ) -> Clock:
    """The clock of passes; `sampling` is resolved."""
    key = batch, shapes, costs.sampling_work(sampling)
    if key not in self.measured:
      self.measured[key] = costs.of_model(
        self, self.settings, batch, shapes, sampling, self.keeps_costs
      )
    if key not in self._clocks:
      self._clocks[key] = Clock(self.measured[key])
    return self._clocks[key]
