"""The relations of cities and countries and their wordings, from world.yaml."""

from dataclasses import dataclass
from pathlib import Path

from ..yaml_text import read_yaml

TEXT = read_yaml(Path(__file__).with_name("world.yaml"))


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
