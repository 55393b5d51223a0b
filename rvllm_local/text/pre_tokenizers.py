"""How a text is cut before BPE, by the names that GGUF files have for it.

The expressions are the models' own. What a name means beside them is what llama.cpp's
loader takes it for. Knows no file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenizers import Regex, pre_tokenizers


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One way of cutting a text.

    `patterns` cut it one after the other. With `whole_words` a piece that is a token is
    not merged from its bytes. With `starts_with_bos` a text begins with the start token
    where the file does not say. With `composes` letters and their accents are joined
    first.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    starts_with_bos: bool = False
    composes: bool = False

    def backend(self) -> pre_tokenizers.PreTokenizer:
        """It, as the library has it: pieces of bytes."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        for pattern in self.patterns:
            steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)


_SHORT_FORMS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s+(?!\S)|\s+"
_ENDING = r"|\s*[\r\n]+|" + _BLANKS
_NOT_WORD = r"[^\r\n\p{L}\p{N}]?"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _BLANKS
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_LLAMA3 = rf"{_SHORT_FORMS}|{_NOT_WORD}\p{{L}}+|\p{{N}}{{1,3}}{_SIGNS}{_ENDING}"
_QWEN2 = rf"{_SHORT_FORMS}|{_NOT_WORD}\p{{L}}+|\p{{N}}{_SIGNS}{_ENDING}"
# Marks belong to their letters.
_QWEN35 = (
    rf"{_SHORT_FORMS}|{_NOT_WORD}[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_ENDING}"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS_AND_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _by_case(short_forms: str, number: str) -> str:
    """Words that are cut where a small letter meets a capital one."""
    return (
        rf"{_NOT_WORD}{_UPPER}*{_LOWER}+{short_forms}"
        rf"|{_NOT_WORD}{_UPPER}+{_LOWER}*{short_forms}"
        rf"|{number}{_SIGNS_AND_SLASHES}{_ENDING}"
    )


_GPT4O = _by_case(_SHORT_FORMS + "?", _THREE_DIGITS)
_HAN_AND_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_ASCII_SIGN = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = (
    rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*{_ENDING}"
)
_LETTERS_OF_ASIA = "[一-龥ࠀ-一가-퟿]+"
# Letters with two cases, of scripts that have had them for long.
_CASED = r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^ა-ჿ]]+"
_WORDS_OF_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|{_BLANKS}"
)
_SEED = (
    rf"{_SHORT_FORMS}|{_NOT_WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_ENDING}"
)
_EXAONE_MOE = (
    rf"{_SHORT_FORMS}|{_NOT_WORD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_BLANKS}"
)
_MINICPM5 = rf"{_SHORT_FORMS}|{_NOT_WORD}\p{{L}}+|\p{{N}}+{_SIGNS}{_ENDING}"
# Threes of digits, counted from a number's end.
_THREES_FROM_END = r"\d{1,3}(?=(?:\d{3})*\b)"
# Words are not parted: tokens hold several.
_BEFORE_THREES = r"(?=(?:\d{3})+(?!\d))"

_OF_LLAMA3 = PreTokenizer((_LLAMA3,), whole_words=True, starts_with_bos=True)
_OF_QWEN2 = PreTokenizer((_QWEN2,))
_OF_GPT2 = PreTokenizer((_GPT2,))
_OF_DIGITS = PreTokenizer((_DIGIT, _GPT2))
_OF_GPT4O = PreTokenizer((_GPT4O,))
_OF_DEEPSEEK3 = PreTokenizer((_THREE_DIGITS, _HAN_AND_KANA, _DEEPSEEK3))
_OF_BLOOM = PreTokenizer((_WORDS_OF_BLOOM,))
# A file without a name is cut in this way.
DEFAULT = "default"

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    DEFAULT: PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
    ),
    **dict.fromkeys(
        (
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ),
        _OF_LLAMA3,
    ),
    **dict.fromkeys(
        ("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), PreTokenizer((_LLAMA3,))
    ),
    **dict.fromkeys(
        (
            "deepseek-r1-qwen",
            "kormo",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ),
        _OF_QWEN2,
    ),
    "qwen2": replace(_OF_QWEN2, composes=True),
    "qwen35": PreTokenizer((_QWEN35,), composes=True),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "olmo",
            "mpt",
            "jais",
            "trillion",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "granite-docling",
            "exaone4",
        ),
        _OF_GPT2,
    ),
    **dict.fromkeys(
        (
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
            "granite",
        ),
        _OF_DIGITS,
    ),
    "tekken": PreTokenizer(
        (_by_case("", _DIGIT),), whole_words=True, starts_with_bos=True
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _OF_GPT4O),
    **dict.fromkeys(
        ("tiny_aya", "cohere2moe"), PreTokenizer((_THREES_FROM_END, _GPT4O))
    ),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _OF_DEEPSEEK3
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            r"\s?" + _CASED,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _LETTERS_OF_ASIA,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _LETTERS_OF_ASIA, _DIGIT)
    ),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _OF_BLOOM),
    "viking": PreTokenizer((_WORDS_OF_BLOOM, _DIGIT)),
    **dict.fromkeys(
        ("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer((_BAILING,))
    ),
    "superbpe": PreTokenizer((r"\p{N}+", _BEFORE_THREES)),
    "seed-coder": PreTokenizer((_SEED,)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "minicpm5": PreTokenizer((_THREE_DIGITS, _MINICPM5), whole_words=True),
}
