"""Measurements of a model, one idea a file."""

from .accuracy import generation_accuracy
from .bootstrap import bootstrap_interval, interval_table
from .consistency import TfIdf, consistency
from .distraction import distracted
from .early_warning import first_exit, healthy_band, warning_table
from .floor import destroyed, floors
from .fluency import fluency, n_gram_entropy, sampled_texts
from .health import cosine, hidden_health, hidden_states, successive_cosines, weight_health
from .locality import answer_agreement, argmax_agreement, first_token_agreement
from .overfitting import intrusion
from .perplexity import perplexity
from .portability import Question, answerable, inverse_success, portability
from .probability import answer_log_probability, answer_probability
from .retention import retention_matrix, retention_table
from .success import magnitude, score, success
from .teacher_forcing import Forced, teacher_forced
from .token_accuracy import strict_accuracy, token_accuracy

__all__ = [
    "Forced",
    "Question",
    "TfIdf",
    "answer_agreement",
    "answer_log_probability",
    "answer_probability",
    "answerable",
    "argmax_agreement",
    "bootstrap_interval",
    "consistency",
    "cosine",
    "destroyed",
    "distracted",
    "first_exit",
    "first_token_agreement",
    "floors",
    "fluency",
    "generation_accuracy",
    "healthy_band",
    "hidden_health",
    "hidden_states",
    "interval_table",
    "intrusion",
    "inverse_success",
    "magnitude",
    "n_gram_entropy",
    "perplexity",
    "portability",
    "retention_matrix",
    "retention_table",
    "sampled_texts",
    "score",
    "strict_accuracy",
    "success",
    "successive_cosines",
    "teacher_forced",
    "token_accuracy",
    "warning_table",
    "weight_health",
]
