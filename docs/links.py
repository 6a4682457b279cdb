"""Whether the links of the built site lead somewhere: python docs/links.py build/docs

Relative links and their anchors are followed in the files; addresses of other sites are listed, since nothing is
fetched. Formulas that MathJax could not read show only in a browser.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = {""}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(value for name in ("id", "name") if (value := attributes.get(name)))
        self.links += [value for name in ("href", "src") if (value := attributes.get(name))]


def check(root):
    """(what is broken, in words; the addresses of other sites)."""
    root = Path(root).resolve()
    pages = {path: _Page(path) for path in sorted(root.rglob("*.html"))}
    broken, elsewhere = [], set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                elsewhere.add(link) if parts.scheme != "data" else None
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append(f"{path.relative_to(root)}: {link}")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.relative_to(root)}: {link} (no such place on the page)")
    return broken, sorted(elsewhere)


if __name__ == "__main__":
    broken, elsewhere = check(sys.argv[1])
    print(f"{len(elsewhere)} addresses of other sites, not fetched:", *elsewhere, sep="\n  ")
    sys.exit("broken:\n  " + "\n  ".join(broken) if broken else 0)
