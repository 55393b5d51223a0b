"""Models, requests and bytes that mean harm, made from a seed: for `hostile` and `soak`.

Each maker writes a model's folder or file from an honest one, with one thing changed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.gguf import llama_metadata, llama_tensors, write_gguf

Make = Callable[[Path, Path, random.Random], Path]

_LARGE = (2**31, 2**62, -1, 0, 1e308, 10**30, None, "", "x" * 10_000, [], {}, True)
_HEADER = 4096  # bytes of a GGUF file that are changed
_PATTERNS = ("(a+)+$", "(a|aa)*b", "(?=(.*)*)x", ".{1,9999}", "(", "\\p{Nope}", "a**")
LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
_TEMPLATES = (
    LOOP,
    "{{ 'x' * 10 ** 9 }}",
    "{% set ns = namespace(t='x') %}{% for i in range(64) %}"
    "{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
    "{{ messages | tojson(indent=999) }}" * 500,
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception('no ' * 999999) }}",
    "{% include '/etc/passwd' %}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ range(99999) | list | sort | join('x') * 99 }}",
    "{{ (99 ** 99 ** 99) | string }}",
    "{% for m in messages %}{{ m.content }}" * 200 + "{% endfor %}" * 200,
    "{{ messages[0].content.replace('', 'x' * 9999) * 9999 }}",
    "{" * 5000,
    "{% if true %}" * 2000,
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "",
    "\x00\ufffd",
)


def hostile_tokenizer(base: Path, target: Path, random_: random.Random) -> Path:
    """A tokenizer.json that is damaged, or whose steps explode."""
    _copy(base, target)
    path = target / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    kind = random_.randrange(4)
    if kind == 0:
        data = bytearray(text.encode())
        for _ in range(random_.randint(1, 20)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        _replace(path, bytes(data))
    elif kind == 1:
        _replace(path, text[: random_.randrange(len(text))].encode())
    elif kind == 2:
        _write(path, _one_value_changed(json.loads(text), random_))
    else:
        settings = json.loads(text)
        part = random_.choice(("normalizer", "pre_tokenizer", "decoder"))
        _write(path, {**settings, part: _explosive_step(random_)})
    return target


def hostile_config(base: Path, target: Path, random_: random.Random) -> Path:
    """A config.json, or a tokenizer's, in which values are changed."""
    _copy(base, target)
    name = random_.choice(("config.json", "config.json", "tokenizer_config.json"))
    path = target / name
    settings = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(random_.randint(1, 4)):
        settings = _one_value_changed(settings, random_)
    _write(path, settings)
    return target


def hostile_template(base: Path, target: Path, random_: random.Random) -> Path:
    """A chat template that loops, grows, recurses or looks around."""
    template = random_.choice(_TEMPLATES)
    if random_.random() < 0.5:  # only where the server's own questions do not see it
        template = "{% if messages[0].content == 'Hm?' %}" + template + "{% endif %}"
        template += "{{ messages[0].content }}"
    return with_template(base, target, template)


def with_template(base: Path, target: Path, template: str) -> Path:
    """A model with a template of one's own."""
    _copy(base, target)
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    _write(path, {**settings, "chat_template": template})
    return target


def hostile_gguf(base: Path, target: Path, random_: random.Random) -> Path:
    """A GGUF file whose header is damaged."""
    tensors, _ = llama_tensors()
    data = bytearray(write_gguf(llama_metadata(), tensors))
    for _ in range(random_.randint(1, 6)):
        position = random_.randrange(4, min(_HEADER, len(data)))
        data[position] = random_.choice((0, 0xFF, 0x80, random_.randrange(256)))
    if random_.random() < 0.2:
        data = data[: random_.randrange(len(data))]
    path = target.with_suffix(".gguf")
    path.write_bytes(bytes(data))
    return path


def hostile_format(random_: random.Random) -> dict[str, Any]:
    """A `response_format` that takes long or much to compile, or cannot be."""
    size = random_.randint(20, 200)
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(size):
        nested = {"type": "array", "items": nested, "maxItems": 50}
    wide = {f"p{n}": {"type": "integer"} for n in range(size * 10)}
    loop = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    schemas: list[Any] = [
        nested,
        {"type": "object", "properties": wide},
        loop,
        {"enum": [f"value {n}" for n in range(size * 200)]},
        {"type": "string", "pattern": random_.choice(_PATTERNS)},
        {"type": "string", "pattern": f"^(a{{1,{size}}}){{1,{size}}}$"},
        {"anyOf": [{"type": "string", "maxLength": n} for n in range(size)]},
        {"allOf": [{"pattern": f".*a.{{{n}}}b.*"} for n in range(size // 4)]},
    ]
    if random_.random() < 0.4:
        count = random_.randint(10, 60)
        lookups = "".join(f"(.*a.{{{n}}}b.*|x)" for n in range(count))
        return {"type": "regex", "regex": lookups}
    schema = random_.choice(schemas)
    return {
        "type": "json_schema",
        "json_schema": {"name": "hostile", "schema": schema, "strict": True},
    }


MAKERS: dict[str, Make] = {
    "tokenizers": hostile_tokenizer,
    "gguf headers": hostile_gguf,
    "configurations": hostile_config,
    "templates": hostile_template,
}


def _explosive_step(random_: random.Random) -> dict[str, Any]:
    letter = random_.choice("aeHm ")
    grow = {
        "type": "Replace",
        "pattern": {"String": letter},
        "content": letter * random_.choice((2, 64, 4096)),
    }
    cut = {
        "type": "Split",
        "pattern": {"Regex": random_.choice(_PATTERNS)},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [
        {"type": "Sequence", "normalizers": [grow] * random_.choice((2, 8, 40))},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA" * 999},
        {"type": "Prepend", "prepend": "x" * 10**6},
        cut,
        {"type": "Sequence", "pretokenizers": [cut] * 20},
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x" * 999},
    ]
    return random_.choice(steps)


def _one_value_changed(value: Any, random_: random.Random) -> Any:
    """A copy of `value` with one of its values changed, however deep."""
    if isinstance(value, dict) and value and random_.random() < 0.9:
        key = random_.choice(list(value))
        return {**value, key: _one_value_changed(value[key], random_)}
    if isinstance(value, list) and value and random_.random() < 0.9:
        index = random_.randrange(len(value))
        changed = _one_value_changed(value[index], random_)
        return [*value[:index], changed, *value[index + 1 :]]
    return random_.choice(_LARGE)


def _copy(base: Path, target: Path) -> None:
    """A folder that shares the files of another; `_replace` parts with one."""
    target.mkdir()
    for path in base.iterdir():
        os.link(path, target / path.name)


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _write(path: Path, value: Any) -> None:
    _replace(path, json.dumps(value).encode())
