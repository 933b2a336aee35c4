"""The report as one HTML file that one can mail or publish: nothing is fetched, nothing runs."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping

from controller.core.untrusted import clean_line

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """\
:root {
  color-scheme: light dark;
  --ink: #1c2128; --page: #fff; --line: #d8dee4; --soft: #57606a; --link: #0969da
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --page: #0d1117; --line: #30363d; --soft: #8b949e; --link: #58a6ff }
}
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 60rem; color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: break-word }
h1 { font-size: 1.75rem; margin: 0 0 1rem }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line) }
a { color: var(--link) }
code { font: .9em ui-monospace, monospace }
img { display: block; max-width: 100%; margin: 1rem 0; border-radius: 6px; background: #fff }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600 }
@media print { body { max-width: none } }
"""


def page(markdown: str, pictures: Mapping[str, bytes], title: str) -> str:
    """`markdown` as a page. `pictures`: SVG files, by the name under which it shows them.

    HTML in the Markdown is text, as in the Markdown itself, which escapes it. What is an image cannot run
    anything, and the policy forbids whatever else might.
    """
    from markdown_it import MarkdownIt  # no other command needs it

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for name, picture in pictures.items():
        body = body.replace(f'<img src="{name}"', f'<img src="{_embedded(picture)}"')
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(clean_line(title))}</title>
<style>
{_STYLE}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def _embedded(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
