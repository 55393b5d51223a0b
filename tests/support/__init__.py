"""Builders of small models and files for the tests."""
