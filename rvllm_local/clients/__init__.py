"""The ways to reach an engine: in this process, in a child process, or over HTTP.

`contract` is what all of them fulfil.
"""
