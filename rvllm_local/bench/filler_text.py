"""Text of a given size for requests that nobody wrote: plain English words, mostly one token each."""

from __future__ import annotations

import random

_TEXT = (
    "the of and to in that was he it with as his on be at by had not but from have they which you were her all she there "
    "would their we him been has when who will more no if out so said what up its about into than them can only other new "
    "some could time these two may then do first any my now such like our over man me even most made after also did many "
    "before must through back years where much your way well down should because each just those people how too little "
    "state good very make world still own see men work long get here between both life being under never day same another "
    "know while last might us great old year off come since against go came right used take three house water paper light "
    "river stone window green north table number system group school church power history morning letter village market"
)
_WORDS = tuple(_TEXT.split())


def words(count: int, rng: random.Random) -> str:
    """About `count` tokens of text, in sentences."""
    text: list[str] = []
    left = 0
    for _ in range(max(1, count)):
        if left == 0:
            left = rng.randint(6, 14)
            text.append(rng.choice(_WORDS).capitalize())
        else:
            text.append(rng.choice(_WORDS))
        left -= 1
        if left == 0:
            text[-1] += "."
    return " ".join(text)
