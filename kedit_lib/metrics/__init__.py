"""Measurements of a model, one idea a file."""

from .accuracy import generation_accuracy
from .perplexity import perplexity
from .probability import answer_log_probability, answer_probability

__all__ = ["answer_log_probability", "answer_probability", "generation_accuracy", "perplexity"]
