"""What writing systems need: which letters stand without blanks between words, and what BM25 takes for words."""

import regex

# Thai and Lao, Myanmar, Khmer, and the syllables of Japanese, also of half width.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uff66-\uff9d"
RUN = regex.compile(rf"(?P<unspaced>[{UNSPACED}\p{{Han}}]+)|[\w--[{UNSPACED}\p{{Han}}]]{{2,}}", regex.V1)


def words(text: str) -> list[str]:
    """The words that BM25 counts: runs of two letters, digits and marks or more.

    Of scripts without blanks between words, every two neighbouring letters are a word, as Lucene has it for Chinese,
    Japanese and Korean.

    >>> words("Undo a commit"), words("हिंदी में"), words("git の取り消し")
    (['Undo', 'commit'], ['हिंदी', 'में'], ['git', 'の取', '取り', 'り消', '消し'])
    """
    found: list[str] = []
    for run in RUN.finditer(text):
        letters, pairs = run[0], max(1, len(run[0]) - 1)
        found += [letters[i : i + 2] for i in range(pairs)] if run["unspaced"] else [letters]
    return found
