"""Vectors of texts and ranks of documents, in the shapes of OpenAI, Cohere and Jina."""
