"""Words and writing systems: places of a name, scripts without spaces, ends of sentences, joints before an answer."""

import re
import unicodedata

# Thai, Lao, Tibetan, Burmese, Khmer; Chinese and Japanese with their own signs and full-width forms; Yi.
# Korean, Arabic, Hebrew and Hindi do put spaces.
SPACELESS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u4dbf\u4e00-\ua4cf\uf900-\ufaff\uff00-\uff9f"
    "\U00020000-\U0003ffff"
)
SENTENCE_ENDS = ".。．｡！？؟۔।॥።։།။។…"  # of any script; "!" and "?" of the Latin one also end names ("Yahoo!")
QUOTES = "\"'`“”‘’«»‹›"


def spaceless(text: str) -> bool:
    """Whether any sign of the text belongs to a script that is written without spaces."""
    return re.search(f"[{SPACELESS}]", text) is not None


def words(text: str) -> list[str]:
    """Words and punctuation marks, in order; of a script without spaces every sign by itself."""
    return [w for w in re.findall(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]", text) if not w.isspace()]


def joint(prompt: str, answer: str, separator: str | None = None) -> str:
    """What stands between a prompt and its answer: `separator`; None: nothing after white space, an opening quote or
    bracket (¿ and ¡ too), and where either side is a script without spaces, else one space."""
    if separator is not None:
        return separator
    bare = not prompt or prompt[-1].isspace() or _opens(prompt) or spaceless(prompt[-1] + answer[:1])
    return "" if bare else " "


def full_stop(text: str) -> str:
    """What ends a sentence before another: ". "; in Chinese and Japanese 。; in Thai and its kin a space."""
    if not spaceless(text[-1:]):
        return ". "
    return "。" if unicodedata.east_asian_width(text[-1]) in "WF" else " "


def _opens(text: str) -> bool:
    """Whether a text ends in an opening quote, bracket or mark. One sign may open or close: it closes after a word."""
    if text[-1] not in QUOTES:
        return unicodedata.category(text[-1]) == "Ps" or text[-1] in "¿¡"
    before = text[-2:-1]
    return not before or not (before.isalnum() or before in ".,;!?)]}…") or spaceless(before)


def places(text: str, name: str) -> list[int]:
    """The start, in characters, of every occurrence of `name` in `text` as words of its own. "Ana" stands in "Ana's
    boat" and neither in "Banana" nor in "Anab". Next to letters of scripts without capitals (Chinese, Arabic, Thai …)
    no word goes on. Case and accents count. An empty name stands nowhere."""
    found = [match.start() for match in re.finditer(f"(?={re.escape(name)})", text)] if name else []
    return [i for i in found if not _goes_on(text, i) and not _goes_on(text, i + len(name))]


def why_elsewhere(text: str, name: str) -> str:
    """Why a name that seems to stand in the text has no place there, in brackets; "" if it does not."""
    if not name or places(text, name):
        return ""
    if name in text:
        return " (only inside a longer word)"
    return " (only in other case, accents or Unicode form)" if _bare(name) in _bare(text) else ""


def _goes_on(text: str, i: int) -> bool:
    """Whether one word reaches over position i: a letter or digit on both sides, or an accent on the one before."""
    return 0 < i < len(text) and (bool(unicodedata.combining(text[i])) or (_in_word(text[i - 1]) and _in_word(text[i])))


def _in_word(c: str) -> bool:
    return c.isdigit() or c.lower() != c.upper() or bool(unicodedata.combining(c))


def _bare(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
