"""What a report shows of a search: the figures' data, and the launcher."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from swift_jax.evaluation.report import plots
from swift_jax.files import atomic
from swift_jax.search.files import records
from swift_jax.search.files.records import Header, PassRecord

LAUNCHER = pathlib.Path(__file__).parents[2] / 'launch' / 'report.py'
HEADER = Header(4, '0123456789abcdef', {})
FILES = {
  'matchness_over_evaluations.png',
  'matchness_over_seconds.png',
  'search.json',
  'skip_set.png',
  'sources.png',
}


def scored(number, sources, hits, incumbent, source, **fields):
  """A pass over 10 positions; half a second long, a tenth of it search."""
  count = len(hits)
  return PassRecord(
    number=number,
    evaluations=2 * number,
    seconds=0.5 * number,
    search_seconds=0.05 * number,
    positions=10,
    sources=tuple(sources.split()),
    hits=tuple(hits),
    log_probs=(-1.0,) * count,
    masks=('1100',) * count,
    incumbent=incumbent,
    incumbent_source=source,
    **{'matchness': None, 'stddev': None, 'event': None, **fields},
  )


PASSES = [
  scored(1, 'start random', [4, 2], '1001', 'start', event='start'),
  scored(2, 'incumbent gp', [5, 8], '0101', 'gp', matchness=0.7, stddev=0.2),
  scored(4, 'incumbent gp', [7, 3], '0101', 'gp', matchness=0.75, stddev=0.1),
  scored(
    5,
    'incumbent cached',
    [1, 9],
    '1001',
    'start',
    matchness=0.5,
    event='restart',
  ),
  scored(6, 'incumbent gp', [9, 9], '0011', 'gp', matchness=0.9, stddev=0.05),
]


def made_up(count=40, num_layers=7, candidates=4):
  """A longer search, of which only its form is of interest."""
  rng = np.random.default_rng(0)
  free = 2 * (num_layers - 2)
  header = Header(num_layers, None, {})
  passes = []
  for number in range(1, count + 1):
    bits = rng.permuted(
      np.tile(np.arange(free) < free // 2, (candidates, 1)), axis=1
    )
    masks = [''.join(row) for row in np.where(bits, '1', '0')]
    sources = rng.choice(records.SOURCES, candidates)
    passes.append(
      PassRecord(
        number=number,
        evaluations=candidates * number,
        seconds=0.3 * number,
        search_seconds=0.03 * number,
        positions=50,
        sources=tuple(sources.tolist()),
        hits=tuple(rng.integers(20, 51, candidates).tolist()),
        log_probs=tuple((-rng.random(candidates)).tolist()),
        masks=tuple(masks),
        incumbent=masks[0],
        incumbent_source=str(sources[0]),
        matchness=float(rng.random()) if number > 1 else None,
        stddev=0.1 if number > 2 else None,
        event={1: 'start', 15: 'restart', 30: 'restart'}.get(number),
      )
    )
  return header, passes


def labelled(artists):
  return {artist.get_label(): artist for artist in artists}


def test_candidates_stand_where_their_pass_ended():
  dots = plots.candidates(PASSES[:2], 'evaluations')
  assert dots.x.tolist() == [2, 2, 4, 4]
  assert dots.shares.tolist() == [0.4, 0.2, 0.5, 0.8]
  assert dots.sources.tolist() == ['start', 'random', 'incumbent', 'gp']
  assert plots.candidates(PASSES[:2], 'seconds').x.tolist() == [0.5, 0.5, 1, 1]


def test_what_is_not_known_of_the_incumbent_is_nan():
  line = plots.incumbents(PASSES, 'seconds')
  assert line.x.tolist() == [0.5, 1, 2, 2.5, 3]
  nan = np.nan
  np.testing.assert_array_equal(line.matchness, [nan, 0.7, 0.75, 0.5, 0.9])
  np.testing.assert_array_equal(line.stddev, [nan, 0.2, 0.1, nan, 0.05])


def test_skipped_rows_are_the_layers_of_the_incumbent():
  rows = plots.skipped_rows(HEADER, PASSES[1:4])
  assert rows.shape == (2, 4, 3)  # kind, layer, pass
  attention, mlp = rows
  assert attention.astype(int).T.tolist() == [[0, 0, 1, 0]] * 2 + [[0, 1, 0, 0]]
  assert mlp.astype(int).T.tolist() == [[0, 0, 1, 0]] * 3


def test_the_table_says_which_source_found_what():
  rows = {row.source: row[1:] for row in plots.source_table(PASSES)}
  assert list(rows) == ['incumbent', 'start', 'random', 'gp', 'cached']
  assert rows['incumbent'] == (4, 0, pytest.approx(0.55), 0.9)
  # It drafts from the beginning, and again when the search restarts.
  assert rows['start'] == (1, 2, 0.4, 0.4)
  assert rows['random'] == (1, 0, 0.2, 0.2)
  assert rows['gp'] == (3, 2, pytest.approx(2 / 3), 0.9)
  assert rows['cached'] == (1, 0, 0.9, 0.9)


def test_a_source_that_was_never_scored_may_have_drafted():
  (_, row) = plots.source_table([scored(1, 'incumbent', [3], '1001', 'cached')])
  assert row == ('cached', 0, 1, None, None)


@pytest.mark.parametrize('axis', ['evaluations', 'seconds'])
def test_the_curve_draws_the_record(axis):
  header, passes = made_up()
  figure = plots.matchness_over(passes, axis)
  (axes,) = figure.axes
  x = np.array([getattr(record, axis) for record in passes])
  drawn = labelled(axes.lines)
  (estimate,) = (line for name, line in drawn.items() if 'estimate' in name)
  expected = np.array([record.matchness for record in passes], float)
  np.testing.assert_array_equal(estimate.get_xdata(), x)
  np.testing.assert_array_equal(estimate.get_ydata(), expected)

  restarts = [line for line in axes.lines if line is not estimate]
  assert [line.get_xdata()[0] for line in restarts] == [x[14], x[29]]
  assert restarts[0].get_label() == 'restart'
  assert restarts[1].get_label().startswith('_')  # once in the legend

  dots = labelled(axes.collections)
  for source in records.SOURCES:
    shares = [
      (at, hits / 50)
      for at, record in zip(x, passes, strict=True)
      for name, hits in zip(record.sources, record.hits, strict=True)
      if name == source
    ]
    assert shares
    np.testing.assert_array_equal(dots[source].get_offsets(), shares)

  (band,) = (c for name, c in dots.items() if name not in records.SOURCES)
  corners = {tuple(c) for path in band.get_paths() for c in path.vertices}
  for i in range(2, len(passes)):
    assert (x[i], expected[i] - 0.1) in corners
    assert (x[i], expected[i] + 0.1) in corners
  assert not any(at <= x[1] for at, _ in corners)


def test_sources_differ_in_colour_and_in_shape():
  assert set(plots._MARKS) == set(records.SOURCES)
  colors, shapes = map(set, zip(*plots._MARKS.values(), strict=True))
  assert len(colors) == len(shapes) == len(records.SOURCES)


def test_the_strip_draws_the_incumbents():
  header, passes = made_up()
  figure = plots.skip_set_strip(header, passes)
  attention, mlp = figure.axes
  for axes, part, name in (
    (attention, slice(0, 5), 'attention'),
    (mlp, slice(5, 10), 'MLP'),
  ):
    (mesh,) = axes.collections
    drawn = np.asarray(mesh.get_array())
    assert drawn.shape == (7, 40)
    for column, record in zip(drawn.T, passes, strict=True):
      skipped = ''.join(str(int(bit)) for bit in column)
      assert skipped == f'0{record.incumbent[part]}0'
    # Cell and tick of layer 3, and of pass 8, have the same middle.
    corners = mesh.get_coordinates()
    assert corners[3:5, 7:9].mean((0, 1)).tolist() == [8, 3]
    assert mesh.to_rgba([0, 1]).mean(1).tolist() == pytest.approx([0.4, 0.9])
    assert name in axes.get_ylabel()
    assert [line.get_xdata()[0] for line in axes.lines] == [14.5, 29.5]
    ticks = [tick for tick in axes.get_xticks() if 1 <= tick <= 40]
    assert len(ticks) > 3 and all(tick == int(tick) for tick in ticks)


def test_a_set_drafts_until_the_next_pass():
  figure = plots.skip_set_strip(HEADER, PASSES)
  (mesh,) = figure.axes[0].collections
  edges = mesh.get_coordinates()[0, :, 0]
  assert edges.tolist() == [0.5, 1.5, 3.5, 4.5, 5.5, 6.5]


def test_the_sources_figure_draws_the_table():
  figure = plots.found_by_source(PASSES)
  proposed, became, shares = figure.axes
  names = [label.get_text() for label in proposed.get_yticklabels()]
  assert names == ['incumbent', 'start', 'random', 'gp', 'cached']
  for axes, counts in ((proposed, [4, 1, 1, 3, 1]), (became, [0, 2, 0, 2, 0])):
    assert [bar.get_width() for bar in axes.patches] == counts
    assert [text.get_text() for text in axes.texts] == list(map(str, counts))
  drawn = labelled(shares.lines)
  means = drawn['mean'].get_xdata()
  assert means == pytest.approx([0.55, 0.4, 0.2, 2 / 3, 0.9])
  assert drawn['best'].get_xdata() == pytest.approx([0.9, 0.4, 0.2, 0.9, 0.9])
  assert drawn['best'].get_ydata().tolist() == list(range(5))


@pytest.mark.parametrize('count', [1, 40])
def test_figures_are_drawn_without_a_warning(count):
  header, passes = made_up(count)
  for figure in (
    plots.matchness_over(passes),
    plots.matchness_over(passes, 'seconds'),
    plots.skip_set_strip(header, passes),
    plots.found_by_source(passes),
  ):
    figure.savefig(io.BytesIO(), format='png')


def save(path, header, passes):
  with records.Writer(str(path), header) as writer:
    for record in passes:
      writer.write(record)
  return path


def report(*arguments, **environment):
  """The real program; (status, stdout, stderr)."""
  done = subprocess.run(
    [sys.executable, LAUNCHER, *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, **environment},
  )
  return done.returncode, done.stdout, done.stderr


def test_a_report_of_a_search(tmp_path):
  search = save(tmp_path / 'x.jsonl', HEADER, PASSES)
  with open(search, 'a') as file:
    file.write('{"pass": 7, "evalu')  # the run was killed
  output = tmp_path / 'new' / 'folder'
  status, out, err = report(f'--search={search}', f'--output={output}')
  assert (status, err) == (0, '')
  assert set(os.listdir(output)) == FILES
  for name in FILES - {'search.json'}:
    assert (output / name).read_bytes().startswith(b'\x89PNG\r\n')
  rows = [line.split() for line in out.splitlines()]
  assert rows[1:6] == [
    ['incumbent', '4', '0', '0.550', '0.900'],
    ['start', '1', '2', '0.400', '0.400'],
    ['random', '1', '0', '0.200', '0.200'],
    ['gp', '3', '2', '0.667', '0.900'],
    ['cached', '1', '0', '0.900', '0.900'],
  ]
  assert out.splitlines()[7:] == [
    'passes       5',
    'evaluations  12',
    'matchness    0.900 +- 0.050',
    'search time  10.0% of the time',
    'restarts     1',
  ]
  summary = json.loads((output / 'search.json').read_text())
  assert [row['source'] for row in summary.pop('sources')] == [
    row[0] for row in rows[1:6]
  ]
  assert summary == {
    'model': '0123456789abcdef',
    'num_layers': 4,
    'passes': 5,
    'evaluations': 12,
    'matchness': 0.9,
    'stddev': 0.05,
    'seconds': 3.0,
    'search_seconds': pytest.approx(0.3),
    'search_share': pytest.approx(0.1),
    'restarts': 1,
  }


def assert_refused(ended, *said):
  status, out, err = ended
  assert (status, out) == (2, ''), err
  assert err.count('\n') == 1 and err.startswith('report.py: '), err
  for part in said:
    assert part in err


def test_wrong_inputs_end_in_one_line(tmp_path):
  good = save(tmp_path / 'good', HEADER, PASSES)
  bad = tmp_path / 'bad'
  bad.write_text(good.read_text().replace('"hits": [5, 8]', '"hits": [5, 80]'))
  empty = save(tmp_path / 'empty', HEADER, [])
  output = f'--output={tmp_path / "out"}'
  for arguments, said in (
    ([output], ['--search: a file is needed']),
    ([f'--search={good}'], ['--output: a folder is needed']),
    ([f'--search={tmp_path / "none"}', output], ['none', 'No such file']),
    ([f'--search={bad}', output], [f"--search='{bad}', line 3: hits=[5, 80]"]),
    ([f'--search={empty}', output], ['empty', 'holds no passes']),
    ([f'--search={good}', output, '--serach=x'], ["'serach'"]),
    ([f'--search={good}', f'--output={bad}'], [f"--output='{bad}'"]),
  ):
    assert_refused(report(*arguments), *said)
    assert set(os.listdir(tmp_path)) == {'good', 'bad', 'empty'}


def report_here(launch, *arguments):
  import report as launcher

  how = {'sections': None, 'name': 'report.py'}
  return launch(*arguments, main=launcher.main, **how)


def test_what_is_reported_on_is_not_written_over(launch, tmp_path):
  search = save(tmp_path / 'search.json', HEADER, PASSES)
  before = search.read_bytes()
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'run.json').write_text('{}')
  for folder, said in (
    (tmp_path, f'search.json would replace {search}'),
    (tmp_path / 'run', 'is the workdir of a run, whose search.json would be'),
  ):
    ended = report_here(launch, f'--search={search}', f'--output={folder}')
    assert_refused(ended, f"--output='{folder}': {said}")
  assert search.read_bytes() == before
  assert sorted(os.listdir(tmp_path)) == ['run', 'search.json']
  assert os.listdir(tmp_path / 'run') == ['run.json']


def test_a_folder_is_one_reports(launch, tmp_path):
  search = save(tmp_path / 'x', HEADER, PASSES)
  output = tmp_path / 'out'
  with atomic.folder(str(output), 'x'):
    (output / 'sources.png').touch()
    ended = report_here(launch, f'--search={search}', f'--output={output}')
    assert_refused(
      ended, f"--output='{output}': cannot be written: another run"
    )
    assert os.listdir(output) == ['sources.png']
  # What is wrong with the folder is said before anything is read.
  ended = report_here(launch, '--search=none', f'--output={search}')
  assert_refused(ended, f"--output='{search}': cannot be written: File exists")


def test_a_file_that_cannot_be_replaced_leaves_no_half(tmp_path):
  search = save(tmp_path / 'x', HEADER, PASSES)
  (tmp_path / 'out' / 'skip_set.png').mkdir(parents=True)
  ended = report(f'--search={search}', f'--output={tmp_path / "out"}')
  assert_refused(ended, 'out', 'skip_set.png: not a file')
  assert set(os.listdir(tmp_path / 'out')) <= FILES


def test_without_matplotlib_the_extra_is_named(tmp_path):
  search = save(tmp_path / 'x', HEADER, PASSES)
  absent = tmp_path / 'absent'
  absent.mkdir()
  text = 'raise ModuleNotFoundError("No module named \'matplotlib\'")\n'
  (absent / 'matplotlib.py').write_text(text)
  ended = report(
    f'--search={search}',
    f'--output={tmp_path / "out"}',
    PYTHONPATH=str(absent),
  )
  assert_refused(ended, "No module named 'matplotlib'", '[plots] extra')
  assert not (tmp_path / 'out').exists()
