"""The site's part of what lies outside docs/, for mkdocs.

The documents at the root are pages too, as `extra.outside` of mkdocs.yml lists them.
A link to a source leads to the page of the reference that documents it, or becomes
the name of the file where there is none. All else is left to mkdocs, which refuses
links that lead nowhere.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r'\[([^]\n]+)\]\(([^)\s#]+)(#[^)\s]*)?\)')
DIRECTIVE = re.compile(r'^::: ([\w.]+)\.\w+$', re.M)


def on_files(files, config):
  """Adds the pages that lie outside docs/."""
  for page, path in config.extra['outside'].items():
    files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links that leave docs/ to where the site has what they mean."""
  here = page.file.src_uri
  outside = config.extra['outside']
  folder = posixpath.dirname(outside.get(here, f'docs/{here}'))
  pages = pages_by_path(files, outside)

  def turned(link: re.Match) -> str:
    text, target, anchor = link.groups(default='')
    path = posixpath.normpath(posixpath.join(folder, target))
    if path in pages:
      to = posixpath.relpath(pages[path], posixpath.dirname(here) or '.')
      return f'[{text}]({to}{anchor})'
    if path.startswith('docs/') or not (ROOT / path).exists():
      return link[0]
    return f'`{path}`' if text.startswith('`') else f'{text} (`{path}`)'

  return LINK.sub(turned, markdown)


def pages_by_path(files, outside: dict[str, str]) -> dict[str, str]:
  """What the site calls a file of the repository, or the page about it."""
  pages = {}
  for file in files:
    pages[outside.get(file.src_uri, f'docs/{file.src_uri}')] = file.src_uri
    if file.is_documentation_page():
      modules = DIRECTIVE.findall(file.content_string)
      pages |= {f'{m.replace(".", "/")}.py': file.src_uri for m in modules}
  return pages
