"""Make retrieval data from manual pages: what NAME says a page is about -> the first words of its DESCRIPTION.

    python scripts/make_manpage_data.py --output_dir outputs/data/manpages

Runs on a Debian or Ubuntu machine, without root, after `apt-get update`; needs mandoc (`apt-get install mandoc`) and
lxml (`pip install lxml`). The packages (PACKAGES) are downloaded and read, not installed. What the pages say
is under the licences of their packages, in usr/share/doc/PACKAGE/copyright of each.

Writes the layout that retrieval_data.py describes.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from retrieval_data import Pair, deb_files, first_of_each, html_sections, make_data, normalise

# Many pages with prose for their size; in Debian 12 they have 9,000 pages.
PACKAGES = [
    "bpfcc-tools",
    "bsdgames",
    "btrfs-progs",
    "coreutils",
    "debhelper",
    "devscripts",
    "dpkg-dev",
    "emboss",
    "erlang-manpages",
    "freebsd-manpages",
    "git-man",
    "inn2",
    "iproute2",
    "libbio-perl-perl",
    "libbsd-dev",
    "libcurl4-doc",
    "libdist-zilla-perl",
    "libldap-dev",
    "libmoose-perl",
    "libmojolicious-perl",
    "libnbd-dev",
    "libperl-critic-perl",
    "libssl-doc",
    "libsystemd-dev",
    "libx11-doc",
    "lintian",
    "manpages",
    "manpages-dev",
    "moreutils",
    "ncurses-doc",
    "netpbm",
    "nmh",
    "nvme-cli",
    "pcp",
    "perl-doc",
    "perl-tk",
    "postfix",
    "resource-agents",
    "systemd",
    "systemtap-doc",
    "tcl8.6-doc",
    "tcllib",
    "texlive-binaries",
    "tk8.6-doc",
    "tpm2-tools",
    "util-linux",
    "x11-utils",
]
MIN_QUERY_WORDS = 2
MIN_ANSWER_WORDS = 20
MAX_ANSWER_WORDS = 120
PAGES_PER_CALL = 200


def load_pages() -> Iterator[bytes]:
    """Every English page as HTML; a page that only points to another (.so) is left out."""
    wanted = re.compile(r"usr/share/man/man\d\w*/")
    pages = deb_files(PACKAGES, lambda package, path: bool(wanted.match(path)))
    sources = [content for _, _, content in pages if not content.startswith(b".so ")]
    print(f"{len(sources):6} pages")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, str(number)) for number in range(len(sources))]
        for path, source in zip(paths, sources, strict=True):
            path.write_bytes(source)
        for start in range(0, len(paths), PAGES_PER_CALL):
            command = ["mandoc", "-T", "html", *map(str, paths[start : start + PAGES_PER_CALL])]
            html = subprocess.run(command, capture_output=True, check=False).stdout  # its status tells of bad style
            yield from html.split(b"<!DOCTYPE html>")[1:]


def read_page(html: bytes) -> Pair | None:
    """The pair of a page, or None where it lacks a part."""
    sections = {heading.upper(): text for heading, text in reversed(html_sections(html))}
    title = re.search(rb"<title>(.*?)</title>", html)
    _, dash, query = re.sub(r"\s[\u2014\u2013-]+\s", " - ", sections.get("NAME", "")).partition(" - ")
    if not (title and dash and "DESCRIPTION" in sections):
        return None
    answer = " ".join(sections["DESCRIPTION"].split()[:MAX_ANSWER_WORDS])
    return Pair(title[1].decode(), query, answer)


def load_pairs() -> list[Pair]:
    pairs = [pair for pair in map(read_page, load_pages()) if pair]
    print(f"{len(pairs):6} with a line in NAME and a DESCRIPTION")
    pairs = first_of_each(pairs, lambda pair: pair.id)
    print(f"{len(pairs):6} of different names")
    pairs = [pair for pair in pairs if len(normalise(pair.query).split()) >= MIN_QUERY_WORDS]
    print(f"{len(pairs):6} with {MIN_QUERY_WORDS} words or more in NAME, after the page's name")
    pairs = [pair for pair in pairs if len(normalise(pair.answer).split()) >= MIN_ANSWER_WORDS]
    print(f"{len(pairs):6} with {MIN_ANSWER_WORDS} words or more in DESCRIPTION")
    return pairs


if __name__ == "__main__":
    make_data("Make retrieval data from manual pages.", load_pairs)
