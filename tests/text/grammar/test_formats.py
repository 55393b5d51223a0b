"""Grammars hold random models to formats, calls and thinking budgets, token by token."""

from __future__ import annotations

import json
import random
import sys
import threading
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from rvllm_local.conversation.output import OutputParser
from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.errors import GrammarError, ParameterError, QueueFullError
from rvllm_local.text.families import OutputStyle, style_of
from rvllm_local.text.grammar import timed_compilation
from rvllm_local.text.grammar.call_syntax import SYNTAXES
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
    grammar_for_tools,
    unconstrained,
    with_reasoning,
    with_style,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher
from rvllm_local.text.grammar.timed_compilation import (
    COMPILE_SECONDS,
    TimedCompilation,
)
from rvllm_local.text.tags import CONTROL_TAGS
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tools import FAMILIES, parser_for
from tests.support.tiny import tiny_tokenizer
from tests.text.outputs import joined, run
from tests.text.schema_corpus import (
    EOS,
    VOCAB_SIZE,
    allowed_tokens,
    byte_tokenizer,
    sample,
)

LOOK = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city"],
    "additionalProperties": False,
}
NOTE = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "urgent": {"type": "boolean"}},
    "required": ["text", "urgent"],
    "additionalProperties": False,
}
SCHEMAS = {"look": LOOK, "note": NOTE}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": one}}
    for name, one in SCHEMAS.items()
]
YES_NO = grammar_for_format({"type": "choice", "choices": ["yes", "no"]}) or ""


def tagged_tokenizer(special: bool) -> Tokenizer:
    """The tiny tokenizer, with every family's tags as added tokens."""
    backend = tiny_tokenizer()
    added = [
        AddedToken(tag, special=special, normalized=False)
        for tag in sorted(CONTROL_TAGS)
    ]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
    return Tokenizer(backend, eos_token="<|endoftext|>")


TOKENIZERS = {
    "text": byte_tokenizer(),
    "added": tagged_tokenizer(False),
    "special": tagged_tokenizer(True),
}
COMPILERS = {
    kind: GrammarCompiler(one, VOCAB_SIZE, EOS) for kind, one in TOKENIZERS.items()
}
KINDS = list(TOKENIZERS)


def compiled(grammar: str | None, kind: str = "text") -> Matcher:
    assert grammar is not None
    return COMPILERS[kind].compile(grammar)


def follow(matcher: Matcher, tokenizer: Tokenizer, text: str) -> Matcher:
    for token in tokenizer.encode(text, special=True):
        assert token in allowed_tokens(matcher), (
            f"{tokenizer.decode([token], skip_special=False)!r} is not allowed"
        )
        matcher.advance(token)
    return matcher


@cache
def closing_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that begin as the end of a string, an object or a tag does."""
    closing = set()
    for token in range(tokenizer.vocab_size):
        first = tokenizer.decode([token], skip_special=False)[:1]
        if first in ('"', "}", "<", "\n"):
            closing.add(token)
    return frozenset(closing)


def write(
    matcher: Matcher, tokenizer: Tokenizer, seed: int, max_tokens: int = 400
) -> str | None:
    """What a random model writes, tags shown; None if it is not finished."""
    chance = random.Random(seed)
    ids: list[int] = []
    for _ in range(max_tokens):
        allowed = allowed_tokens(matcher)
        solid = [token for token in allowed if token not in EOS]
        if len(solid) < len(allowed) and (not solid or chance.random() < 0.5):
            return tokenizer.decode(ids, skip_special=False)
        closers = closing_tokens(tokenizer)
        closing = [token for token in solid if token in closers]
        token = chance.choice(closing if closing and chance.random() < 0.3 else solid)
        matcher.advance(token)
        ids.append(token)
    return None


ENOUGH = 2  # calls of a family that were written to their end


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "look"}}]
)
def test_forced_calls_parse_and_validate(family: str, kind: str, choice: Any) -> None:
    matcher = compiled(grammar_for_tools(TOOLS, choice, family, parallel=True), kind)
    finished = 0
    for seed in range(12):
        if finished == ENOUGH:
            break
        text = write(matcher.copy(), TOKENIZERS[kind], seed)
        if text is None:
            continue
        finished += 1
        read = joined(run(parser_for(family, TOOLS), [text]))
        assert read.calls and not read.failed and not read.content, text
        for name, arguments in read.calls:
            jsonschema.validate(arguments, SCHEMAS[name])
            assert name == "look" or choice == "required"
    assert finished


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "family",
    [
        family
        for family in FAMILIES
        if SYNTAXES[family].trigger is not None and family not in ("harmony", "gemma")
    ],
)
def test_auto_leaves_text_free_and_holds_calls(family: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    look = {"type": "function", "function": {"name": "look"}}
    call = (
        write(
            compiled(grammar_for_tools(TOOLS, look, family, parallel=False), kind),
            tokenizer,
            1,
            2000,
        )
        or ""
    )
    matcher = compiled(grammar_for_tools(TOOLS, "auto", family, parallel=True), kind)
    follow(matcher, tokenizer, 'I could <b>, {"a": 1} or [x]. ')
    assert matcher.is_accepting
    follow(matcher, tokenizer, call)
    assert matcher.is_accepting
    assert len(joined(run(parser_for(family, TOOLS), ["Ok. " + call])).calls or []) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_auto_forbids_a_call_that_no_tool_has(kind: str) -> None:
    matcher = compiled(grammar_for_tools(TOOLS, "auto", "hermes", parallel=True), kind)
    follow(matcher, TOKENIZERS[kind], 'Ok.<tool_call>\n{"name": "')
    assert not matcher.is_accepting
    shown = {TOKENIZERS[kind].decode([token])[:1] for token in allowed_tokens(matcher)}
    assert shown == {"l", "n"}


def test_harmony_auto_has_channels() -> None:
    tokenizer = TOKENIZERS["special"]
    grammar = grammar_for_tools(TOOLS, "auto", "harmony", parallel=True)
    analysis = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    assert follow(
        compiled(grammar, "special"),
        tokenizer,
        f"{analysis}<|channel|>final<|message|>Hi",
    ).is_accepting
    matcher = follow(
        compiled(grammar, "special"),
        tokenizer,
        f"{analysis}<|channel|>commentary to=functions.",
    )
    assert {tokenizer.decode([token])[:1] for token in allowed_tokens(matcher)} == {
        "l",
        "n",
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_without_a_call_follows_its_format(family: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    look = {"type": "function", "function": {"name": "look"}}
    call = (
        write(
            compiled(grammar_for_tools(TOOLS, look, family, parallel=False), kind),
            tokenizer,
            1,
            2000,
        )
        or ""
    )
    form = {"type": "choice", "choices": ["yes", "no"]}
    matcher = compiled(grammar_for_tools(TOOLS, "auto", family, True, form), kind)
    channel = "<|channel|>final<|message|>" if family == "harmony" else ""
    assert call and follow(matcher.copy(), tokenizer, call).is_accepting
    assert follow(matcher.copy(), tokenizer, f"{channel}yes").is_accepting
    with pytest.raises(AssertionError, match="is not allowed"):
        follow(matcher.copy(), tokenizer, f"{channel}maybe")
    forced = compiled(grammar_for_tools(TOOLS, "required", family, True, form), kind)
    with pytest.raises(AssertionError, match="is not allowed"):
        follow(forced, tokenizer, f"{channel}yes")


def test_one_call_unless_parallel() -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {"city":"Oslo"}}\n</tool_call>'
    once = follow(
        compiled(grammar_for_tools(TOOLS, "required", "hermes", parallel=False)),
        TOKENIZERS["text"],
        call,
    )
    assert set(allowed_tokens(once)) <= set(EOS)
    again = compiled(grammar_for_tools(TOOLS, "required", "hermes", parallel=True))
    assert follow(again, TOKENIZERS["text"], f"{call}\n{call}").is_accepting


@pytest.mark.parametrize(
    ("tools", "choice", "family", "message"),
    [
        (TOOLS, {"type": "function", "function": {"name": "fly"}}, "hermes", "'fly'"),
        (TOOLS, "always", "hermes", "tool_choice must be"),
        ([], "required", "hermes", "no tools"),
        (TOOLS * 2, "auto", "hermes", "two tools"),
        (
            [{"type": "function", "function": {"name": "a b"}}],
            "auto",
            "hermes",
            "tool 0",
        ),
        (["look"], "auto", "hermes", "tool 0"),
        (TOOLS, "required", "klingon", "'klingon'"),
        (
            [{"function": {"name": "f", "strict": True, "parameters": {"not": {}}}}],
            "auto",
            "hermes",
            "'not'",
        ),
        (
            [
                {
                    "function": {
                        "name": "f",
                        "strict": True,
                        "parameters": {"type": "array"},
                    }
                }
            ],
            "auto",
            "hermes",
            "of type object",
        ),
    ],
)
def test_tools_that_cannot_be_enforced_are_refused(
    tools: Any, choice: Any, family: str, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        grammar_for_tools(tools, choice, family, parallel=True)


def test_a_tool_that_is_not_strict_may_have_any_schema() -> None:
    tools = [{"function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]
    grammar = grammar_for_tools(tools, "required", "json", parallel=False)
    text = '{"name": "f", "arguments": {"x":[1]}}'
    assert follow(compiled(grammar), TOKENIZERS["text"], text).is_accepting


@pytest.mark.parametrize("kind", KINDS)
def test_with_none_no_call_begins(kind: str) -> None:
    matcher = compiled(grammar_for_tools(TOOLS, "none", "hermes", parallel=True), kind)
    assert follow(matcher, TOKENIZERS[kind], 'I could <b> or {"a": 1}. ').is_accepting
    with pytest.raises(AssertionError, match="is not allowed"):
        follow(matcher, TOKENIZERS[kind], "<tool_call>")
    harmony = grammar_for_tools(TOOLS, "none", "harmony", parallel=True)
    assert follow(
        compiled(harmony, kind), TOKENIZERS[kind], "<|channel|>final<|message|>Hi"
    ).is_accepting
    with pytest.raises(AssertionError, match="is not allowed"):
        follow(compiled(harmony, kind), TOKENIZERS[kind], "<|channel|>commentary")


@pytest.mark.parametrize("name", ["get-note", "import", "a.b"])
def test_a_gemma_call_may_have_names_that_python_has_not(name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"max-days": {"const": 3}, "text": {"const": "```"}},
        "required": ["max-days", "text"],
    }
    tools = [
        {
            "function": {
                "name": name,
                "parameters": {**schema, "additionalProperties": False},
            }
        }
    ]
    for one in (tools, [{"function": {"name": name, "parameters": LOOK}}]):
        text = (
            write(
                compiled(grammar_for_tools(one, "required", "gemma", parallel=True)),
                TOKENIZERS["text"],
                3,
            )
            or ""
        )
        read = joined(run(parser_for("gemma"), [text]))
        assert (
            read.calls
            and read.calls[0][0] == name
            and not read.failed
            and not read.content
        ), text
        jsonschema.validate(read.calls[0][1], one[0]["function"]["parameters"])


@pytest.mark.parametrize(
    "thinking",
    [5, {"start": "", "end": "</think>", "max_tokens": 3, "starts_inside": False}, {"start": "<think>", "end": "</think>"},
     {"start": "<think>", "end": "</think>", "max_tokens": "3", "starts_inside": False},
     {"start": "<think>", "end": "x" * 10_000, "max_tokens": 3, "starts_inside": True}],
)  # fmt: skip
def test_a_grammar_from_elsewhere_is_refused_before_a_step_trusts_it(
    thinking: Any,
) -> None:
    with pytest.raises(GrammarError, match="not in the form"):
        compiled(json.dumps({**json.loads(YES_NO), "reasoning": thinking}))
    with pytest.raises(GrammarError, match="not in the form"):
        compiled("[" * 100_000)


def test_nothing_is_enforced_where_nothing_is_asked() -> None:
    assert grammar_for_tools(TOOLS, "none", "json", parallel=True) is None
    assert grammar_for_tools([], "none", "hermes", parallel=True) is None
    assert grammar_for_tools([], "auto", "hermes", parallel=True) is None
    assert grammar_for_tools(TOOLS, "auto", "json", parallel=True) is None
    assert grammar_for_format({"type": "text"}) is None


# Thinking.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_thinking_budget_is_kept(kind: str, inside: bool, budget: int) -> None:
    tokenizer = TOKENIZERS[kind]
    matcher = compiled(
        with_reasoning(YES_NO, "<think>", "</think>", budget, inside), kind
    )
    for seed in range(8):
        twin = matcher.copy()
        if not inside:
            follow(twin, tokenizer, "<think>")
        text = write(twin, tokenizer, seed)
        assert text is not None
        thought, tag, answer = text.partition("</think>")
        assert tag and answer.strip() in ("yes", "no")
        assert (
            len(tokenizer.encode(thought)) <= budget * 8
            and len(thought.encode()) <= budget * 4
        )
        parser = OutputParser(
            None,
            reasoning_start="<think>",
            reasoning_end="</think>",
            reasoning_starts_inside=True,
        )
        assert joined(run(parser, [text])).content.strip() in ("yes", "no")


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_may_be_left_out(kind: str) -> None:
    matcher = compiled(with_reasoning(YES_NO, "<think>", "</think>", None, False), kind)
    assert not matcher.is_accepting
    assert follow(matcher, TOKENIZERS[kind], "yes").is_accepting


def test_a_start_tag_of_several_tokens_shares_its_beginning() -> None:
    grammar = grammar_for_format({"type": "choice", "choices": ["<three", "<x"]}) or ""
    matcher = compiled(with_reasoning(grammar, "<think>", "</think>", None, False))
    assert follow(matcher.copy(), TOKENIZERS["text"], "<x").is_accepting
    thinking = follow(matcher.copy(), TOKENIZERS["text"], "<think>")
    assert not thinking.is_accepting
    assert follow(thinking, TOKENIZERS["text"], "a </thin</think>\n\n<x").is_accepting


@pytest.mark.parametrize("kind", KINDS)
def test_a_free_request_may_have_a_thinking_budget(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    matcher = compiled(
        with_reasoning(unconstrained(), "<think>", "</think>", 3, True), kind
    )
    assert not matcher.is_accepting
    follow(matcher, tokenizer, "abc</think>\n\nHi <tool_call>{")
    assert matcher.is_accepting
    assert {*range(tokenizer.vocab_size)} - {*allowed_tokens(matcher)} <= {
        1
    }  # all but, perhaps, the start token


def test_no_end_token_while_thinking() -> None:
    matcher = compiled(
        with_reasoning(YES_NO, "<think>", "</think>", None, True), "special"
    )
    follow(matcher, TOKENIZERS["special"], "hm")
    allowed = set(allowed_tokens(matcher))
    assert not allowed & set(EOS)
    assert TOKENIZERS["special"].control_token_id("</think>") in allowed
    assert TOKENIZERS["special"].control_token_id("<tool_call>") not in allowed


def test_calls_come_after_thinking() -> None:
    grammar = with_reasoning(
        grammar_for_tools(TOOLS, "required", "hermes", parallel=False) or "",
        "<think>",
        "</think>",
        5,
        True,
    )
    call = '<tool_call>\n{"name": "look", "arguments": {"city":"Oslo"}}\n</tool_call>'
    assert follow(
        compiled(grammar, "special"), TOKENIZERS["special"], f"ab</think>\n\n{call}"
    ).is_accepting


# Matchers.


@pytest.mark.parametrize("kind", ["added", "special"])
def test_special_tokens_are_never_in_a_string(kind: str) -> None:
    matcher = compiled(grammar_for_format({"type": "json_object"}), kind)
    follow(matcher, TOKENIZERS[kind], '{"a": "b')
    allowed = set(allowed_tokens(matcher))
    assert len(allowed) > 100
    assert not allowed & {
        0,
        1,
        2,
        *(TOKENIZERS[kind].control_token_id(tag) for tag in CONTROL_TAGS),
    }
    assert max(allowed) < TOKENIZERS[kind].vocab_size


def test_the_end_token_comes_only_where_the_output_may_end() -> None:
    matcher = compiled(grammar_for_format({"type": "regex", "regex": "a(bc)?"}))
    assert not matcher.is_accepting and not set(allowed_tokens(matcher)) & set(EOS)
    follow(matcher, TOKENIZERS["text"], "a")
    assert (
        matcher.is_accepting
        and not matcher.is_stopped
        and set(EOS) <= set(allowed_tokens(matcher))
    )
    follow(matcher, TOKENIZERS["text"], "b")
    assert not matcher.is_accepting
    with pytest.raises(GrammarError):
        matcher.copy().advance(EOS[0])
    follow(matcher, TOKENIZERS["text"], "c")
    assert matcher.is_accepting and set(allowed_tokens(matcher)) == set(EOS)
    matcher.advance(EOS[1])
    assert matcher.is_stopped
    with pytest.raises(GrammarError):
        matcher.advance(EOS[1])


def test_copies_go_their_own_ways() -> None:
    matcher = compiled(YES_NO)
    twin = matcher.copy()
    follow(matcher, TOKENIZERS["text"], "yes")
    assert follow(twin, TOKENIZERS["text"], "no").is_accepting


def test_rows_may_be_wider_than_the_vocabulary() -> None:
    compiler = GrammarCompiler(byte_tokenizer(), 1000, EOS)
    row = np.full(-(-1000 // 32), -1, np.int32)
    compiler.compile(YES_NO).mask_into(row)
    assert (
        np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).max()
        < byte_tokenizer().vocab_size
    )


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        ({"type": "xml"}, "'xml'"),
        ({}, "None"),
        ({"type": "json_object", "regex": "a"}, "'regex'"),
        ({"type": "json_schema"}, "json_schema must be an object"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "lacks its schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "stict": True}},
            "'stict'",
        ),
        ({"type": "regex", "regex": ""}, "not empty"),
        ({"type": "regex", "regex": 5}, "must be text"),
        ({"type": "regex", "regex": "("}, "not a sound regular expression"),
        ({"type": "regex", "regex": "(?=a)b"}, "lookaround"),
        ({"type": "choice", "choices": []}, "choices"),
        ({"type": "choice", "choices": ["a", 1]}, "choices"),
        ({"type": "choice", "choices": ["a"] * 5000}, "5000 choices"),
        ({"type": "lark", "grammar": "x" * (2 << 20)}, "characters"),
    ],
)
def test_odd_formats_are_refused(response_format: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        grammar_for_format(response_format)
    assert caught.value.parameter == "response_format"


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "regex", "regex": "a^b"},
        {"type": "lark", "grammar": "start: nothing"},
        {"type": "lark", "grammar": "no rules at all"},
        {"type": "lark", "grammar": "start: @other"},
        {"type": "lark", "grammar": "start: <|no_such_token|>"},
        {"type": "lark", "grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000},
    ],
)
def test_broken_grammars_are_typed_errors(response_format: dict[str, Any]) -> None:
    with pytest.raises(GrammarError) as caught:
        compiled(grammar_for_format(response_format))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        ("a/b\\/c", "a/b/c"),
        ("x\\\\/y", "x\\/y"),
        ("a\nb", "a\nb"),
        (r"[/\]]+", "/]"),
        ("a // b", "a // b"),
        ("^[a-c]+$", "abc"),
    ],
)
def test_slashes_do_not_end_a_regex(regex: str, text: str) -> None:
    assert follow(
        compiled(grammar_for_format({"type": "regex", "regex": regex})),
        TOKENIZERS["text"],
        text,
    ).is_accepting


@pytest.mark.parametrize(
    "choices", [["yes", "no"], ['a"b', "é\\n", "line\nbreak", "<tool_call>", "a/b"]]
)
def test_choices_are_taken_as_they_are(choices: list[str]) -> None:
    grammar = grammar_for_format({"type": "choice", "choices": choices})
    for choice in choices:
        assert follow(compiled(grammar), TOKENIZERS["text"], choice).is_accepting


def test_json_objects_are_objects() -> None:
    matcher = compiled(grammar_for_format({"type": "json_object"}))
    texts = [
        sample(matcher.copy(), TOKENIZERS["text"], random.Random(seed))
        for seed in range(8)
    ]
    assert any(texts)
    assert all(isinstance(json.loads(text), dict) for text in texts if text is not None)


def test_a_late_grammar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(byte_tokenizer(), VOCAB_SIZE, EOS)
    gate = threading.Event()

    def explode(text: str) -> None:
        while not gate.is_set():
            pass

    monkeypatch.setattr(compiler, "_compile", explode)
    monkeypatch.setattr(timed_compilation, "COMPILE_SECONDS", 0.05)
    for _ in range(6):
        with pytest.raises(
            (GrammarError, QueueFullError), match=r"takes longer|too many"
        ):
            compiler.compile(YES_NO)
    gate.set()
    assert COMPILE_SECONDS < 2


@pytest.mark.skipif(sys.platform != "linux", reason="by the clock elsewhere")
def test_a_grammar_that_waits_for_a_processor_is_no_late_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timed_compilation, "COMPILE_SECONDS", 0.05)
    waited = threading.Event()

    def wait() -> str:
        waited.wait(0.2)  # as if others had the processor
        return "compiled"

    assert TimedCompilation().run(wait) == "compiled"
    with pytest.raises(GrammarError, match="takes longer"):
        TimedCompilation().run(lambda: waited.wait(30))


def test_a_panic_in_the_compiler_refuses_its_grammar_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = GrammarCompiler(byte_tokenizer(), VOCAB_SIZE, EOS)

    def panics(text: str) -> Matcher:
        raise BaseException("byte index 1 is not a char boundary of `a prompt`")

    monkeypatch.setattr(compiler, "_compile", panics)
    with pytest.raises(GrammarError, match="makes its compiler fail") as caught:
        compiler.compile(YES_NO)
    assert "a prompt" not in str(caught.value)


def test_lenient_tools_keep_what_can_be_enforced() -> None:
    overlapping = [{"type": "integer"}, {"type": "number"}]
    parameters = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": {"enum": ["a"]}, "uniqueItems": True},
            "n": {"oneOf": overlapping},
            "when": {"type": "string", "format": "week"},
        },
        "required": ["tags", "n", "when"],
        "additionalProperties": False,
    }
    tool = {"function": {"name": "f", "parameters": parameters}}
    matcher = compiled(grammar_for_tools([tool], "required", "json", parallel=False))
    follow(matcher, TOKENIZERS["text"], '{"name": "f", "arguments": {"tags":["a","a')
    with pytest.raises(AssertionError):
        follow(matcher.copy(), TOKENIZERS["text"], "b")
    assert follow(matcher, TOKENIZERS["text"], '"],"n":1,"when":"x"}}').is_accepting


def test_a_tool_that_cannot_be_compiled_is_called_by_its_field() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"oneOf": [{"type": "integer"}, {"type": "number"}]}},
    }
    tool = {"function": {"name": "f", "strict": True, "parameters": schema}}
    with pytest.raises(GrammarError, match="oneOf") as caught:
        compiled(grammar_for_tools([tool], "required", "json", parallel=False))
    assert caught.value.parameter == "tools"


HARMONY = style_of("harmony")


@pytest.mark.parametrize("budget", [None, 3])
def test_harmony_thinks_before_it_answers_in_its_channel(budget: int | None) -> None:
    grammar = (
        grammar_for_format({"type": "choice", "choices": ["yes", "no"]}, "harmony")
        or ""
    )
    matcher = compiled(with_style(grammar, HARMONY, budget), "special")
    assert follow(
        matcher.copy(), TOKENIZERS["special"], "<|channel|>final<|message|>yes"
    ).is_accepting
    thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>no"
    assert follow(matcher.copy(), TOKENIZERS["special"], thought).is_accepting
    follow(matcher, TOKENIZERS["special"], "<|channel|>analysis<|message|>hm")
    ends = [TOKENIZERS["special"].control_token_id("<|end|>")]
    assert budget is None or len(
        allowed_tokens(follow(matcher, TOKENIZERS["special"], "x"))
    ) == len(ends)


def test_a_style_brings_its_own_tags() -> None:
    assert with_style(YES_NO, OutputStyle()) == YES_NO
    thinks = style_of("hermes", ("<think>", "</think>"), starts_inside=True)
    assert follow(
        compiled(with_style(YES_NO, thinks)), TOKENIZERS["text"], "a</think>yes"
    ).is_accepting


def fallback_tokenizer() -> Tokenizer:
    """A SentencePiece-style vocabulary: words with a lower block for a space, bytes as `<0xNN>`."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *'abcdenosy{}":',
        "\u2581yes",
    ]
    vocab = {word: index for index, word in enumerate(words)}
    backend = Backend(
        BPE(
            vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="never", split=False
    )
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]
    )
    backend.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in words[:3]]
    )
    return Tokenizer(backend, eos_token="</s>")


def test_vocabularies_with_byte_fallback_are_masked_by_their_bytes() -> None:
    tokenizer = fallback_tokenizer()
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [2])
    matcher = compiler.compile(
        grammar_for_format({"type": "choice", "choices": ["a yes", "\u00e9"]}) or ""
    )
    assert {tokenizer.id_to_bytes(token) for token in allowed_tokens(matcher)} == {
        b"a",
        b"\xc3",
    }
    assert follow(matcher.copy(), tokenizer, "\u00e9").is_accepting
    follow(matcher, tokenizer, "a")
    assert {tokenizer.id_to_bytes(token) for token in allowed_tokens(matcher)} <= {
        b" ",
        b" yes",
    }
    assert follow(matcher, tokenizer, " yes").is_accepting
    thinking = compiler.compile(with_reasoning(YES_NO, "<think>", "</think>", 2, True))
    assert (write(thinking, tokenizer, 3) or "").rpartition("</think>")[2].strip() in (
        "yes",
        "no",
    )


def test_a_call_tag_that_ends_the_output_is_its_end() -> None:
    tokenizer = TOKENIZERS["special"]
    call = tokenizer.control_token_id("<|call|>")
    assert call is not None
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, [0, call])
    matcher = compiler.compile(
        grammar_for_tools(TOOLS, "required", "harmony", parallel=False) or ""
    )
    text = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"city":"Oslo"}'
    assert follow(matcher, tokenizer, text).is_accepting
    assert set(allowed_tokens(matcher)) <= {0, call, *tokenizer.encode(" \n\t")}
    matcher.advance(call)
    assert matcher.is_stopped
    assert joined(run(parser_for("harmony"), [text])).calls == [
        ("look", {"city": "Oslo"})
    ]


def test_tags_reach_the_parser_through_the_detokenizer() -> None:
    tokenizer = TOKENIZERS["special"]
    style = style_of("hermes", ("<think>", "</think>"))
    text = '<think>hm</think>\n\n<tool_call>\n{"name": "look", "arguments": {"city":"Oslo"}}\n</tool_call>'
    detokenizer = StreamingDetokenizer(tokenizer.keeping(style.kept_special), ())
    shown = [detokenizer.push(token) for token in tokenizer.encode(text, special=True)]
    read = joined(
        run(OutputParser.for_style(style, tools=TOOLS), [*shown, detokenizer.finish()])
    )
    assert (read.reasoning, read.calls, read.content) == (
        "hm",
        [("look", {"city": "Oslo"})],
        "",
    )
