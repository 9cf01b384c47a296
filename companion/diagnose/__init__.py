"""Read your own embeddings: numbers, what they suggest, a page, and a logger for trainings.

``python -m companion.diagnose u.npy v.npy --out page.html`` does it from a terminal. The numbers need torch, NumPy and
SciPy alone; the page needs matplotlib, ``.safetensors`` files safetensors, the logger Lightning.
"""

from companion.diagnose.advice import Advice, advice
from companion.diagnose.callback import SimilarityLogger, log_similarities
from companion.diagnose.files import load
from companion.diagnose.reading import Reading, diagnose

__all__ = ["Advice", "Reading", "SimilarityLogger", "advice", "diagnose", "load", "log_similarities"]
