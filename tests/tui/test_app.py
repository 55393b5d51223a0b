"""The app as a person meets it: writing, streaming, stopping, and every key."""

from __future__ import annotations


def test_a_prompt_is_answered(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("hi")
        assert chat.texts == ["hi", "Hello there."]
        assert "Hello there." in chat.screen()
        assert "small  ctx 14/32.8k  cached 8" in chat.screen()

    play(scenario)
