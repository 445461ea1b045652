"""The documents name only what is there: files, config fields, flags, defaults."""

import ast
import dataclasses
import pathlib
import re

import common
import evaluate
import pytest
import train_demo

from swift_jax.config import SearchConfig

ROOT = pathlib.Path(__file__).parent.parent
DOCS = [ROOT / 'README.md', ROOT / 'BUILD.md', *sorted(ROOT.glob('docs/*.md'))]
FOLDERS = ('swift_jax', 'launch', 'configs', 'tests', 'docs')
SECTIONS = {**train_demo.SECTIONS, **evaluate.SECTIONS}
# What may follow a section's name and a dot, and is no field.
EXTENSIONS = {'json', 'jsonl', 'md', 'py', 'safetensors'}
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
SPAN = re.compile(r'`([^`\n]+)`')
FLAG = re.compile(r'(?<!\S)--([a-z_]+)(?![\w.])')

each_doc = pytest.mark.parametrize('doc', DOCS, ids=lambda doc: doc.name)


def without_urls(doc: pathlib.Path) -> str:
  return re.sub(r'\w+://[^\s)]+', '', doc.read_text())


def code_of(doc: pathlib.Path) -> list[str]:
  """Lines of the code blocks, continued ones joined, and the code in the text."""
  text = doc.read_text()
  blocks = ''.join(block for _, block in BLOCK.findall(text))
  lines = blocks.replace('\\\n', ' ').splitlines()
  return [*lines, *SPAN.findall(BLOCK.sub('', text))]


def anchors_of(doc: pathlib.Path) -> set[str]:
  """What the headings are called in links, as GitHub does."""
  headings = re.findall(r'^#+ (.*)$', BLOCK.sub('', doc.read_text()), re.M)
  kept = [re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings]
  return {heading.replace(' ', '-') for heading in kept}


def launcher_flags(file: pathlib.Path) -> set[str]:
  """The flags that a launcher declares, without those of the config."""
  source = file.read_text()
  if file.suffix == '.py':
    return set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source)) | {'config'}
  lists = re.findall(r"""^(?:flags|switches)=['"](.*)['"]$""", source, re.M)
  return set(' '.join(lists).split()) - {'$flags'} | {'dry_run'}


LAUNCHERS = {
  file.name: launcher_flags(file)
  for kind in ('*.py', '*.sh')
  for file in sorted((ROOT / 'launch').glob(kind))
}


@each_doc
def test_links_lead_somewhere(doc):
  links = re.findall(r'\]\(([^)\s]+)\)', BLOCK.sub('', doc.read_text()))
  assert links or doc.name == 'performance.md'
  for link in links:
    path, _, anchor = link.partition('#')
    if '://' in path:
      continue
    target = (doc.parent / path).resolve() if path else doc
    assert target.exists(), link
    assert not anchor or anchor in anchors_of(target), link


@each_doc
def test_files_that_are_named_are_there(doc):
  text = without_urls(doc)
  folders = '|'.join(FOLDERS)
  paths = re.findall(rf'(?<![\w/.-])((?:{folders})/[\w./-]*\w)', text)
  for path in paths:
    assert (ROOT / path).exists(), path
  there = {file.name for file in ROOT.iterdir()}
  for folder in FOLDERS:
    there |= {file.name for file in (ROOT / folder).rglob('*')}
  named = re.findall(r'[\w-]+\.(?:py|sh|yaml|toml)\b', text)
  assert set(named) <= there


@each_doc
def test_config_fields_that_are_named_exist(doc):
  code = '\n'.join(code_of(doc))
  flags = re.findall(r'--config\.([a-z0-9_]+)(?:\.([a-z0-9_]+))?', code)
  names = '|'.join(SECTIONS)
  bare = re.findall(rf'(?<![\w./-])({names})\.([a-z][a-z0-9_]*)', code)
  bare = [pair for pair in bare if pair[1] not in EXTENSIONS]
  # Rows of a table whose head is a section's flag.
  rows = re.findall(r'^\| `--config\.(\w+)\.` .*\n\|.*\n((?:\|.*\n)+)', text_of(doc), re.M)
  in_rows = [
    (section, re.match(r'\w+', name)[0])
    for section, table in rows
    for line in table.splitlines()
    for name in SPAN.findall(line.split('|')[1])
  ]
  for section, field in (*flags, *bare, *in_rows):
    if section in common.FIELDS:
      assert not field
      continue
    assert section in SECTIONS, section
    known = fields_of(section)
    assert not field or field in known, f'{section}.{field}'


def text_of(doc: pathlib.Path) -> str:
  return f'{doc.read_text()}\n'


def fields_of(section: str) -> set[str]:
  """Of a section in any launcher that has it."""
  return {
    field.name
    for sections in (train_demo.SECTIONS, evaluate.SECTIONS)
    if section in sections
    for field in dataclasses.fields(sections[section])
  }


@each_doc
def test_flags_that_are_named_exist(doc):
  for line in code_of(doc):
    for command in re.split(r'&&|;|\s#', line):
      found = re.search(r'launch/(\w+\.(?:py|sh))\s(.*)', command)
      if not found:
        continue
      script, arguments = found.groups()
      own, _, passed_on = f'{arguments} '.partition(' -- ')
      assert set(FLAG.findall(own)) <= LAUNCHERS[script], line
      assert set(FLAG.findall(passed_on)) <= LAUNCHERS['evaluate.py'], line
    if line.startswith('--'):
      assert set(FLAG.findall(line)) <= set().union(*LAUNCHERS.values()), line


def test_the_search_table_has_each_field_and_its_default():
  text = (ROOT / 'docs' / 'search.md').read_text()
  table = text.split('| field | default | meaning |')[1].split('\n\n')[0]
  rows = re.findall(r'^\| `(\w+)` \| `(.*?)` \| \S.* \|$', table, re.M)
  fields = dataclasses.fields(SearchConfig)
  assert rows == [(field.name, repr(field.default)) for field in fields]


@each_doc
def test_python_can_be_parsed(doc):
  for language, block in BLOCK.findall(doc.read_text()):
    if language == 'python':
      ast.parse(block)
