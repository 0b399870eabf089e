"""Policies: what a model family is, how its weights and tokenizer are loaded, adapters."""
