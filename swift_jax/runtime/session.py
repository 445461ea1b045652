"""One batch from prompt to end: where decoding and search meet.

Everything here runs on the host between dispatches. A dispatch runs several
rounds on the device; then the host reads what it needs in one transfer, hands
text on, looks for stop strings and lets the search have its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from swift_jax.config.sampling import SamplingConfig
from swift_jax.config.settings import DecodeConfig, DraftConfig, ModelConfig
from swift_jax.decoding import drafting, logprobs, policy, rounds, sampling
from swift_jax.decoding import state as states
from swift_jax.decoding.drafting import DraftSettings, DraftShapes
from swift_jax.decoding.state import DecodeState
from swift_jax.errors import InputError
from swift_jax.model import kv_cache
from swift_jax.model import skip_mask as skip_masks
from swift_jax.model.llama import GraphDef, Params
from swift_jax.pacing import clock as clocks
from swift_jax.pacing import costs
from swift_jax.pacing.costs import PassCosts
from swift_jax.pacing.specialised import Specialised
from swift_jax.parallel import sharding
from swift_jax.runtime.detokenizer import Bytes, Detokenizer
from swift_jax.runtime.metrics import LogProbs, Round
from swift_jax.search import matchness
from swift_jax.search.scorer import Scorer
from swift_jax.search.searcher import STARTING_SECONDS, Searcher

_COMPILING_S = 10.0  # about what the search's programs take
_MIN_CAPACITY = 128
_NO_TEXT = 2**30  # as a prompt's length: nothing after it counts


class Model:
  """The target on its devices, with what every dispatch needs beside it.

  Attributes:
    capacity: cache slots a row. It grows when a batch needs more and never
      shrinks: programs are compiled for it.
    dispatches: of speculative rounds so far, over all texts, so that the rounds
      that are timed in halves come from anywhere in a text.
    evidence: what drafting brought in the texts so far, on the host.
    keeps_costs: what passes cost is read from and written to the user's folder.
    measured: what they cost, by batch, capacity, shapes and kind of sampling.
    full: skips nothing; with gates only where they are quick.
    gates_are_quick: quicker than a program without them, and never the host's
      business: on a CPU.
    specialised: draft programs without gates, where they are not.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    graphdef: GraphDef,
    params: Params,
    draft: DraftConfig,
    mesh: jax.sharding.Mesh | None = None,
  ):
    self.cfg, self.graphdef, self.params = cfg, graphdef, params
    self.mesh = mesh
    self.capacity = _MIN_CAPACITY
    self.dispatches = 0
    self.shapes, settings = drafting.split_config(draft, cfg.vocab_size)
    self.settings = self.put(settings)
    self.scorer = Scorer(self)
    self.evidence = policy.start()
    self.keeps_costs = True
    self.measured: dict[tuple[Any, ...], costs.PassCosts] = {}
    self._clocks: dict[tuple[Any, ...], clocks.Clock] = {}
    full = skip_masks.none_skipped(cfg.num_hidden_layers)
    self.gates_are_quick = jax.default_backend() == 'cpu'
    self.full: skip_masks.Mask = (
      self.put(full) if self.gates_are_quick else skip_masks.KnownMask.of(full)
    )
    self.specialised = Specialised(self)
    self._numbers: dict[int, jax.Array] = {}

  def reserve(self, slots: int) -> None:
    """Grows `capacity` to the next of 128, 192, 256, 384, 512, 768, ...

    Two sizes an octave: few to compile for, and a step reads all slots, so that
    few stand empty.
    """
    while self.capacity < slots:
      is_power = self.capacity & (self.capacity - 1) == 0
      self.capacity = (
        self.capacity * 3 // 2 if is_power else self.capacity * 4 // 3
      )

  def put(self, tree: Any) -> Any:
    """Arrays on the device, replicated over a mesh. Uploads go here."""
    return sharding.put(tree, self.mesh)

  def put_rows(self, tree: Any) -> Any:
    """Arrays of a line for each row, where the state has them."""
    return sharding.put(tree, self.mesh, sharding.rows(self.mesh))

  def get(self, tree: Any) -> Any:
    """Arrays on the host, in one transfer. Every download goes here."""
    return sharding.get(tree, self.mesh)

  def number(self, value: int) -> jax.Array:
    """A small integer on the device, uploaded once."""
    if value not in self._numbers:
      self._numbers[value] = self.put(np.int32(value))
    return self._numbers[value]

  def clock(
    self, batch: int, shapes: DraftShapes, settings: SamplingConfig
  ) -> clocks.Clock:
    """What passes cost at today's capacity; `settings` are resolved."""
    key = batch, self.capacity, shapes, costs.sampling_work(settings)
    if key not in self.measured:
      self.measured[key] = costs.of_model(
        self, batch, shapes, settings, self.keeps_costs
      )
    if key not in self._clocks:
      self._clocks[key] = clocks.Clock(self.measured[key])
    return self._clocks[key]

  def empty_cache(self, batch: int, capacity: int) -> kv_cache.KVCache:
    """A cache made where it will live: no device holds another's heads."""
    cfg = self.cfg
    empty = jax.jit(
      kv_cache.empty,
      static_argnums=range(6),
      out_shardings=sharding.cache_shardings(self.mesh),
    )
    return empty(
      cfg.num_hidden_layers,
      batch,
      cfg.num_key_value_heads,
      capacity,
      cfg.head_dim,
      cfg.jax_dtype,
    )


class Seen(NamedTuple):
  """What the host reads after a dispatch, in one transfer.

  Attributes:
    tokens: int32[B, S].
    length: committed tokens, int32[B].
    done: bool[B].
    finite: bool[].
    counts: of int32[B].
    work: int32[2 + W].
  """

  tokens: np.ndarray
  length: np.ndarray
  done: np.ndarray
  finite: np.ndarray
  counts: states.Counts
  work: np.ndarray

  @classmethod
  def of(cls, state: DecodeState, model: Model) -> Seen:
    cached, *rest = model.get(
      (
        state.cache.length,
        state.tokens,
        state.done,
        state.finite,
        state.counts,
        state.work,
      )
    )
    tokens, *rest = rest
    return cls(tokens, cached + 1, *rest)


class Piece(NamedTuple):
  """What a row has got: tokens, and the text that has become certain."""

  row: int
  text: str
  tokens: list[int]


@dataclasses.dataclass
class Seconds:
  """Time of a batch by phase."""

  prefill: float = 0.0
  decode: float = 0.0
  draft: float = 0.0  # a sample of decode's, as is
  verify: float = 0.0
  search: float = 0.0


@dataclasses.dataclass
class Row:
  """One prompt of the batch.

  Attributes:
    prompt: token ids.
    text: its tokens and text so far.
    counts: what it took, by the names of `Counts`; frozen once it is done.
    done: nothing more comes.
  """

  prompt: Sequence[int]
  text: Detokenizer
  counts: dict[str, int]
  done: bool = False


class Session:
  """A batch being written."""

  def __init__(
    self,
    model: Model,
    searcher: Searcher,
    prompts: Sequence[Sequence[int]],
    token_bytes: Bytes,
    decode: DecodeConfig,
    indices: Sequence[int] | None = None,
  ):
    """Prefills.

    Args:
      token_bytes: the bytes that a token adds to a text.
      decode: its sampling is resolved.
      indices: of the prompts in the run; 0, 1, ... if None.
    """
    self.model, self.searcher, self.decode = model, searcher, decode
    self._indices = range(len(prompts)) if indices is None else indices
    shapes = model.shapes._replace(samples=decode.sampling.samples)
    is_lookup = decode.method == 'prompt_lookup'
    self._shapes = drafting.for_lookup(shapes) if is_lookup else shapes
    self.seconds = Seconds()
    # The incumbent and what it saves as a known mask; that and what passes cost, on
    # the device.
    self._drafting: tuple[skip_masks.SkipMask, float | None] | None = None
    self._mask: skip_masks.Mask | None = None
    self._settings, self._told = model.settings, None
    self._saved: float | None = None
    names = [f.name for f in dataclasses.fields(states.Counts)]
    self.rows = [
      Row(
        prompt,
        Detokenizer(token_bytes, decode.sampling.stop_strings, prompt),
        dict.fromkeys(names, 0),
      )
      for prompt in prompts
    ]
    self._sampling = model.put(
      sampling.from_config(decode.sampling, self.eos_token_ids)
    )
    searcher.new_text()
    self._scored_at = [0] * len(prompts)  # tokens of each row, the last time
    self._reserve()
    self._clock = None
    if self._shapes.adaptive and decode.method == 'swift':
      self._clock = model.clock(
        decode.batch_size, self._shapes, decode.sampling
      )
    started = time.perf_counter()
    self.state = self._prefill()
    self.seconds.prefill = time.perf_counter() - started
    self._pay(self.seconds.prefill)

  @property
  def eos_token_ids(self) -> tuple[int, ...]:
    """Tokens that end a row."""
    return () if self.decode.ignore_eos else self.decode.sampling.eos_token_id

  def _limits(self) -> tuple[np.ndarray, np.ndarray]:
    """Each row's prompt length, and how many tokens it may write."""
    lengths = np.ones(self.decode.batch_size, np.int32)
    limits = np.zeros(self.decode.batch_size, np.int32)
    for b, row in enumerate(self.rows):
      lengths[b] = len(row.prompt)
      room = self.model.cfg.max_position_embeddings - len(row.prompt)
      limits[b] = min(self.decode.sampling.max_new_tokens, room)
    return lengths, limits

  def _reserve(self) -> None:
    """Sees to it that the cache holds what this batch may write."""
    lengths, limits = self._limits()
    chunk = self.decode.prefill_chunk
    chunks = -(-(int(lengths.max()) - 1) // chunk)
    # A pass may write a whole tree behind the last token that counts.
    longest = int((lengths + limits).max()) + self.model.shapes.max_width + 1
    self.model.reserve(max(chunks * chunk, longest))

  def _prefill(self) -> DecodeState:
    """Uploads the prompts and fills the cache; spare rows are done at once."""
    batch, chunk = self.decode.batch_size, self.decode.prefill_chunk
    indices = np.zeros(batch, np.uint32)
    indices[: len(self.rows)] = self._indices
    lengths, limits = self._limits()
    chunks = -(-(int(lengths.max()) - 1) // chunk)
    model = self.model
    tokens = np.zeros((batch, model.capacity), np.int32)
    for b, row in enumerate(self.rows):
      tokens[b, : len(row.prompt)] = row.prompt
    cache = model.empty_cache(batch, model.capacity)
    seed = np.asarray(self.decode.sampling.seed, np.uint32)
    arrays = (tokens, lengths, limits, seed, indices, model.evidence)
    num_widths = len(self._shapes.verify_widths)
    state = rounds.start(
      cache, *model.put(arrays), num_widths=num_widths, mesh=model.mesh
    )
    for i in range(chunks):
      at = model.number(i * chunk)
      state = rounds.prefill(
        model.graphdef, model.params, state, model.full, at, chunk
      )
    return jax.block_until_ready(state)

  def advance(self, count: int) -> DecodeState:
    """One dispatch of `count` rounds, or of as many plain steps."""
    model = self.model
    if self.decode.method == 'plain':
      return rounds.plain_steps(
        model.graphdef,
        model.params,
        self.state,
        model.full,
        self._sampling,
        model.number(count),
        self._shapes.samples,
      )
    interval = self.decode.phase_interval
    model.dispatches += 1
    mask, settings = self._drafts_by()
    clock = self._clock
    if clock is not None and (clock.guard.is_closed or clock.wants_plain_steps):
      settings = settings.replace(forced=model.number(policy.PLAIN))
      count = count if clock.guard.is_closed else 1
    elif interval and model.dispatches % interval == 0:
      self.state = self.in_halves()
      count -= 1
    if not count:
      return self.state
    return rounds.speculative_rounds(
      model.graphdef,
      model.params,
      self.state,
      mask,
      model.full,
      settings,
      self._sampling,
      model.number(count),
      self._shapes,
    )

  def in_halves(self) -> DecodeState:
    """One round, with the time of drafting and that of verifying.

    Behind gates: nobody waits for a program of so few rounds.
    """
    model = self.model
    mask, settings = model.put(self.searcher.incumbent), self._drafts_by()[1]
    settings = settings, self._sampling, self._shapes
    started = time.perf_counter()
    draft, state = rounds.draft_half(
      model.graphdef, model.params, self.state, mask, *settings
    )
    jax.block_until_ready(draft)
    drafted = time.perf_counter()
    state = rounds.verify_half(
      model.graphdef, model.params, state, draft, model.full, *settings
    )
    jax.block_until_ready(state)
    self.seconds.draft += drafted - started
    self.seconds.verify += time.perf_counter() - drafted
    return state

  def _drafts_by(self) -> tuple[skip_masks.Mask, DraftSettings]:
    """The incumbent on the device, and settings that know what it costs; each is
    uploaded when it changes."""
    incumbent, model, saved = self.searcher.incumbent, self.model, self._saved
    before = self._drafting or (None, None)
    if before[0] is not incumbent or before[1] != saved:
      self._drafting = incumbent, saved
      self._mask = (
        model.put(incumbent)
        if saved is None
        else skip_masks.KnownMask.of(incumbent)
      )
    if self._clock is not None:
      its_costs = self._clock.for_policy(incumbent, saved or 0)
      if self._told is None or not its_costs.is_near(self._told):
        self._told = its_costs
        self._settings = model.settings.replace(costs=model.put(its_costs))
    return self._mask, self._settings

  @property
  def _costs(self) -> PassCosts | None:
    """What passes cost by now, where the policy weighs it."""
    return self._clock.costs if self._clock else None

  def _observe(self, work: np.ndarray, steps: int, seconds: float) -> None:
    """Lets the clock correct what is believed; processes in step would differ."""
    if self._clock is None or sharding.spans_processes(self.model.mesh):
      return
    incumbent, saved = self.searcher.incumbent, self._saved or 0
    draft = self._clock.measured.draft(incumbent, saved)
    self._clock.observe(work, draft, steps, seconds)

  def specialise(self, mask: skip_masks.SkipMask, waits: bool = False) -> None:
    """Drafts without gates once that is there, if it is cheaper.

    Args:
      mask: that of a search at rest.
      waits: for the program.
    """
    saves = self.model.specialised.saves
    batch, capacity = self.state.tokens.shape
    how = batch, capacity, self._shapes, self.decode.sampling
    self._saved = saves(mask, *how, waits=waits)

  def run(self) -> Iterator[Piece]:
    """Writes until every row has ended, and yields what has come.

    Raises:
      InputError: the logits are not finite.
    """
    is_swift = self.decode.method == 'swift'
    per_dispatch = self.decode.rounds_per_dispatch
    if self.decode.sampling.stop_strings:
      per_dispatch = 1  # so that counts end where the text does
    if self.decode.method == 'plain':
      # Plain decoding goes to the host no more often than SWIFT does.
      per_dispatch *= policy.STRETCH
    searcher = self.searcher
    due, pass_guess = searcher.cfg.opt_interval, math.inf
    written, work = 0, 0
    while not all(row.done for row in self.rows):
      searching = (
        is_swift
        and searcher.active
        and self._may_pay()
        and sharding.agreed(
          searcher.budget.allows(pass_guess, saves=searcher.saves),
          self.model.mesh,
        )
      )
      count = max(1, min(per_dispatch, due)) if searching else per_dispatch
      self._saved = None
      if is_swift and not (searcher.active or self.model.gates_are_quick):
        with self._searching():
          self.specialise(searcher.incumbent)
      started = time.perf_counter()
      self.state = self.advance(count)
      seen = Seen.of(self.state, self.model)
      taken = time.perf_counter() - started
      self.seconds.decode += taken
      steps = self._plain_steps(seen) - written
      self._pay(taken, steps)
      self._observe(seen.work - work, steps, taken)
      written, work = written + steps, seen.work
      pass_guess = self._pass_guess(taken / count)
      if not seen.finite:
        raise _not_finite(self.model.cfg)
      yield from self._read(seen)
      due -= count
      # Whoever read the text may have ended the search.
      if searching and searcher.active and due <= 0:
        self._search()
        due = searcher.cfg.opt_interval

  def _plain_steps(self, seen: Seen) -> int:
    """Those that would have brought the batch as far.

    Rows that are ahead bring its end no nearer.
    """
    prompts = np.array([len(row.prompt) for row in self.rows])
    new = seen.length[: len(prompts)] - prompts
    done = seen.done[: len(prompts)]
    return int(new.max() if done.all() else new[~done].min())

  def _pass_guess(self, per_round: float) -> float:
    """Seconds of a scoring pass before there was one."""
    guess = per_round  # a mask takes about a round
    if self._clock is not None:  # or as many wide ones as make a window
      windows = self.searcher.cfg.context_window / self._shapes.max_width
      wide = windows * self._costs.verify[-1] * self._costs.step_s
      guess = max(guess, wide)
    return self.searcher.num_candidates * guess

  def _may_pay(self) -> bool:
    """Whether a better set of this ratio could make anything faster.

    True where nobody knows, and where the search may have all the time.
    """
    searcher = self.searcher
    if self._costs is None or searcher.budget.share >= 1:
      return True
    sizes = self.model.cfg.num_hidden_layers, searcher.incumbent.num_skipped()
    return self._costs.highest_speed(*sizes, self._shapes.verify_widths) > 1

  def _pay(self, seconds: float, steps: int | None = None) -> None:
    """Time that the search's share is taken of; plain decoding gives none.

    Args:
      steps: plain steps that would have written the same; None: no text was.
    """
    if self.decode.method != 'swift':
      return
    plain = seconds if steps is None else None
    if steps is not None and self._clock is not None:
      plain = steps * self._costs.step_s
    self.searcher.budget.add(seconds, plain if self._costs else None)

  def _read(self, seen: Seen) -> list[Piece]:
    """Takes each row's new tokens and looks for stop strings."""
    stopped, pieces = [], []
    before = self._verdict()
    for b, row in enumerate(self.rows):
      if row.done:
        continue
      before_tokens = len(row.text.tokens)
      have = len(row.prompt) + before_tokens
      fresh = seen.tokens[b, have : seen.length[b]].tolist()
      piece = row.text.push(fresh)
      counts = {name: int(getattr(seen.counts, name)[b]) for name in row.counts}
      if row.text.stopped:
        returned = len(row.text.tokens) - before_tokens
        counts = _counts_up_to(row.counts, counts, returned)
        if self.decode.method == 'plain':
          counts['verify_passes'] = len(row.text.tokens)
        stopped.append(b)
      row.counts = counts
      row.done = bool(seen.done[b]) or row.text.stopped
      if row.done:
        piece += row.text.finish()
      pieces.append(Piece(b, piece, row.text.tokens[before_tokens:]))
    if stopped and not all(row.done for row in self.rows):
      done = np.array(seen.done)
      done[stopped] = True
      self.state = self.state.replace(done=self.model.put_rows(done))
    if self.decode.method == 'swift':
      drafted, accepted = np.subtract(self._verdict(), before).tolist()
      self.searcher.watch(drafted, accepted)
    return pieces

  def rounds(self) -> list[list[Round]]:
    """What each pass of the target did for each row; they add up to its text."""
    if self.decode.method == 'plain':
      return [[Round(0, 0, 1)] * len(row.text.tokens) for row in self.rows]
    log, self.model.evidence = self.model.get(
      (self.state.log, self.state.evidence)
    )
    return [
      _rounds_up_to(log[b, : row.counts['verify_passes']], len(row.text.tokens))
      for b, row in enumerate(self.rows)
    ]

  def log_probs(self) -> list[LogProbs | None]:
    """How likely the target finds each row's text, where that is asked for.

    By passes of the target over the text as it was returned, so that what it is has
    nothing to do with the method that wrote it. Their time is part of decoding's.

    Raises:
      InputError: they are not finite.
    """
    if self.decode.sampling.logprobs is None:
      return [None] * len(self.rows)
    started = time.perf_counter()
    longest = max(len(row.text.tokens) for row in self.rows)
    parts = [self.force(at) for at in range(0, longest, self._forced_width)]
    taken = time.perf_counter() - started
    self.seconds.decode += taken
    self._pay(taken)
    return [
      _log_probs_of(parts, b, len(row.text.tokens), self.model.cfg)
      for b, row in enumerate(self.rows)
    ]

  @property
  def _forced_width(self) -> int:
    """Tokens of each row that a pass over the finished text takes."""
    wanted = min(self.decode.prefill_chunk, logprobs.WIDEST)
    return min(wanted, self.model.capacity)

  def force(self, start: int) -> logprobs.Places:
    """One pass over the text, from the new token `start` of each row."""
    model, state = self.model, self.state
    cache, places = logprobs.force(
      model.graphdef,
      model.params,
      state.cache,
      state.tokens,
      state.prompt_length,
      model.full,
      model.number(start),
      self._forced_width,
      self.decode.sampling.logprobs,
      model.mesh,
    )
    self.state = state.replace(cache=cache)
    return model.get(places)

  def _verdict(self) -> tuple[int, int]:
    """Tokens drafted by layers, and accepted ones, so far."""

    def total(name: str) -> int:
      return sum(row.counts[name] for row in self.rows)

    drafted = total('drafted') - total('copied')
    return drafted, total('accepted') - total('copies_accepted')

  def _search(self) -> None:
    """One scoring pass, if the batch has written a window of text and more."""
    written = [len(row.text.tokens) for row in self.rows]
    fresh = sum(written) - sum(self._scored_at)
    searcher = self.searcher
    if not fresh or sum(written) < searcher.cfg.context_window:
      return
    with self._searching():
      if not self._is_compiled():
        return
      self.prepare_search()
    with self._searching(is_pass=True):
      candidates = searcher.candidates()
      searcher.observe(candidates, self.score(candidates), fresh)
    self._scored_at = written

  def prepare_search(self) -> None:
    """What the search asks for beside scores, once: not in a pass's time."""
    searcher, text = self.searcher, self._text()
    window = searcher.cfg.context_window
    if searcher.wants_process and sharding.agreed(
      searcher.budget.affords(STARTING_SECONDS), self.model.mesh
    ):
      # gpjax makes arrays of its own when it is imported.
      with jax.transfer_guard('allow'):
        searcher.start_process()
    if searcher.wants_importance:
      searcher.take_importance(
        self.model.scorer.importance(
          text, window, searcher.incumbent.skip_ratio()
        )
      )
    scoring = searcher.cfg.scoring
    self.model.scorer.choose(text, self._like_candidates(), window, scoring)

  def _like_candidates(self) -> skip_masks.SkipMask:
    """As many masks as a pass scores."""
    searcher = self.searcher
    return skip_masks.stack([searcher.incumbent] * searcher.num_candidates)

  def _is_compiled(self) -> bool:
    """Whether the search's programs are there.

    They are compiled beside the text, once that has been written for as long as it
    takes: a run may end at any moment.
    """
    searcher, mesh = self.searcher, self.model.mesh
    budget = searcher.budget
    # Nothing may go by the clock, or two threads might start programs on several
    # devices in two orders: compiled where they are called.
    if budget.share >= 1 or (mesh is not None and mesh.size > 1):
      return True
    written = budget.elapsed if budget.plain is None else budget.plain
    return self.model.scorer.is_ready(
      self._text(),
      self._like_candidates(),
      searcher.cfg.context_window,
      searcher.cfg.scoring,
      searcher.wants_importance,
      begins=written >= _COMPILING_S,
    )

  @contextlib.contextmanager
  def _searching(self, is_pass: bool = False) -> Iterator[None]:
    """Time of the search."""
    started = time.perf_counter()
    yield
    taken = time.perf_counter() - started
    self.seconds.search += taken
    self.searcher.budget.pay(taken, is_pass)

  def score(self, candidates: skip_masks.SkipMask) -> matchness.Scores:
    """What each candidate makes of the batch's newest text, on the host."""
    cfg = self.searcher.cfg
    text, window = self._text(), cfg.context_window
    return self.model.scorer.score(text, candidates, window, cfg.scoring)

  def _text(self) -> matchness.Text:
    """What is new: a row that has written nothing since has been scored."""
    state = self.state
    prompts = np.full(len(state.done), _NO_TEXT, np.int32)
    for b, row in enumerate(self.rows):
      if len(row.text.tokens) > self._scored_at[b]:
        prompts[b] = len(row.prompt)
    text = matchness.Text(
      state.cache, state.tokens, state.target, self.model.put(prompts)
    )
    if self.searcher.uses_first_window:
      return matchness.as_of(text, self.searcher.cfg.context_window)
    return text


def _not_finite(cfg: ModelConfig) -> InputError:
  return InputError(
    'the model gives logits that are not finite (NaN or infinity): the weights'
    f' are damaged, or dtype={cfg.dtype!r} overflows'
  )


def _log_probs_of(
  parts: Sequence[logprobs.Places], row: int, count: int, cfg: ModelConfig
) -> LogProbs:
  """Those of a row's first `count` tokens, from all passes over the text."""
  own: list[float] = []
  top: list[list[tuple[int, float]]] = []
  for part in parts:
    live = slice(count - len(own))
    values, best = part.own[row, live], part.best[row, live]
    if not (np.isfinite(values).all() and np.isfinite(best).all()):
      raise _not_finite(cfg)
    own += values.tolist()
    ids = part.ids[row, live].tolist()
    pairs = zip(ids, best.tolist(), strict=True)
    top += [list(zip(*pair, strict=True)) for pair in pairs]
  return LogProbs(own, top)


def _rounds_up_to(log: np.ndarray, returned: int) -> list[Round]:
  """A row's rounds, the last one cut where a stop string cut the text."""
  rounds = []
  for line in log.tolist():
    drafted, accepted, kept = line
    kept = min(kept, returned)
    rounds.append(Round(drafted, min(accepted, kept), kept))
    returned -= kept
  return rounds


def _counts_up_to(
  before: dict[str, int], after: dict[str, int], returned: int
) -> dict[str, int]:
  """Counts of a row whose last round was cut to `returned` tokens on the host.

  As on the device: what was drafted and verified stays, what was accepted counts
  only if it was returned.
  """
  grown = {name: after[name] - before[name] for name in after}
  if not grown['drafted']:  # plain steps, a token each
    names = 'verify_passes', 'bonus_tokens'
    cut = {name: before[name] + min(grown[name], returned) for name in names}
    return {**after, **cut}
  accepted, leaf_hits = grown['accepted'], grown['leaf_hits']
  own = grown['bonus_tokens'] + grown['corrected_tokens']
  counts = dict(after)
  counts['accepted'] = before['accepted'] + min(accepted, returned)
  if returned <= accepted:
    counts['leaf_hits'] = before['leaf_hits']
  if returned < accepted + leaf_hits + own:
    for name in ('bonus_tokens', 'corrected_tokens'):
      counts[name] = before[name]
  return counts
