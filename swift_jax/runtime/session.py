"""One batch from prompt to end: where decoding and search meet.

Everything here runs on the host between dispatches. A dispatch runs several
rounds on the device; then the host reads what it needs in one transfer, hands
text on, looks for stop strings and lets the search have its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import time

import jax
import numpy as np

from swift_jax.config.settings import DecodeConfig
from swift_jax.decoding import drafting, logprobs, policy, rounds, sampling
from swift_jax.decoding.drafting import DraftSettings
from swift_jax.decoding.state import DecodeState
from swift_jax.model import skip_mask as skip_masks
from swift_jax.pacing.clock import Clock
from swift_jax.pacing.governor import Governor
from swift_jax.parallel import sharding
from swift_jax.runtime.detokenizer import Bytes
from swift_jax.runtime.metrics import LogProbs
from swift_jax.runtime.model import Model
from swift_jax.runtime.rows import (
  Dispatch,
  Piece,
  Rows,
  Seen,
  log_probs_of,
  not_finite,
)
from swift_jax.runtime.turns import Seconds, Turns
from swift_jax.search.searcher import Searcher


class Session:
  """A batch being written.

  Attributes:
    rows: its prompts and their texts so far.
    seconds: its time by phase.
    state: the batch on the device.
    turns: the search's.
  """

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
      indices: indices of the prompts in the run; None means 0, 1, ...
    """
    self.model, self.searcher, self.decode = model, searcher, decode
    self._indices = range(len(prompts)) if indices is None else indices
    shapes = model.shapes._replace(samples=decode.sampling.samples)
    is_lookup = decode.method == 'prompt_lookup'
    self._shapes = drafting.for_lookup(shapes) if is_lookup else shapes
    self._is_swift = decode.method == 'swift'
    # The mask on the host and the seconds that it saves as a known mask, as they
    # were when mask and settings were last uploaded.
    self._drafting: tuple[skip_masks.Bits, float | None] | None = None
    self._mask: skip_masks.Mask | None = None
    self._settings, self._costs = model.settings, None
    self._saved: float | None = None
    self.rows = Rows(prompts, token_bytes, decode.sampling.stop_strings)
    self._sampling = model.put(
      sampling.from_config(decode.sampling, self.eos_token_ids)
    )
    self._lengths, self._limits = self.rows.limits(
      decode.batch_size,
      decode.sampling.max_new_tokens,
      model.cfg.max_position_embeddings,
    )
    self._reserve()
    # Other methods are no part of an engine's account.
    is_swift = self._is_swift
    self._governor = searcher.governor if is_swift else Governor(share=0)
    self._governor.begin(self._what_passes_cost())
    self.seconds = Seconds()
    self.turns = Turns(model, searcher, self.rows, self.seconds, self._shapes)
    # Of all dispatches so far.
    self._steps, self._work = 0, np.zeros((), np.int32)
    started = time.perf_counter()
    self.state = self._prefill()
    self.seconds.prefill = time.perf_counter() - started
    self._governor.add(self.seconds.prefill)

  def _what_passes_cost(self) -> Clock | None:
    """None where no policy weighs costs."""
    decode, shapes = self.decode, self._shapes
    if not (self._is_swift and shapes.adaptive):
      return None
    return self.model.clock(decode.batch_size, shapes, decode.sampling)

  @property
  def eos_token_ids(self) -> tuple[int, ...]:
    """Tokens that end a row."""
    return () if self.decode.ignore_eos else self.decode.sampling.eos_token_id

  @property
  def _prefill_chunks(self) -> int:
    """Chunks that hold all prompts without their last tokens.

    The first round begins with the last tokens.
    """
    return -(-(int(self._lengths.max()) - 1) // self.decode.prefill_chunk)

  def _reserve(self) -> None:
    """Makes the cache large enough for all that this batch may write."""
    chunks = self._prefill_chunks * self.decode.prefill_chunk
    # A pass may write a whole tree behind the last token that counts.
    longest = int((self._lengths + self._limits).max())
    needed = max(chunks, longest + self.model.shapes.max_width + 1)
    self.model.reserve(needed, self.decode.batch_size)

  def _prefill(self) -> DecodeState:
    """Uploads the prompts and fills the cache; spare rows are done at once."""
    batch, chunk = self.decode.batch_size, self.decode.prefill_chunk
    indices = np.zeros(batch, np.uint32)
    indices[: len(self.rows)] = self._indices
    model = self.model
    tokens = np.zeros((batch, model.capacity), np.int32)
    for b, row in enumerate(self.rows):
      tokens[b, : len(row.prompt)] = row.prompt
    cache = model.empty_cache(batch, model.capacity)
    seed = np.asarray(self.decode.sampling.seed, np.uint32)
    lengths, limits = self._lengths, self._limits
    arrays = (tokens, lengths, limits, seed, indices, model.evidence)
    num_widths = len(self._shapes.verify_widths)
    state = rounds.start(
      cache, *model.put(arrays), num_widths=num_widths, mesh=model.mesh
    )
    for i in range(self._prefill_chunks):
      at = model.number(i * chunk)
      state = rounds.prefill(
        model.graphdef, model.params, state, model.none_skipped, at, chunk
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
        model.none_skipped,
        self._sampling,
        model.number(count),
        self._shapes.samples,
      )
    interval = self.decode.phase_interval
    model.dispatches += 1
    mask, settings = self._drafts_by()
    is_sampled = interval and model.dispatches % interval == 0
    if is_sampled and self._governor.may_draft:
      self.state = self.in_halves()
      count -= 1
    if not count:
      return self.state
    return rounds.speculative_rounds(
      model.graphdef,
      model.params,
      self.state,
      mask,
      model.none_skipped,
      settings,
      self._sampling,
      model.number(count),
      self._shapes,
    )

  def in_halves(self) -> DecodeState:
    """One round, with the time of drafting and that of verifying.

    It runs behind gates: a program without gates would be compiled for few rounds.
    """
    model = self.model
    mask = model.put_mask(self.searcher.incumbent)
    settings = self._drafts_by()[1]
    settings = settings, self._sampling, self._shapes
    started = time.perf_counter()
    draft, state = rounds.draft_half(
      model.graphdef, model.params, self.state, mask, *settings
    )
    jax.block_until_ready(draft)
    drafted = time.perf_counter()
    state = rounds.verify_half(
      model.graphdef, model.params, state, draft, model.none_skipped, *settings
    )
    jax.block_until_ready(state)
    self.seconds.draft += drafted - started
    self.seconds.verify += time.perf_counter() - drafted
    return state

  def _drafts_by(self) -> tuple[skip_masks.Mask, DraftSettings]:
    """The incumbent and the settings with its costs, on the device.

    Each is uploaded when it changes.
    """
    incumbent, model, saved = self.searcher.incumbent, self.model, self._saved
    before = self._drafting or (None, None)
    if before[0] is not incumbent or before[1] != saved:
      self._drafting = incumbent, saved
      self._mask = (
        model.put_mask(incumbent)
        if saved is None
        else skip_masks.KnownMask.of(skip_masks.from_bits(incumbent))
      )
    costs = self._governor.for_policy(incumbent, saved or 0)
    if costs is not None:
      if self._costs is None or not costs.is_near(self._costs):
        self._costs = costs
        self._settings = model.settings.replace(costs=model.put(costs))
    return self._mask, self._settings

  def specialise(self, bits: skip_masks.Bits, waits: bool = False) -> None:
    """Drafts without gates as soon as such a program is ready and cheaper.

    Args:
      bits: the mask of a search at rest.
      waits: wait for the program.
    """
    saved_seconds = self.model.specialised.saved_seconds
    batch, capacity = self.state.tokens.shape
    how = batch, capacity, self._shapes, self.decode.sampling
    self._saved = saved_seconds(bits, *how, waits=waits)

  def run(self) -> Iterator[Piece]:
    """Writes until every row has ended, and yields each row's new text.

    Raises:
      InputError: the logits are not finite.
    """
    turns, most = self.turns, self._most_rounds()
    while not self.rows.are_done:
      may_search = self._is_swift and turns.may_come()
      self._choose_program()
      dispatch = self._dispatch(turns.rounds_left(most) if may_search else most)
      self._account(dispatch)
      if not dispatch.seen.finite:
        raise not_finite(self.model.cfg)
      yield from self._read(dispatch.seen)
      turns.take(self.state, dispatch.rounds, may_search)

  def _most_rounds(self) -> int:
    """Most rounds of one dispatch."""
    # One where there are stop strings, so that no round runs after a stop.
    stops = self.decode.sampling.stop_strings
    most = 1 if stops else self.decode.rounds_per_dispatch
    # Plain decoding goes to the host no more often than SWIFT does.
    return most * policy.STRETCH if self.decode.method == 'plain' else most

  def _choose_program(self) -> None:
    """Chooses a program with gates or without, for the next dispatch."""
    self._saved = None
    is_at_rest = self._is_swift and not self.searcher.active
    if is_at_rest and not self.model.drafts_stay_gated:
      with self.turns.timed():
        self.specialise(self.searcher.incumbent)

  def _dispatch(self, count: int) -> Dispatch:
    """Runs rounds on the device and reads what they did."""
    count = self._governor.rounds(count)
    started = time.perf_counter()
    self.state = self.advance(count)
    seen = Seen.of(self.state, self.model)
    taken = time.perf_counter() - started
    steps = self.rows.plain_steps(seen)
    new = Dispatch(
      count, taken, steps - self._steps, seen.work - self._work, seen
    )
    self._steps, self._work = steps, seen.work
    return new

  def _account(self, dispatch: Dispatch) -> None:
    """Adds it to the times of the batch and to the governor's account."""
    self.seconds.decode += dispatch.seconds
    self._governor.record(
      dispatch.seconds,
      dispatch.rounds,
      dispatch.steps,
      # The clock of each process differs, but all must decide alike.
      None if sharding.spans_processes(self.model.mesh) else dispatch.work,
      self.searcher.incumbent,
      self._saved or 0,
    )

  def _read(self, seen: Seen) -> list[Piece]:
    """Takes the rows' new tokens, and ends those that a stop string has ended."""
    pieces, new, stopped = self.rows.read(seen)
    if stopped and not self.rows.are_done:
      done = np.array(seen.done)
      done[stopped] = True
      self.state = self.state.replace(done=self.model.put_rows(done))
    if self._is_swift:
      by_layers = [r for r in new if r.source == 'layers']
      self.searcher.watch(
        sum(r.drafted for r in by_layers), sum(r.accepted for r in by_layers)
      )
    return pieces

  def warm_up(self, scores: bool, specialises: bool) -> None:
    """Compiles all programs of `run`; the batch cannot be used afterwards.

    Args:
      scores: compile the search's passes too.
      specialises: compile the program without gates too, where it is used.
    """
    if scores:
      self.turns.warm_up(self.state)
    if specialises:
      self.specialise(self.searcher.incumbent, waits=True)
    self.state = jax.block_until_ready(self.advance(2))
    if self.decode.method != 'plain' and self.decode.phase_interval:
      self.state = self.in_halves()
    Seen.of(self.state, self.model)
    self.keep_evidence()
    if self.decode.sampling.logprobs is not None:
      self.force(0)
    sharding.agreed(True, self.model.mesh)

  def keep_evidence(self) -> None:
    """Keeps what was learnt of drafting, for the next texts."""
    if self.decode.method != 'plain':
      self.model.evidence = self.model.get(self.state.evidence)

  def log_probs(self) -> list[LogProbs | None]:
    """The log-probabilities of each row's text, if the call asks for them.

    They come from passes of the target over the returned text. So they do not
    depend on the method that wrote the text. Their time is part of decoding's.

    Raises:
      InputError: they are not finite.
    """
    if self.decode.sampling.logprobs is None:
      return [None] * len(self.rows)
    started = time.perf_counter()
    written = self.rows.written
    parts = [
      self.force(at) for at in range(0, max(written), self._forced_width)
    ]
    taken = time.perf_counter() - started
    self.seconds.decode += taken
    self._governor.add(taken)
    return [
      log_probs_of(parts, b, count, self.model.cfg)
      for b, count in enumerate(written)
    ]

  @property
  def _forced_width(self) -> int:
    """Tokens of each row that one pass over the finished text reads."""
    wanted = min(self.decode.prefill_chunk, logprobs.WIDEST)
    return min(wanted, self.state.cache.capacity)

  def force(self, start: int) -> logprobs.Places:
    """One pass over the text, from the new token `start` of each row."""
    model, state = self.model, self.state
    cache, places = logprobs.force(
      model.graphdef,
      model.params,
      state.cache,
      state.tokens,
      state.prompt_length,
      model.none_skipped,
      model.number(start),
      self._forced_width,
      self.decode.sampling.logprobs,
      model.mesh,
    )
    self.state = state.replace(cache=cache)
    return model.get(places)
