"""From a conversation to token ids, a grammar and a parser of what comes back.

For the server and for Python.
"""
