"""Make retrieval data from documentation: a heading -> the first words of the text under it.

    python scripts/make_docs_data.py --output_dir outputs/data/docs

Runs on a Debian or Ubuntu machine, without root, after `apt-get update`; needs lxml (`pip install lxml`). The packages
(PACKAGES, as Debian 12 names them) are downloaded and read, not installed. The texts are under the licences of
their packages, in usr/share/doc/PACKAGE/copyright of each.

Writes the layout that retrieval_data.py describes.
"""

import re
from collections import defaultdict

from retrieval_data import Pair, deb_files, html_sections, make_data, normalise

# What to read, and which part of it: some hold translations and generated pages as well.
PACKAGES = {
    "ant-doc": "/manual/",
    "apache2-doc": "/manual/en/",
    "aptitude-doc-en": "/en/",
    "cmake-doc": "",
    "debian-policy": "",
    "debian-reference-en": "",
    "developers-reference": "",
    "freetds-doc": "/userguide/",
    "git-doc": "",
    "harden-doc": "/en-US/",
    "krb5-doc": "",
    "libreoffice-help-en-us": "",
    "mutt": "",
    "ntpsec-doc": "",
    "postfix-doc": "",
    "postgresql-doc-15": "",
    "python-celery-doc": "",
    "python-django-doc": "",
    "python-sqlalchemy-doc": "",
    "python3.11-doc": "",
    "sqlite3-doc": "",
    "varnish-doc": "",
}
NUMBER = re.compile(r"(?i)^((chapter|appendix|section)\s+)?([A-Z]?[\d.]+\.?|[A-Z]\.)[.:]?\s+")
MIN_QUERY_WORDS = 3
MIN_ANSWER_WORDS = 20
MAX_ANSWER_WORDS = 120


def clean_heading(heading: str) -> str:
    """Without its number and the sign that links to it.

    >>> clean_heading("4.2. Resolution of names\u00b6")
    'Resolution of names'
    """
    return NUMBER.sub("", heading.strip("\u00b6# "))


def load_pairs() -> list[Pair]:
    pairs = []
    wanted = re.compile(r"\.html?(\.en)?$")
    for _, path, content in deb_files(
        PACKAGES, lambda package, path: bool(wanted.search(path)) and PACKAGES[package] in path
    ):
        for position, (heading, text) in enumerate(html_sections(content) if content.strip() else []):
            answer = " ".join(text.split()[:MAX_ANSWER_WORDS])
            pairs.append(Pair(f"{path}#{position}", clean_heading(heading), answer))
    print(f"{len(pairs):6} headings")
    pairs = [pair for pair in pairs if len(normalise(pair.query).split()) >= MIN_QUERY_WORDS]
    print(f"{len(pairs):6} of {MIN_QUERY_WORDS} words or more")
    pairs = [pair for pair in pairs if len(normalise(pair.answer).split()) >= MIN_ANSWER_WORDS]
    print(f"{len(pairs):6} with {MIN_ANSWER_WORDS} words or more under them")
    answers = defaultdict(set)
    for pair in pairs:
        answers[normalise(pair.query)].add(pair.answer)
    # "Changes in this version" asks for nothing: many texts would do.
    pairs = [pair for pair in pairs if len(answers[normalise(pair.query)]) == 1]
    print(f"{len(pairs):6} that stand over one text only")
    return pairs


if __name__ == "__main__":
    make_data("Make retrieval data from documentation.", load_pairs)
