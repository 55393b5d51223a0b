"""The localhost API: OpenAI's and Anthropic's dialects over one engine client."""
