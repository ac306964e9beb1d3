"""What a reader of the built site sees, held against the sources of its pages.

`source_counts` counts in Markdown what `html_counts` must find in the page, and `lesson_counts` in an
executed notebook; `dead_links` follows every link inside the site, `other_hosts` names what a page would ask
of other hosts, and `Browser` opens the pages in Chromium, where formulas must be typeset, pictures there, and
scripts without complaint.
"""

import functools
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

__all__ = [
    "BROWSER",
    "dead_links",
    "html_counts",
    "lesson_counts",
    "links_of",
    "look",
    "other_hosts",
    "pages_of",
    "source_counts",
]

KINDS = ("headings", "code", "tables", "images")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_VOID = {"img", "br", "hr", "input", "meta", "link", "source", "wbr"}


def source_counts(text: str) -> dict[str, int]:
    """Headings, blocks of code, tables and images of a page in Markdown."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    fence = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2 *$\n?", re.MULTILINE | re.DOTALL)
    prose, blocks = fence.subn("", text)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    return {
        "headings": len(re.findall(r"^#{1,6} ", prose, re.MULTILINE)),
        "code": blocks,
        "tables": len(re.findall(r"^ *\|(?: *:?-+:? *\|)+ *$", prose, re.MULTILINE)),
        "images": len(re.findall(r"!\[[^\]]*\]\(|<img\b", prose)),
    }


def lesson_counts(notebook: dict) -> dict[str, int]:
    """The same of a notebook: its prose, its cells of code, and what these show."""
    total = dict.fromkeys(KINDS, 0)

    def add(counts):
        for kind, number in counts.items():
            total[kind] += number

    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            add(source_counts("".join(cell["source"])))
            continue
        add({"code": 1})
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                add({"images": 1})
            elif "text/html" in data:
                page = _Page()
                page.feed("<article>" + "".join(data["text/html"]) + "</article>")
                add(page.counts)
            else:
                add({"code": bool("".join(output.get("text") or data["text/plain"]).strip())})
    return total


class _Page(HTMLParser):
    """Counts in the article of a page, and links, anchors and sources of the whole page."""

    def __init__(self):
        super().__init__()
        self.counts = dict.fromkeys(KINDS, 0)
        self.links, self.anchors, self.sources = [], set(), []
        self.text = []
        self.open = []

    def handle_starttag(self, tag, attrs):
        named = {name: value or "" for name, value in attrs}
        self.anchors.update(filter(None, (named.get("id"), named.get("name"))))
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        if tag in ("script", "img", "iframe") and named.get("src"):
            self.sources.append(named["src"])
        if tag == "link" and named.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.sources.append(named.get("href", ""))
        if "article" in self.open:
            self.counts["headings"] += bool(re.fullmatch(r"h[1-6]", tag))
            # A block with line numbers is a table of two blocks.
            self.counts["code"] += tag == "pre" and "linenodiv" not in self.open
            self.counts["tables"] += tag == "table"
            self.counts["images"] += tag == "img"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "article" in self.open and not {"pre", "code", "script"} & set(self.open):
            self.text.append(data)


def _parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text())
    return page


def html_counts(path: Path) -> dict[str, int]:
    """What `source_counts` counts, in a built page."""
    return _parsed(path).counts


def links_of(path: Path) -> list[str]:
    """Where the links of a built page lead."""
    return _parsed(path).links


def pages_of(site: Path) -> dict[str, Path]:
    """Built pages by their address below the site's root."""
    return {
        str(path.relative_to(site)): path
        for path in sorted(site.rglob("*.html"))
        if path.name == "index.html"
    }


def dead_links(site: Path) -> list[str]:
    """Links inside the site to a page, file or anchor that is not there."""
    pages = {path: _parsed(path) for path in pages_of(site).values()}
    dead = []
    for path, page in pages.items():
        base = f"http://site/{path.relative_to(site)}"
        for link in [*page.links, *page.sources]:
            address, anchor = urldefrag(urljoin(base, link))
            parts = urlsplit(address)
            if parts.netloc != "site":
                continue
            target = site / unquote(parts.path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (anchor and target in pages and unquote(anchor) not in known):
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def other_hosts(site: Path) -> list[str]:
    """Scripts, styles and pictures that pages would load from other hosts."""
    return [
        f"{name}: {source}"
        for name, path in pages_of(site).items()
        for source in _parsed(path).sources
        if urlsplit(source).netloc
    ]


# Stands first in each page: notes errors of scripts, files that do not come, and words for the console.
_LISTENER = """<script>
window.said = [];
addEventListener("error", (e) => said.push(e.message || e.target.src || e.target.href), true);
for (const kind of ["error", "warn"]) console[kind] = (...words) => said.push(words.join(" "));
</script>"""

# Opens each page in a frame, waits for its pictures, and posts what it sees.
_DRIVER = """<!doctype html><iframe width="1280" height="900"></iframe><script>
const frame = document.querySelector("iframe");
const seen = {};
async function visit(page) {
  await new Promise((done) => { frame.onload = done; frame.src = page; });
  const body = frame.contentDocument.body;
  const images = [...body.querySelectorAll("article img")];
  for (const image of images) image.loading = "eager";
  const loaded = (image) => new Promise((done) => { image.onload = image.onerror = done; });
  await Promise.all(images.filter((image) => !image.complete).map(loaded));
  const words = body.querySelector("article").cloneNode(true);
  for (const part of words.querySelectorAll("pre, code, script, .katex, .doc-signature")) part.remove();
  const count = (selector) => body.querySelectorAll("article " + selector).length;
  seen[page] = {
    headings: count(":is(h1, h2, h3, h4, h5, h6)"),
    code: count("pre"),
    tables: count("table"),
    images: images.length,
    missing: images.filter((image) => !image.naturalWidth).map((image) => image.src),
    formulas: count(".arithmatex"),
    typeset: count(".arithmatex > :is(.katex, .katex-display)"),
    refused: [...body.querySelectorAll(".katex-error")].map((part) => part.title),
    raw: words.textContent.match(/\\\\[([]|\\$\\$|```/g) || [],
    said: frame.contentWindow.said,
    asked: frame.contentWindow.performance.getEntriesByType("resource")
      .map((entry) => entry.name).filter((name) => new URL(name).host !== location.host),
    hidden: body.querySelector("article").scrollWidth > body.clientWidth + 1,
  };
}
(async () => {
  for (const page of PAGES) await visit(page);
  await fetch("/seen", { method: "POST", body: JSON.stringify(seen) });
})();
</script>"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the site, the page that opens the others, and the place that it reports to."""

    def do_GET(self):
        if self.path == "/driver.html":
            text = self.server.driver
        elif self.path.endswith(".html"):
            text = Path(self.translate_path(self.path)).read_text()
            text = text.replace("<head>", f"<head>{_LISTENER}", 1)
        else:
            super().do_GET()
            return
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.server.seen = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *_):
        pass


def look(site: Path, timeout: float = 300.0) -> dict[str, dict]:
    """Open all pages in Chromium: what it sees of each, what scripts say, and other hosts that are asked.

    No host but this one can be reached.
    """
    assert BROWSER, "no Chromium on this machine"
    handler = functools.partial(_Handler, directory=str(site))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        server.driver = _DRIVER.replace(
            "PAGES", json.dumps([f"/{name}" for name in pages_of(site)])
        )
        server.done, server.seen = threading.Event(), {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"),
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"http://127.0.0.1:{server.server_port}/driver.html",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browser = subprocess.Popen(command, **quiet)
        try:
            finished = server.done.wait(timeout)
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
        assert finished, f"Chromium did not report within {timeout} s"
        return {name.lstrip("/"): seen for name, seen in server.seen.items()}
