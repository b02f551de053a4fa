"""Edits of facts about cities and countries: GeoNames (CC BY 4.0), our own wordings."""

from .geonames import Fact, Geography, geography
from .known import KnownWorld, Said
from .relations import RELATIONS, Relation

__all__ = ["RELATIONS", "Fact", "Geography", "KnownWorld", "Relation", "Said", "geography"]
