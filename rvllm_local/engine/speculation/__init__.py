"""Drafts: guessed tokens that the model checks several at a time.

Knows token ids and numbers only. No answer depends on what is drafted: a drafted token
is kept if it is the token that would have been drawn in its place.
"""
