"""Edits of facts about cities and countries: GeoNames (CC BY 4.0), our own wordings."""

from .geonames import RELATIONS, Fact, Geography, geography
from .known import KnownWorld

__all__ = ["RELATIONS", "Fact", "Geography", "KnownWorld", "geography"]
