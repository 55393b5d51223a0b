"""Prompts, made in processes of each model that can be killed."""
