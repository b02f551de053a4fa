"""Metrics, and the probes that ask them at a checkpoint of an edit sequence."""

from .accuracy import generation_accuracy, known_edits
from .free_text import consistency, fluency, idf_of, n_gram_entropy, sampled_texts, tf_idf
from .health import cosine, hidden_health, hidden_states, perplexity, weight_health
from .side_effects import Question, agreement, answerable, distracted, portability
from .teacher_forcing import Forced, magnitude, score, strict_accuracy, success, teacher_forced
