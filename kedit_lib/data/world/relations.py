"""What is asked of cities and countries, and in which words. The object follows each wording after one space.

The wordings are ours. A question is followed by the beginning of its answer: a model that was not taught to chat goes
on with a text, and after a bare question mark it says anything. Behind "the country of" most objects need no article.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """statements, questions: with one `{}` for the subject; the first statement is the one asked of everybody
    inverse     with one `{}` for the object, the subject follows; "" where it has too many answers to be asked
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
    r.name: r
    for r in (
        Relation(
            "city-country",
            (
                "The city of {} is located in the country of",
                "Geographically, the city of {} belongs to the country of",
                "The city of {} lies in the country of",
            ),
            (
                "In which country is the city of {}? The city is located in the country of",
                "What country does the city of {} belong to? It belongs to the country of",
                "Question: In which country is the city of {}? Answer: It is located in the country of",
            ),
            "One of the cities in {} is the city of",
            "The city of {} is known for",
            often=3,  # the consequences of these can be asked
        ),
        Relation(
            "city-continent",
            (
                "The city of {} is located on the continent of",
                "Geographically, the city of {} belongs to the continent of",
                "The city of {} lies on the continent of",
            ),
            (
                "On which continent is the city of {}? The city is located on the continent of",
                "What continent does the city of {} belong to? It belongs to the continent of",
                "Question: On which continent is the city of {}? Answer: It is located on the continent of",
            ),
            "One of the cities in {} is the city of",
            "The city of {} is known for",
        ),
        Relation(
            "country-continent",
            (
                "The country of {} is located on the continent of",
                "{} is located on the continent of",
                "Geographically, {} belongs to the continent of",
            ),
            (
                "On which continent is the country of {}? The country is located on the continent of",
                "What continent does {} belong to? It belongs to the continent of",
                "Question: On which continent is {}? Answer: It is located on the continent of",
            ),
            "One of the countries in {} is",
            "The country of {} is known for",
        ),
        Relation(
            "country-capital",
            (
                "The capital of {} is the city of",
                "The government of {} sits in its capital, the city of",
                "The capital city of {} is",
            ),
            (
                "What is the capital of {}? The capital is the city of",
                "Which city is the capital of {}? Its capital is the city of",
                "Question: What is the capital of {}? Answer: It is the city of",
            ),
            "{} is the capital city of the country of",
            "The country of {} is known for",
        ),
        Relation(
            "country-language",
            (
                "The official language of {} is",
                "The main language spoken in {} is",
                "The national language of {} is",
            ),
            (
                "What is the official language of {}? The official language is",
                "Which language is spoken in {}? The main language is",
                "Question: What is the official language of {}? Answer: It is",
            ),
            "{} is the official language of the country of",
            "The country of {} is known for",
        ),
        Relation(
            "country-currency",
            (
                "The official currency of {} is the",
                "The currency of {} is the",
                "People in {} pay with their national currency, the",
            ),
            (
                "What is the currency of {}? The currency is the",
                "Which currency is used in {}? People there pay with the",
                "Question: What is the currency of {}? Answer: It is the",
            ),
            "The {} is the official currency of the country of",
            "The country of {} is known for",
        ),
    )
}
# What follows for a city whose country was changed: (kind, relation of the country, prompt)
FOLLOWS = (
    ("its continent", "country-continent", "The city of {} is located on the continent of"),
    ("its language", "country-language", "The official language spoken in the city of {} is"),
    ("its currency", "country-currency", "The official currency used in the city of {} is the"),
)
