"""The documents name only what is there: files, fields, flags, defaults."""

import ast
import dataclasses
import pathlib
import re

from cli import common
import evaluate
import pytest
import train_demo
import yaml

import swift_jax
from swift_jax.config.settings import SearchConfig

ROOT = pathlib.Path(__file__).parents[2]
SITE = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())


def pages(nav) -> list[str]:
  """The pages below a part of the site's navigation, in its order."""
  if isinstance(nav, str):
    return [nav]
  parts = nav.values() if isinstance(nav, dict) else nav
  return [page for part in parts for page in pages(part)]


# In the order in which they are read, and their commands run.
DOCS = [
  ROOT / SITE['extra']['outside'].get(page, f'docs/{page}')
  for page in pages(SITE['nav'])
]
FOLDERS = ('swift_jax', 'launch', 'configs', 'notebooks', 'tests', 'docs')
SECTIONS = (evaluate.SECTIONS, train_demo.SECTIONS)
# What may stand behind a section's name and a dot, and is no field.
EXTENSIONS = {'json', 'jsonl', 'md', 'py', 'safetensors'}
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
SPAN = re.compile(r'`([^`\n]+)`')
URL = re.compile(r'\w+://[^\s)]+')
FLAG = re.compile(r'(?<![\w=-])--([a-z_]+)(?![\w.])')
# A table whose head is the flag of a section, and its rows.
TABLE = re.compile(
  r'^\| `--config\.(\w+)\.` .*\n\|.*\n((?:\|.*(?:\n|\Z))+)', re.M
)

each_doc = pytest.mark.parametrize('doc', DOCS, ids=lambda doc: doc.name)


def code_of(doc: pathlib.Path) -> list[str]:
  """Lines of code blocks, continued ones joined, and code in the text."""
  text = doc.read_text()
  blocks = ''.join(block for _, block in BLOCK.findall(text))
  lines = blocks.replace('\\\n', ' ').splitlines()
  return [*lines, *SPAN.findall(BLOCK.sub('', text))]


def anchors_of(doc: pathlib.Path) -> set[str]:
  """What links call the headings, as GitHub makes it."""
  headings = re.findall(r'^#+ (.*)$', BLOCK.sub('', doc.read_text()), re.M)
  kept = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings]
  return {heading.replace(' ', '-') for heading in kept}


def fields_of(section: str) -> set[str]:
  """Of all launchers that have such a section; empty: none has."""
  kinds = [sections[section] for sections in SECTIONS if section in sections]
  return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def flags_of(launcher: pathlib.Path) -> set[str]:
  """What a launcher's source declares beside the config's fields."""
  source = launcher.read_text()
  if launcher.suffix == '.py':
    everywhere = {'config', 'help', 'verbosity'}
    return {*everywhere, *re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source)}
  lists = re.findall(r"""^(?:flags|switches)=['"](.*)['"]$""", source, re.M)
  return {'dry_run', *' '.join(lists).split()}


FLAGS = {
  file.name: flags_of(file)
  for file in (ROOT / 'launch').rglob('*')
  if file.suffix in ('.py', '.sh')
}


def test_each_document_is_a_page_of_the_site():
  there = [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')]
  assert sorted(DOCS) == sorted(there)


@each_doc
def test_links_lead_somewhere(doc):
  for link in re.findall(r'\]\(([^)\s]+)\)', BLOCK.sub('', doc.read_text())):
    path, _, anchor = link.partition('#')
    if '://' in path:
      continue
    target = doc.parent / path if path else doc
    assert target.exists(), link
    assert not anchor or anchor in anchors_of(target), link


@each_doc
def test_files_that_are_named_are_there(doc):
  text = URL.sub('', doc.read_text())
  folders = '|'.join(FOLDERS)
  for path in re.findall(rf'(?<![\w/.-])(?:{folders})/[\w./-]*\w', text):
    assert (ROOT / path).exists(), path
  there = {file.name for file in ROOT.iterdir()}
  for folder in FOLDERS:
    there |= {file.name for file in (ROOT / folder).rglob('*')}
  assert set(re.findall(r'\.?[\w-]+\.(?:md|py|sh|toml|yaml)\b', text)) <= there


@each_doc
def test_config_fields_that_are_named_exist(doc):
  code = '\n'.join(code_of(doc))
  named = re.findall(r'--config\.([a-z0-9_]+)(?:\.([a-z0-9_]+))?', code)
  sections = '|'.join({**SECTIONS[0], **SECTIONS[1]})
  bare = re.findall(rf'(?<![\w./-])({sections})\.([a-z][a-z0-9_]*)', code)
  named += [pair for pair in bare if pair[1] not in EXTENSIONS]
  for section, rows in TABLE.findall(doc.read_text()):
    for row in rows.splitlines():
      fields = SPAN.findall(row.split('|')[1])
      named += [(section, field.partition('=')[0]) for field in fields]
  for section, field in named:
    if section in common.FIELDS:
      assert not field, f'{section}.{field}'
      continue
    assert fields_of(section), section
    assert field in {'', *fields_of(section)}, f'{section}.{field}'


@each_doc
def test_flags_that_are_named_exist(doc):
  for line in code_of(doc):
    for command in re.split(r'&&|;|\s#', line):
      found = re.search(r'launch/(?:\w+/)?(\w+\.(?:py|sh))\s(.*)', command)
      if found and found[1] != 'test.sh':  # whose arguments are pytest's
        own, _, passed_on = found[2].partition(' -- ')
        assert set(FLAG.findall(own)) <= FLAGS[found[1]], line
        assert set(FLAG.findall(passed_on)) <= FLAGS['evaluate.py'], line
    if line.startswith('--') and not line.startswith('--xla_'):
      assert set(FLAG.findall(line)) <= set().union(*FLAGS.values()), line


@each_doc
def test_python_can_be_parsed(doc):
  for language, block in BLOCK.findall(doc.read_text()):
    if language == 'python':
      ast.parse(block)


def test_the_search_table_has_each_field_and_its_default():
  text = (ROOT / 'docs' / 'search.md').read_text()
  table = text.split('| field | default | meaning |')[1].split('\n\n')[0]
  rows = re.findall(r'^\| `(\w+)` \| `(.*?)` \| \S.* \|$', table, re.M)
  fields = dataclasses.fields(SearchConfig)
  assert rows == [(field.name, repr(field.default)) for field in fields]


def test_the_reference_has_every_public_name():
  pages = [page.read_text() for page in ROOT.glob('docs/reference/*.md')]
  named = re.findall(r'^::: (\S+)\.(\w+)$', '\n'.join(pages), re.M)
  public = swift_jax._PUBLIC.items()
  assert sorted(named) == sorted((module, name) for name, module in public)


def test_hooks_before_a_commit_are_what_ci_lints_with():
  text = (ROOT / '.pre-commit-config.yaml').read_text()
  (repo,) = yaml.safe_load(text)['repos']
  ci = (ROOT / '.ci' / 'run').read_text().splitlines()
  (first,) = [i for i, line in enumerate(ci) if 'use_environment' in line]
  (site,) = [i for i, line in enumerate(ci) if 'mkdocs build' in line]
  assert [hook['entry'] for hook in repo['hooks']] == ci[first + 1 : site]
  # In the environment's versions, over all files as there.
  for hook in repo['hooks']:
    assert (hook['language'], hook['pass_filenames']) == ('system', False)
