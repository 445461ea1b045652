"""A report of evaluation runs: its dict, text, pictures and launcher."""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import answer_files
from matplotlib.colors import to_rgba
import numpy as np
import pytest

from swift_jax.errors import InputError
from swift_jax.evaluation import answers
from swift_jax.evaluation.report import contents as report
from swift_jax.evaluation.report import markdown as report_markdown
from swift_jax.evaluation.report import round_plots, run_plots, scores
from swift_jax.evaluation.report import text as report_text
from swift_jax.evaluation.runs import Run
from swift_jax.runtime.metrics import LogProbs

LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'report.py'
PLAIN, SWIFT = answer_files.plain(), answer_files.swift()
FILES = {
  'acceptance_by_position.png',
  'accepted_lengths.png',
  'report.json',
  'report.md',
  'speedup.png',
  'speedup_over_stream.png',
  'time_budget.png',
}
near = pytest.approx


def run_of(answered, missing=(), **changes):
  """A run as it is read from a folder."""
  facts = answer_files.run_facts(**changes)
  return Run('somewhere', tuple(answered), facts, tuple(missing))


def build(candidate=None, baseline=None, **options):
  runs = {
    'plain': baseline or run_of(PLAIN),
    'swift': candidate or run_of(SWIFT),
  }
  return report.build(runs, **options)


def test_log_probabilities_leave_a_report_as_it_is():
  """They are read, and no figure is of them."""
  lines = []
  for answer in SWIFT:
    turns = []
    for turn in answer.turns:
      count = turn.new_tokens
      logs = LogProbs([-0.5] * count, [[(3, -0.5)]] * count)
      detail = dataclasses.replace(turn.detail, logprobs=logs)
      turns.append(dataclasses.replace(turn, detail=detail))
    answer = dataclasses.replace(answer, turns=tuple(turns))
    lines.append(answers.to_line(answer).encode())
    assert b'logprobs' in lines[-1]
  read = [answers.parse(line, 'here') for line in lines]
  with_logs, without = build(run_of(read)), build()
  del with_logs['written'], without['written']  # to the second
  assert with_logs == without


def foreign_file(path, answered):
  """A file as other methods write it, in no order, with a key of theirs."""
  lines = []
  for answer in answered[::-1]:
    fields = json.loads(
      answers.to_line(dataclasses.replace(answer, index=None))
    )
    lines.append(json.dumps({**fields, 'more': 1}) + '\n')
  path.write_text(''.join(lines))
  return path


def changed(answer, token, at=0):
  """The answer with another token at a place of its last turn."""
  turn = answer.turns[-1]
  tokens = (*turn.detail.tokens[:at], token, *turn.detail.tokens[at + 1 :])
  detail = dataclasses.replace(turn.detail, tokens=tokens)
  other = dataclasses.replace(turn, text='other', detail=detail)
  return dataclasses.replace(answer, turns=(*answer.turns[:-1], other))


def test_the_dict_holds_every_figure():
  found = build()
  assert (found['baseline'], found['candidates']) == ('plain', ['swift'])
  assert found['tasks'] == ['qa', 'mt_bench']
  assert (found['seed'], found['resamples'], found['confidence']) == (
    0,
    2000,
    0.95,
  )
  swift = found['runs']['swift']
  assert swift['overall']['tokens_per_second'] == 5.0
  assert swift['overall']['mean_accepted_length'] == 2.5
  assert swift['overall']['time']['draft'] == near(0.125)
  assert swift['tasks']['qa']['tokens_per_second'] == 6.0
  assert swift['tasks']['qa']['acceptance']['rate'] == near(8 / 13)
  # A task's decode time is split as the whole run's sample was.
  shares = swift['tasks']['mt_bench']['time']
  assert (shares['draft'], shares['verify']) == (near(0.125), near(0.375))
  assert swift['overall']['loops'] == (2,)
  assert (swift['method'], swift['model_id']) == ('swift', 'llama')
  assert (swift['batch_size'], swift['dtype']) == (1, 'float32')
  assert (swift['device'], swift['commit']) == ('cpu', 'abc')
  assert (swift['max_new_tokens'], swift['questions']) == (8, 'feedbeef')
  assert swift['began'] == '1970-01-01T00:03:21+00:00'
  compared = found['comparisons']['swift']
  assert compared['overall']['speedup'] == 2.5
  assert compared['overall']['spec_bench_speedup'] == near(16 / 7.6)
  assert compared['tasks']['mt_bench']['speedup'] == near(2.5)
  assert compared['equality']['is_identical']
  assert compared['equality']['texts'] == 4
  assert compared['warnings'] == []
  assert not compared['is_sampled']


@pytest.mark.parametrize('kind', ['own', 'foreign', 'few'])
def test_json_holds_no_nan(kind):
  candidate = {
    'own': run_of(SWIFT),
    'foreign': Run(
      'x',
      tuple(dataclasses.replace(answer, tstamp=1e300) for answer in SWIFT),
    ),
    'few': run_of(SWIFT[:1], missing=(1, 2)),
  }[kind]
  report = build(candidate)
  text = json.dumps(report, allow_nan=False)
  assert json.loads(text) == json.loads(json.dumps(report))


def test_the_interval_follows_the_seed():
  first, again, other = (
    build(seed=seed)['comparisons']['swift']['overall'] for seed in (0, 0, 1)
  )
  assert first == again
  assert first['speedup'] == other['speedup']


def test_runs_without_a_question_in_common_are_refused():
  with pytest.raises(InputError, match='has no question that somewhere has'):
    build(run_of(SWIFT[2:]), run_of(PLAIN[:2]))


def test_categories_of_other_tasks_stay():
  task = {'config': {'task': {'name': 'jsonl'}}}
  found = build(run_of(SWIFT, **task), run_of(PLAIN, **task))
  assert found['tasks'] == ['qa', 'writing']


def said(candidate, baseline=None):
  return report_text.sentence(
    build(candidate, baseline)['comparisons']['swift']
  )


def test_equality_in_plain_words():
  assert said(run_of(SWIFT)) == 'identical: 4 texts'
  two = [changed(SWIFT[0], 12, at=3), changed(SWIFT[1], 9)]
  assert said(run_of(two)) == (
    'NOT identical: 2 of 4 texts differ, 2 are missing; first: question 1,'
    ' turn 0, token 3: expected 4, found 12 (counted from 0)'
  )
  assert said(run_of(SWIFT), run_of(PLAIN[:2])) == (
    'identical: 2 texts; 2 texts that the baseline lacks'
  )
  short = dataclasses.replace(SWIFT[2], turns=SWIFT[2].turns[:1])
  assert said(run_of([*SWIFT[:2], short])) == (
    'NOT identical: 0 of 4 texts differ, 1 is missing, 1 question with another'
    ' number of turns'
  )
  ended = dataclasses.replace(SWIFT[2], turns=SWIFT[0].turns * 2)
  assert 'expected 5, found 1 (' in said(run_of([ended]))


def test_texts_that_end_are_told_of_in_words():
  turn = SWIFT[1].turns[0]
  detail = dataclasses.replace(turn.detail, tokens=(7,))
  short = dataclasses.replace(
    SWIFT[1], turns=(dataclasses.replace(turn, text='g', detail=detail),)
  )
  assert 'token 1: expected 7, found the end' in said(run_of([short]))


@pytest.mark.parametrize(
  'sampling, is_sampled',
  [
    ({'temperature': 0.6}, True),
    ({'do_sample': True}, True),
    ({'do_sample': True, 'temperature': 0}, False),
    ({'do_sample': False, 'temperature': 0.6}, False),
    ({'do_sample': None, 'temperature': None}, False),
    ({}, False),
    (3, False),
  ],
)
def test_sampled_texts_need_not_be_equal(sampling, is_sampled):
  other = [changed(SWIFT[0], 12, at=3), *SWIFT[1:]]
  drawn = {'config': {'sampling': sampling}}
  for runs in (
    (run_of(other, **drawn), None),
    (run_of(other), run_of(PLAIN, **drawn)),
  ):
    words = said(*runs)
    assert '1 of 4 texts differ; first: question 1, turn 0, token 3' in words
    expected = (
      'sampled text, equal only by the same seed and program; 1 of'
      if is_sampled
      else ('NOT identical: 1 of')
    )
    assert words.startswith(expected)


def test_what_was_applied_counts_before_what_was_asked_for():
  applied = {'sampling': {'temperature': 0.6, 'max_new_tokens': 32}}
  found = build(run_of(SWIFT, **applied))
  assert found['comparisons']['swift']['is_sampled']
  assert found['runs']['swift']['max_new_tokens'] == 32


CONFIG = answer_files.run_facts()['config']


@pytest.mark.parametrize(
  'changes, warning',
  [
    ({'fingerprint': 'ff'}, "fingerprint: 'ff' and '0123456789abcdef'"),
    ({'device': 'H100'}, "device: 'H100' and 'cpu'"),
    ({'device': None}, "device: None and 'cpu'"),
    (
      {'versions': {'jax': '0.10.1', 'numpy': '2.4.6'}},
      "versions: {'jax': '0.10.1'} and {'jax': '0.10.2'}",
    ),
    ({'versions': 'old'}, "versions: 'old' and {'jax'"),
    ({'questions': 'other'}, "questions: 'other' and 'feedbeef'"),
    (
      {'config': {**CONFIG, 'decode': {'batch_size': 4}}},
      'batch_size: 4 and 1',
    ),
    (
      {'config': {**CONFIG, 'model': {'dtype': 'bfloat16'}}},
      "dtype: 'bfloat16' and 'float32'",
    ),
    (
      {'config': {**CONFIG, 'sampling': {'max_new_tokens': 9}}},
      'max_new_tokens: 9 and 8',
    ),
  ],
)
def test_settings_that_differ_are_told_of(changes, warning):
  found = build(run_of(SWIFT, **changes))
  (line,) = found['comparisons']['swift']['warnings']
  assert line.startswith(f'swift and plain differ in {warning}')
  assert f'warning: {line}\n' in report_text.terminal(found)
  assert '\n' not in line


def test_what_a_run_of_an_older_version_does_not_say_is_no_difference():
  found = build(run_of(SWIFT, prompts='0a' * 8))
  assert found['comparisons']['swift']['warnings'] == []


def test_notes_tell_what_to_keep_in_mind():
  cut = dataclasses.replace(
    SWIFT[0],
    turns=(
      dataclasses.replace(
        SWIFT[0].turns[0],
        detail=dataclasses.replace(SWIFT[0].turns[0].detail, truncated=9),
      ),
    ),
  )
  found = build(run_of([cut, SWIFT[1]], missing=(2,)))
  notes = found['notes']
  for note in (
    'plain: 1 of 3 questions loop, which flatters every draft: 2',
    'swift: 1 of 2 questions loop, which flatters every draft: 2',
    'swift: 1 of 3 questions have no answer; their places: 2',
    'swift: 1 of 2 questions lost a beginning to fit the context: 1',
    'swift: speedups are over the 2 questions of both',
  ):
    assert note in notes
    assert f'note: {note}\n' in report_text.terminal(found)
  assert 'warming up are not in them' in notes[0]
  assert 'recorded tokens' in notes[-1]


def test_which_tokens_spec_benchs_figure_counts_is_told():
  found = build(count_tokens=len, tokenizer='FOLDER')
  assert found['spec_bench_tokenizer'] == 'FOLDER'
  assert found['notes'][-1].endswith('counted again by FOLDER')
  compared = found['comparisons']['swift']
  # A letter a token, of which one is taken away for each turn.
  assert compared['overall']['spec_bench_baseline'] == near(
    (3 / 1 + 7 / 4 + 6 / 5) / 3
  )
  assert compared['tasks']['qa']['spec_bench_baseline'] == near(19 / 8)
  assert compared['overall']['speedup'] == 2.5


def test_a_file_without_facts_is_told_of():
  found = build(Run('their.jsonl', SWIFT))
  assert (
    'swift: no run.json, its device and settings are unknown'
    in (found['notes'])
  )
  assert found['runs']['swift']['device'] is None
  assert found['comparisons']['swift']['warnings'] == []


def test_scores_stand_beside_each_other(monkeypatch):
  asked = {'category': 'gsm8k', 'reference': ('#### 5',)}
  right, wrong = (
    dataclasses.replace(
      answer,
      turns=(dataclasses.replace(answer.turns[0], text=text),),
      **asked,
    )
    for answer, text in ((PLAIN[0], 'is 5'), (SWIFT[0], 'is 6'))
  )
  summary = dataclasses.replace(
    PLAIN[1], category='cnn_dm', reference=('gggggggg',)
  )
  found = build(run_of([wrong]), run_of([right, summary]))
  assert found['runs']['plain']['scores'] == {
    'gsm8k': {'texts': 1, 'accuracy': 1.0},
    'cnn_dm': {'texts': 1, 'rouge1': 1.0, 'rouge2': 0.0, 'rougeL': 1.0},
  }
  assert found['runs']['swift']['scores']['gsm8k']['accuracy'] == 0.0
  text = report_markdown.markdown(found)
  assert '| gsm8k | swift | accuracy | 0.0000 | 1 |' in text
  assert not any('ROUGE' in note for note in found['notes'])

  monkeypatch.setattr(scores, 'load_rouge', lambda: None)
  found = build(run_of([wrong]), run_of([right, summary]))
  assert list(found['runs']['plain']['scores']) == ['gsm8k']
  assert '[eval] extra' in found['notes'][-1]
  assert not any('ROUGE' in note for note in build()['notes'])


def test_the_terminal_shows_a_table():
  lines = report_text.terminal(build()).splitlines()
  assert (
    lines[0].split()
    == (
      'task run questions tokens/s speedup 95 % interval length acceptance'
    ).split()
  )
  rows = [line.split() for line in lines[1:7]]
  assert rows[0] == ['qa', 'plain', '2', '2.40', '-', '-', '1.00', '-']
  assert rows[1][:8] == 'qa swift 2 6.00 2.500 1.000 to 4.000'.split()
  assert rows[1][8:] == ['3.00', '61.5%']
  assert rows[3] == 'mt_bench swift 1 4.00 2.500 - 2.00 80.0%'.split()
  assert rows[5][:5] == 'overall swift 3 5.00 2.500'.split()
  assert lines[7:9] == ['', 'swift: identical: 4 texts']


def test_markdown_shows_every_table():
  found = build(run_of([SWIFT[0], changed(SWIFT[1], 9, at=2)], device='a|b'))
  text = report_markdown.markdown(found, ['speedup.png'])
  for part in (
    '# swift against plain\n',
    '- swift: NOT identical: 1 of 4 texts differ, 2 are missing',
    "- swift and plain differ in device: 'a\\|b' and 'cpu'",
    '| device | cpu | a\\|b |',
    '| versions | jax 0.10.2, numpy 2.4.6 | jax 0.10.2, numpy 2.4.6 |',
    '| batch size | 1 | 1 |',
    '| commit | abc | abc |',
    '| qa | plain | 2 | 2.40 | - | - | 12 | 5.00 |',
    '| overall | swift | 6.00 | 2.53 | 2.368 | 3.00 |',  # of 7.6 / 3
    '| qa | swift | 3.00 | 61.5% | 13 | 8 | 83.3% |',  # 1 of 1, 4 of 5
    '| 4 | 2 | 1 | 50.0% |',
    '| plain | 25.0% | 70.0% | - | - | 0.0% | 5.0% |',
    "| 2 | 0 | token 2 | 7 | 9 | 'gggggggg' / 'other' |",
    '![](speedup.png)',
  ):
    assert part in text, part
  assert '| commits |' not in text  # not known of any


def test_many_differences_are_not_all_shown():
  answered = [
    dataclasses.replace(PLAIN[0], question_id=i, index=i) for i in range(25)
  ]
  others = [changed(answer, 30) for answer in answered]
  found = build(run_of(others), run_of(answered))
  assert len(found['comparisons']['swift']['equality']['differences']) == 25
  text = report_markdown.markdown(found)
  assert text.count('| token 0 |') == 20
  assert '5 more are in report.json.' in text


def test_names_are_those_of_folders_and_files(tmp_path, monkeypatch):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  for paths, expected in (
    (['a/plain', 'b/swift/', 'x.jsonl'], ['plain', 'swift', 'x']),
    (['a/x', 'b/x', 'c/x.jsonl', 'x-2'], ['x', 'x-2', 'x-3', 'x-2-2']),
    (['.', '..'], ['here', tmp_path.name]),
    (['gs://bucket/runs/plain/', '/'], ['plain', 'run']),
  ):
    assert report.names(paths) == expected


def test_bars_are_the_speedups():
  found = build(run_of(SWIFT[:2], missing=(2,)))
  bars = run_plots.bars(found, 'swift')
  assert bars.speedups.tolist() == [2.5, near(np.nan, nan_ok=True), 2.5]
  overall = found['comparisons']['swift']['overall']
  assert (bars.low[2], bars.high[2]) == (overall['low'], overall['high'])
  figure = run_plots.speedup_bars(found)
  (axes,) = figure.axes
  heights = [bar.get_height() for bar in axes.patches]
  np.testing.assert_array_equal(heights, bars.speedups)
  labels = [label.get_text() for label in axes.get_xticklabels()]
  assert labels == ['qa', 'mt_bench', 'overall']
  (intervals,) = axes.collections
  drawn = [path.vertices[:, 1].tolist() for path in intervals.get_paths()]
  assert drawn[0] == [bars.low[0], bars.high[0]]


def test_bars_of_several_candidates_stand_side_by_side():
  runs = {'plain': run_of(PLAIN), 'a': run_of(SWIFT), 'b': run_of(PLAIN)}
  found = report.build(runs)
  (axes,) = run_plots.speedup_bars(found).axes
  assert run_plots.bars(found, 'b').speedups.tolist() == [1.0] * 3
  edges = sorted(
    (bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches
  )
  assert all(
    end < at for (_, end), (at, _) in zip(edges, edges[1:], strict=False)
  )


def test_lengths_are_counted():
  lengths, shares = run_plots.length_shares(SWIFT)
  assert lengths.tolist() == [1, 2, 3, 4, 5]
  assert shares.tolist() == [3 / 8, 1 / 8, 2 / 8, 1 / 8, 1 / 8]
  (axes,) = run_plots.accepted_lengths({'_s': SWIFT, 'p': PLAIN}).axes
  drawn = [bar.get_height() for bar in axes.patches]
  assert drawn == [*shares, 1.0]
  _, names = axes.get_legend_handles_labels()
  assert [name.strip() for name in names] == ['_s', 'p']


def test_the_stream_is_in_the_order_of_the_answers():
  # Question 2 was answered first: 4, 1 and 2.5 times as fast.
  found = run_plots.stream(PLAIN, SWIFT, window=2)
  # After each: 8 tokens, 12, 20, over 4, 5, 10 and 1, 2, 4 seconds.
  assert found.cumulative == near([4.0, 2.5, 2.5])
  # The last two: 12 tokens over 5 and 2, then 12 over 6 and 3 seconds.
  assert found.rolling == near([4.0, 2.5, 2.0])
  assert run_plots.stream(PLAIN, SWIFT, window=1).rolling == near([4, 1, 2.5])


def test_the_last_questions_are_drawn_where_there_are_more(monkeypatch):
  (axes,) = run_plots.speedup_over_stream(PLAIN, {'swift': SWIFT}).axes
  so_far, one = axes.lines
  assert so_far.get_ydata() == near([4.0, 2.5, 2.5])
  assert so_far.get_xdata().tolist() == [1, 2, 3]
  assert one.get_ydata() == [1, 1]
  monkeypatch.setattr(run_plots, 'ROLLING', 2)
  (axes,) = run_plots.speedup_over_stream(PLAIN, {'swift': SWIFT}).axes
  so_far, last = axes.lines[:2]
  assert last.get_ydata() == near([4.0, 2.5, 2.0])
  assert last.get_label() == 'swift, last 2'
  assert last.get_linestyle() != so_far.get_linestyle()


def test_acceptance_is_drawn_along_the_draft():
  found = build()
  (name,) = round_plots.places(found)  # plain decoding drafts nothing
  assert name == 'swift'
  upper, lower = round_plots.acceptance_by_position(found).axes
  for axes, expected in (
    (upper, [5 / 7, 4 / 5, 2 / 4, 1 / 2]),
    (lower, [7, 5, 4, 2]),
  ):
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata() == near(expected)
    assert line.get_label() == 'swift'


def test_a_run_looks_the_same_in_each_figure():
  runs = {'_base': run_of(SWIFT), 'a': run_of(PLAIN), '$b': run_of(SWIFT)}
  found = report.build(runs)
  (axes,) = run_plots.speedup_bars(found).axes
  bars = dict(zip(['a', '$b'], axes.containers, strict=True))
  upper, _ = round_plots.acceptance_by_position(found).axes
  base, b = upper.lines
  assert bars['$b'][0].get_facecolor() == to_rgba(b.get_color())
  looks = {(line.get_color(), line.get_marker()) for line in (base, b)}
  assert len(looks) == 2


def test_the_time_budget_adds_up_to_a_pass():
  found = build()
  (axes,) = round_plots.time_budget(found).axes
  assert [label.get_text() for label in axes.get_yticklabels()] == [
    'plain',
    'swift',
  ]
  # Ten seconds and 20 passes, four seconds and 8.
  drawn = {
    bars.get_label(): [bar.get_width() for bar in bars]
    for bars in axes.containers
  }
  assert drawn == {
    'prefill': near([125, 125]),
    'decode': near([350, 0]),
    'draft': near([0, 62.5]),
    'verify': near([0, 187.5]),
    'search': near([0, 78.125]),
    'other': near([25, 46.875]),
  }
  for row in range(2):
    bars = sorted(
      (bars[row].get_x(), bars[row].get_x() + bars[row].get_width())
      for bars in axes.containers
      if bars[row].get_width()
    )
    assert bars[0][0] == 0 and bars[-1][1] == near(500)
    assert [end for _, end in bars[:-1]] == near([at for at, _ in bars[1:]])
  tokens = [text.get_text() for text in axes.texts]
  assert tokens == ['1.00 tokens', '2.50 tokens']


def test_what_answers_do_not_say_is_not_drawn():
  theirs = [
    dataclasses.replace(
      answer,
      turns=tuple(dataclasses.replace(t, detail=None) for t in answer.turns),
    )
    for answer in PLAIN
  ]
  assert round_plots.pictures(build(run_of(theirs), run_of(theirs))) == {}
  found = build(run_of(PLAIN))
  assert set(round_plots.pictures(found)) == {'time_budget.png'}


def test_pictures_are_drawn_without_a_warning():
  runs = {'$plain': PLAIN, '_$s$wift': SWIFT[:1]}
  found = report.build(
    {name: run_of(answered) for name, answered in runs.items()}
  )
  for figure in (
    run_plots.speedup_bars(found),
    run_plots.accepted_lengths(runs),
    run_plots.speedup_over_stream(PLAIN, runs),
    *round_plots.pictures(found).values(),
  ):
    figure.savefig(io.BytesIO(), format='png')


@pytest.fixture
def launched(launch):
  """The launcher, in this process; (status, stdout, stderr)."""
  import report as launcher

  return lambda *arguments: launch(
    *arguments, main=launcher.main, sections=None, name='report.py'
  )


def started(*arguments, **environment):
  """The real program; (status, stdout, stderr)."""
  done = subprocess.run(
    [sys.executable, LAUNCHER, *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, **environment},
  )
  return done.returncode, done.stdout, done.stderr


def refused(ended, *parts):
  status, out, err = ended
  assert (status, out) == (2, ''), err
  assert err.count('\n') == 1 and err.startswith('report.py: '), err
  for part in parts:
    assert part in err


def speed_py(candidate, baseline, task):
  """What Spec-Bench's speed.py works out, a token a letter and one before."""
  means = []
  for file, is_baseline in ((candidate, False), (baseline, True)):
    speeds = []
    for line in file.read_text(encoding='utf-8').splitlines():
      fields = json.loads(line)
      choice = fields['choices'][0]
      is_mt_bench = fields['category'] in ('writing', 'roleplay')
      if task in ('overall', 'mt_bench' if is_mt_bench else fields['category']):
        count = sum(choice['new_tokens'])
        if is_baseline:
          count = sum(len(text) + 1 - 1 for text in choice['turns'])
        speeds.append(count / sum(choice['wall_time']))
    means.append(np.mean(speeds))
  return (*means, means[0] / means[1])


def equal_py(one, other):
  """What its equal.py says: texts of a question as one string, line by line."""
  texts = [
    [
      str(json.loads(line)['choices'][0]['turns'])
      for line in file.read_text(encoding='utf-8').splitlines()
    ]
    for file in (one, other)
  ]
  return all(a == b for a, b in zip(*texts, strict=False))


def test_a_report_of_runs(launched, tmp_path):
  plain = answer_files.write_run(tmp_path / 'plain', PLAIN[::-1])
  swift = answer_files.write_run(tmp_path / 'swift', SWIFT)
  theirs = foreign_file(
    tmp_path / 'swift.jsonl', [changed(SWIFT[0], 12), *SWIFT[1:]]
  )
  output = tmp_path / 'new' / 'folder'
  status, out, err = launched(
    f'--baseline={plain}',
    f'--candidate={swift}',
    f'--candidate={theirs}',
    f'--output={output}',
    '--export_answers',
  )
  assert (status, err) == (0, '')
  assert set(os.listdir(output)) == FILES | {'answers'}
  for name in FILES:
    if name.endswith('.png'):
      assert (output / name).read_bytes().startswith(b'\x89PNG\r\n')
  assert 'swift: identical: 4 texts\n' in out
  assert (
    'swift-2: NOT identical: 1 of 4 texts differ; first: question 1, turn 0,'
    " character 0: expected 'a', found 'o' (counted from 0)\n"
  ) in out
  found = json.loads(
    (output / 'report.json').read_text(),
    parse_constant=lambda name: pytest.fail(name),
  )
  assert found['candidates'] == ['swift', 'swift-2']
  assert '# swift, swift-2 against plain' in (output / 'report.md').read_text()

  exported = output / 'answers'
  assert set(os.listdir(exported)) == {
    'plain.jsonl',
    'swift.jsonl',
    'swift-2.jsonl',
  }
  for file in exported.iterdir():
    lines = list(map(json.loads, file.read_text().splitlines()))
    assert [line['question_id'] for line in lines] == [1, 2, 3]
    for line in lines:
      assert list(line) == [
        'question_id',
        'category',
        'answer_id',
        'model_id',
        'choices',
        'tstamp',
      ]
      assert list(line['choices'][0]) == [
        'index',
        'turns',
        'decoding_steps',
        'new_tokens',
        'wall_time',
        'accept_lengths',
      ]
  one, other, third = (
    exported / f'{name}.jsonl' for name in ('plain', 'swift', 'swift-2')
  )
  assert equal_py(one, other) and not equal_py(one, third)
  compared = found['comparisons']['swift']
  for task in ('qa', 'mt_bench', 'overall'):
    ours = compared['overall'] if task == 'overall' else compared['tasks'][task]
    names = ('candidate', 'baseline', 'speedup')
    figures = [ours[f'spec_bench_{name}'] for name in names]
    assert figures == near(speed_py(other, one, task))


def test_a_foreign_baseline(launched, tmp_path):
  theirs = foreign_file(tmp_path / 'vanilla.jsonl', PLAIN)
  swift = answer_files.write_run(tmp_path / 'swift', SWIFT)
  output = tmp_path / 'out'
  status, out, err = launched(
    f'--baseline={theirs}',
    f'--candidate={swift}',
    f'--output={output}',
    '--tokenizer=demo',
    '--seed=7',
  )
  assert (status, err) == (0, '')
  assert set(os.listdir(output)) == FILES
  assert 'swift: identical: 4 texts\n' in out
  assert 'note: vanilla: no run.json' in out
  assert 'counted again by demo\n' in out
  found = json.loads((output / 'report.json').read_text())
  assert (found['seed'], found['spec_bench_tokenizer']) == (7, 'demo')
  assert found['comparisons']['swift']['overall']['speedup'] == 2.5
  # The demo's tokenizer makes less than a token of each letter.
  speed = found['comparisons']['swift']['overall']['spec_bench_baseline']
  assert 0 < speed < 7.6 / 3


def test_export_writes_what_json_can_hold(tmp_path):
  half = dataclasses.replace(SWIFT[0], question_id='x', category='\ud83d "')
  lines = report.spec_bench_lines([half, *SWIFT[1:]])
  read = [json.loads(line) for line in lines.decode().splitlines()]
  assert [line['question_id'] for line in read] == [2, 3, 'x']
  assert read[2]['category'] == half.category


@pytest.mark.parametrize(
  'arguments, parts',
  [
    (['--candidate=x'], ['--baseline: a folder or an answers file']),
    (['--baseline=x'], ['--candidate: a folder or an answers file']),
    (['--baseline=x', '--candidate='], ['--candidate: a folder']),
    (['--export_answers'], ['--baseline: a folder']),
    (['--search=x', '--baseline=y'], ['--baseline: does not go with --search']),
    (['--search=x', '--seed=0'], ['--seed: does not go with --search']),
    (['--baseline=x', '--candidate=y', '--seed=-1'], ['seed', '-1']),
    (['--baseline={}/none', '--candidate=y'], ['--baseline=', 'no such file']),
    (['--baseline={}/plain', '--candidate={}'], ['--candidate=', 'run.json']),
    (
      ['--baseline={}/plain', '--candidate={}/plain', '--tokenizer={}/none'],
      ['none: no such folder'],
    ),
    (
      ['--baseline={}/plain', '--candidate={}/plain', '--tokenizer={}/plain'],
      ['--tokenizer=', 'cannot be read'],
    ),
  ],
)
def test_wrong_flags_end_in_one_line(launched, tmp_path, arguments, parts):
  answer_files.write_run(tmp_path / 'plain', PLAIN)
  given = [argument.replace('{}', str(tmp_path)) for argument in arguments]
  refused(launched(*given, f'--output={tmp_path}/out'), *parts)
  assert set(os.listdir(tmp_path)) == {'plain'}


def test_an_output_is_needed(launched, tmp_path):
  refused(launched('--baseline=x', '--candidate=y'), '--output: a folder')
  plain = answer_files.write_run(tmp_path / 'plain', PLAIN)
  file = plain / 'run.json'
  runs = (f'--baseline={plain}', f'--candidate={plain}')
  refused(launched(*runs, f'--output={file}'), '--output=', 'run.json')


@pytest.mark.parametrize(
  'damage, part',
  [
    (lambda text: text[:-20], 'answers.jsonl, line 3: torn'),
    (
      lambda text: text.replace('"tstamp"', '"stamp"', 1),
      "answers.jsonl, line 1: 'tstamp' is missing",
    ),
    (
      lambda text: text.replace('"new_tokens": [8]', '"new_tokens": ["8"]'),
      'answers.jsonl, line 2: choices[0].new_tokens[0]=',
    ),
    (
      lambda text: text.replace('"llama"', '"other"', 1),
      "answers.jsonl, line 1: model_id='other'",
    ),
    (
      lambda text: text + text.splitlines(keepends=True)[1],
      'answers.jsonl, line 4: question_id=2',
    ),
    (
      lambda text: ''.join(text.splitlines(keepends=True)[:2]),
      '1 of 3 questions have no answer, index 2',
    ),
  ],
)
def test_damaged_runs_end_in_one_line(launched, tmp_path, damage, part):
  plain = answer_files.write_run(tmp_path / 'plain', PLAIN)
  swift = answer_files.write_run(tmp_path / 'swift', SWIFT)
  file = swift / 'answers.jsonl'
  file.write_text(damage(file.read_text()))
  runs = (f'--baseline={plain}', f'--candidate={swift}')
  output = f'--output={tmp_path / "out"}'
  refused(launched(*runs, output), f'--candidate={swift}', part)
  assert not (tmp_path / 'out').exists()


def test_a_run_that_is_not_finished_is_taken_if_asked(launched, tmp_path):
  plain = answer_files.write_run(tmp_path / 'plain', PLAIN)
  swift = answer_files.write_run(tmp_path / 'swift', SWIFT)
  file = swift / 'answers.jsonl'
  file.write_text(''.join(map(answers.to_line, SWIFT[:2])))
  status, out, err = launched(
    f'--baseline={plain}',
    f'--candidate={swift}',
    f'--output={tmp_path / "out"}',
    '--allow_missing',
  )
  assert (status, err) == (0, '')
  assert 'swift: NOT identical: 0 of 4 texts differ, 2 are missing\n' in out
  assert '1 of 3 questions have no answer; their places: 2\n' in out
  assert 'speedups are over the 2 questions of both\n' in out


def test_facts_that_json_lacks_end_in_one_line(launched, tmp_path):
  plain = answer_files.write_run(tmp_path / 'plain', PLAIN, cpus=float('nan'))
  runs = (f'--baseline={plain}', f'--candidate={plain}')
  ended = launched(*runs, f'--output={tmp_path / "out"}')
  refused(ended, 'run.json: not JSON: NaN is no number')
  assert not (tmp_path / 'out').exists()


def test_without_matplotlib_the_extra_is_named(tmp_path):
  plain = answer_files.write_run(tmp_path / 'plain', PLAIN)
  absent = tmp_path / 'absent'
  absent.mkdir()
  text = 'raise ModuleNotFoundError("No module named \'matplotlib\'")\n'
  (absent / 'matplotlib.py').write_text(text)
  ended = started(
    f'--baseline={plain}',
    f'--candidate={plain}',
    f'--output={tmp_path / "out"}',
    PYTHONPATH=str(absent),
  )
  refused(ended, "No module named 'matplotlib'", '[plots] extra')
