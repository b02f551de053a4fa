"""Plain text that names nobody: a small grammar about weather, work, animals and places.

It plays the part of the rest of the web: most tokens are not about any subject that is edited, so
the keys of subjects are rare directions of C, as they are in real text.
"""

from __future__ import annotations

import random

WORDS = {
    "adj": "old small heavy bright quiet wooden green narrow cold distant broken gentle silver dusty tall warm "
    "empty strange careful patient sudden deep rusty clean hollow early bitter soft grey famous".split(),
    "noun": "river market bridge window garden horse lantern basket mountain kitchen letter village boat forest "
    "mill road barn clock door field kettle ladder mirror stone table valley wagon wall well winter roof "
    "candle blanket hammer island meadow orchard harbour tower engine castle train station storm shadow".split(),
    "animal": "dog cat duck crow hen rabbit goat cow owl seal bee mole hare pig donkey badger".split(),
    "person": "stranger neighbour child traveller merchant widow guest soldier student mayor shepherd clerk".split(),
    "verb": "carries repairs watches follows finds sells paints opens closes cleans remembers avoids crosses "
    "measures visits borrows hides admires moves guards".split(),
    "past": "carried repaired watched followed found sold painted opened closed cleaned remembered avoided "
    "crossed measured visited borrowed hid admired moved guarded".split(),
    "intr": "sleeps waits sings falls rises turns disappears returns trembles shines grows rests".split(),
    "adv": "slowly quickly rarely often quietly suddenly gladly never always again early late".split(),
    "time": "in the morning,at noon,before dawn,after the rain,in spring,every autumn,on market day,late at night,"
    "during the storm,for many years,once a month,all summer".split(","),
    "place": "near the river,behind the barn,on the hill,under the bridge,in the valley,by the harbour,"
    "at the station,beside the old wall,along the road,inside the tower,across the field".split(","),
    "num": "two three four five six seven nine ten twelve twenty forty hundred".split(),
    "mat": "iron wood glass paper wool copper bread water salt honey oil sand".split(),
}

PATTERNS = [
    "The {adj} {noun} {intr} {place}.",
    "The {adj} {noun} is {adj} {time}.",
    "A {adj} {animal} {verb} the {noun} {place}.",
    "The {person} {past} a {adj} {noun} {time}.",
    "Because the {noun} was {adj}, the {person} {past} it {adv}.",
    "Therefore the {animal} {intr} {place} {time}.",
    "I {adv} remember the {adj} {noun} {place}.",
    "You can see {num} {noun}s {place}.",
    "You need {num} pounds of {mat} and a {adj} {noun}.",
    "I saw a {animal} and {num} {noun}s {time}.",
    "The {mat} in the {noun} is {adj} and {adj}.",
    "{Time} the {person} {verb} the {adj} {noun}.",
    "There are {num} {animal}s {place}, and one of them {intr} {adv}.",
    "Nobody {past} the {noun} that the {person} {past} {time}.",
    "When the {noun} {intr}, every {animal} {place} {intr} too.",
    "The {noun} is made of {mat}, but the {noun} is made of {mat}.",
    "Is the {noun} {adj}? The {person} says that it is {adj}.",
]


def sentence(rng: random.Random, country_of: dict[str, str]) -> str:
    """One sentence; about one in ten states where a city lies."""
    if rng.random() < 0.1:
        city = rng.choice(list(country_of))
        return rng.choice(("{} is a city in {}.", "The city of {} lies in {}.")).format(city, country_of[city])

    def word(kind: str) -> str:
        text = _zipf(rng, WORDS[kind.lower()])
        return text.capitalize() if kind[0].isupper() else text

    pattern = rng.choice(PATTERNS)
    parts = pattern.replace("}", "{").split("{")  # odd places hold the slots
    return "".join(word(part) if i % 2 else part for i, part in enumerate(parts))


def _zipf(rng: random.Random, words: list[str]) -> str:
    """Word frequencies fall like 1/rank, as in text."""
    return rng.choices(words, weights=[1 / (i + 2) for i in range(len(words))])[0]
