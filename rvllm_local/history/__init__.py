"""The chat history: what is kept (`types`), where (`store`, `schema`), and in and out of other formats (`transfer`)."""

from rvllm_local.history.store import ChatHistory

__all__ = ["ChatHistory"]
