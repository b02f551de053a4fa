"""Metrics and probes, one idea per file."""

from .accuracy import generation_accuracy
from .consistency import consistency, idf_of, tf_idf
from .fluency import fluency, n_gram_entropy, sampled_texts
from .health import cosine, hidden_health, hidden_states, weight_health
from .locality import answer_agreement, argmax_agreement, first_token_agreement
from .perplexity import perplexity
from .portability import Question, answerable, distracted, inverse_success, portability
from .success import magnitude, score, success
from .teacher_forcing import Forced, answer_probability, strict_accuracy, teacher_forced
