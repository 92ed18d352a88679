"""Responsible federated fine-tuning of language models in JAX: safety filters and constitutional AI."""

__version__ = "0.1.0"
