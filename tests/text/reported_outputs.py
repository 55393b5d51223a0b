"""Outputs that were reported to other servers, as one line each, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.families import OutputStyle, style_of
from tests.text.outputs import Read


def _tool(name: str, required: tuple[str, ...], **properties: str) -> dict[str, Any]:
    members = {key: {"type": kind} for key, kind in properties.items()}
    parameters = {
        "type": "object",
        "properties": members,
        "required": list(required),
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    _tool("bash", ("command",), command="string", timeout="integer"),
    _tool("write", ("path", "content"), path="string", content="string"),
    _tool("search", ("query",), query="string", limit="integer", exact="boolean"),
    _tool("edit", (), path="string", edits="array", options="object"),
    _tool("resolve-library-id", ("libraryName",), libraryName="string"),
    _tool("read_file", ("path",), path="string"),
    _tool("now", ()),
]
THINKING = {
    "gemma4": tags.GEMMA4_THOUGHT,
    "minimax_m3": tags.MINIMAX_M3_THINK,
    "mistral": tags.MISTRAL_THINK,
    "mistral_args": tags.MISTRAL_THINK,
    "seed": tags.SEED_THINK,
}


@dataclass(frozen=True)
class Reported:
    """An output: who reported it, the model's family, its text, and how it is read."""

    source: str
    family: str
    text: str
    content: str = ""
    thought: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    is_inside: bool = False  # the template has opened the thought

    @property
    def style(self) -> OutputStyle:
        pair = THINKING.get(self.family, tags.THINK)
        return style_of(self.family, pair, self.is_inside)

    @property
    def read(self) -> Read:
        return Read(self.content, self.thought, self.calls, [])


LS = ("bash", {"command": "ls"})
_HERMES = '<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>'
_GEMMA = '<|tool_call>call:bash{command:<|"|>ls<|"|>}<tool_call|>'
_QWEN = "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
_M3 = tags.MINIMAX_M3
REPORTED = [
    # Thoughts without one of their tags.
    Reported("vllm 39885", "gemma4", "thought\nI look.<channel|>Done.", "Done.", "I look."),
    Reported("vllm 39885", "gemma4", "thought\nI look.\n" + _GEMMA, thought="I look.", calls=[LS]),
    Reported("Rapid-MLX 447", "gemma4", "thought\nI look.<channel|>" + _GEMMA, thought="I look.", calls=[LS]),
    Reported("omlx 2533", "gemma4", "I look.<channel|>Done.", "Done.", "I look.", is_inside=True),
    Reported("vllm 49717", "gemma4", "Done.", "Done.", "Done.", is_inside=True),
    Reported("gemma4", "gemma4", "<|channel>thought\nI look.\n" + _GEMMA, thought="I look.", calls=[LS]),
    Reported("gemma4", "gemma4", "<|channel>thought\n<channel|>Done.", "Done."),
    Reported("gemma4", "gemma4", "thoughtful people say so.", "thoughtful people say so."),
    Reported("vllm 45687", "minimax_m3", "<mm:think>Hm.</mm:think>Done.", "Done.", "Hm."),
    Reported("ollama 10976", "hermes", "<think>I look.\n" + _HERMES, thought="I look.", calls=[LS]),
    Reported("llama.cpp 20260", "qwen3_coder", "I look.\n" + _QWEN, thought="I look.", calls=[LS], is_inside=True),
    Reported("ollama 10976", "hermes", "<think>I look.\n" + _HERMES + "\n</think>", thought="I look.\n" + _HERMES, calls=[LS]),
    Reported("lmstudio 1592", "hermes", "<think>A `</think>` ends it, '</think>' too.</think>So.", "So.", "A `</think>` ends it, '</think>' too."),
    Reported("vllm-mlx 402", "hermes", "<think>\n\n</think>\n\n<think>\n</think>\n\nSo.", "So."),
    Reported("tenstorrent 480", "hermes", _HERMES, calls=[LS]),
    Reported("simonw 1211", "hermes", "<think>\n\n</think>\n\n" + _HERMES, calls=[LS]),
    # Arguments that are no JSON.
    Reported("ollama 11704", "harmony", "<|channel|>commentary to=functions.bash<|message|>ls -R\n<|call|>", calls=[("bash", {"command": "ls -R"})]),
    Reported("continue 10221", "harmony", "<|channel|>commentary to=functions.read_file <|constrain|>json<|message|>a.py<|call|>", calls=[("read_file", {"path": "a.py"})]),
    Reported("ollama 11704", "harmony", "<|channel|>commentary to=functions.write<|message|>oops<|call|>", "<|channel|> commentary to=functions.write<|message|>oops<|call|>"),
    Reported("ollama 12064", "harmony", '<|channel|>commentary to=functions.bash<|message|>{"command": "ls"]}<|call|>', calls=[LS]),
    Reported("lmstudio 942", "harmony", '<|channel|>commentary to=functions.edit<|message|>{"options": {"a": {"b": 1}}<|call|>', calls=[("edit", {"options": {"a": {"b": 1}}})]),
    Reported("ollama 17274", "hermes", '<tool_call>{"name": "bash", "arguments": {"command": oops}}</tool_call>', '<tool_call>{"name": "bash", "arguments": {"command": oops}}</tool_call>'),
    Reported("kimi", "kimi", "<|tool_call_begin|>functions.bash:0<|tool_call_argument_begin|>ls<|tool_call_end|>", calls=[LS]),
    Reported("mlx-lm 899", "hermes", '<tool_call>{"name": "bash", "arguments": {"command": "grep \\d+ C:\\x"}}</tool_call>', calls=[("bash", {"command": "grep \\d+ C:\\x"})]),
    Reported("maclocal 141", "hermes", '<tool_call>\n{"name="bash", "arguments": {"command": "ls"}}\n</tool_call>', calls=[LS]),
    Reported("vllm 54964", "hermes", '<tool_call>{"name": "bash", "arguments": "{\\n  \\"command\\": \\"ls\\"\\n}"}</tool_call>', calls=[LS]),
    # Arguments wrapped once more.
    Reported("sglang 38924", "deepseek_v32", '<｜DSML｜tool_calls><｜DSML｜invoke name="bash"><｜DSML｜parameter name="arguments" string="false">{"command": "ls"}</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜tool_calls>', calls=[LS]),
    Reported("sglang 38924", "deepseek_v32", '<｜DSML｜invoke name="bash">{"input": {"command": "ls"}}</｜DSML｜invoke>', calls=[LS]),
    Reported("sglang 38924", "deepseek_v32", '<｜DSML｜invoke name="bash"><｜DSML｜parameter name="arguments" string="true">ls</｜DSML｜parameter></｜DSML｜invoke>', calls=[LS]),
    Reported("vllm 41240", "deepseek_v32", '<｜DSML｜invoke name="search"><｜DSML｜parameter name="query" string="true">12</｜DSML｜parameter><｜DSML｜parameter name="limit" string="false">3</｜DSML｜parameter></｜DSML｜invoke>', calls=[("search", {"query": "12", "limit": 3})]),
    Reported("vllm 41240", "deepseek_v32", "2 <", "2 <"),
    # Names in another form.
    Reported("llama.cpp 24658", "kimi", '<|tool_calls_section_begin|><|tool_call_begin|>functions_bash_2<|tool_call_argument_begin|>{"command": "ls"}<|tool_call_end|><|tool_calls_section_end|>', calls=[LS]),
    Reported("sglang 21377", "kimi", '<|tool_call_begin|>functionsbash5<|tool_call_argument_begin|>{"command": "ls"}<|tool_call_end|>', calls=[LS]),
    Reported("sglang 21377", "kimi", '<|tool_call_begin|>functions.bash5<|tool_call_argument_begin|>{"command": "ls"}<|tool_call_end|>', calls=[LS]),
    Reported("exo 1757", "kimi", '<|tool_call_begin|>functions.bash!166<|tool_call_argument_begin|>{"command": "ls"}<|tool_call_end|>', calls=[LS]),
    Reported("vllm 46127", "kimi", '<|tool_call_begin|>0 <|tool_call_argument_begin|>{"libraryName": "a"}<|tool_call_end|>', calls=[("resolve-library-id", {"libraryName": "a"})]),
    Reported("sglang 25362", "kimi", '<|tool_call_begin|>call00003<|tool_call_argument_begin|>{"command": "ls", "timeout": 3}<|tool_call_end|>', calls=[("bash", {"command": "ls", "timeout": 3})]),
    Reported("vllm 32146", "kimi", '<|tool_call_begin|>call_abc123def456<|tool_call_argument_begin|>{"name": "bash", "command": "ls"}<|tool_call_end|>', calls=[LS]),
    Reported("lmstudio 1358", "lfm2", '<|tool_call_start|>[resolve_library_id(libraryName="a")]<|tool_call_end|>', calls=[("resolve-library-id", {"libraryName": "a"})]),
    Reported("vllm 35906", "harmony", '<|channel|>commentary to=functions.bash<|channel|>commentary json<|message|>{"command": "ls"}<|call|>', calls=[LS]),
    Reported("vllm 35906", "harmony", '<|start|>assistant<|channel|>commentary to=bash<|channel|>commentary<|constrain|>json<|message|>{"command": "ls"}<|call|>', calls=[LS]),
    Reported("harmony 114", "harmony", '<|start|>assistant<|channel|>bash<|channel|>commentary<|constrain|>json<|message|>{"command": "ls"}<|call|>', calls=[LS]),
    Reported("harmony 38", "harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>––commentary<|message|>Done.<|end|>", "Done.", "Hm."),
    Reported("llama.cpp 27720", "harmony", "<|channel|>commentary 2?<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Done.", "Done.", "Hm."),
    Reported("llama.cpp 27720", "harmony", "<|channel|>commentary to=assistant<|channel|>commentary?<|message|>Done.<|end|>", "Done."),
    # Tags that are missing, doubled or misplaced.
    Reported("ollama 16686", "qwen3_coder", "I look.\n\n" + _QWEN.removeprefix("<tool_call>\n"), "I look.", calls=[LS]),
    Reported("xinfer 392", "glm", "<tool_call>bash<arg_key>command</arg_key><arg_value>ls</arg_value></tool_call></tool_call>", calls=[LS]),
    Reported("fw-ai 119", "glm", "<tool_call>now</arg_value></tool_call>", calls=[("now", {})]),
    Reported("vllm 47190", "glm", "<tool_call>bashcommand</arg_key><arg_value>ls</arg_value></tool_call>", calls=[LS]),
    Reported("vllm 47190", "glm", "<tool_call>search query</arg_key><arg_value>a</arg_value><arg_key>limit</arg_key><arg_value>3</arg_value></tool_call>", calls=[("search", {"query": "a", "limit": 3})]),
    Reported("vllm 49248", "glm", "<tool_call>bash<arg_key>command</arg_key>ls</arg_value></tool_call>", calls=[LS]),
    Reported("vllm 32097", "glm", "<tool_call>now</tool_call>", calls=[("now", {})]),
    Reported("vllm 30651", "mistral_args", '[TOOL_CALLS]bash{"command": "ls"}', calls=[LS]),
    Reported("mlx-lm 1374", "mistral_args", '[TOOL_CALLS] [{"name": "bash", "arguments": {"command": "ls"}}]', calls=[LS]),
    Reported("llama.cpp 29240", "muse", ' to=bash<|message|><atem:function_calls>\n<atem:invoke name="bash">\n<atem:parameter name="command">ls</atem:parameter>\n</atem:invoke>\n</atem:function_calls>', calls=[LS]),
    Reported("llama.cpp 24329", "llama3", '{"type": "function", "name": "bash", "parameters": {"command": "ls"}}', calls=[LS]),
    Reported("ollama 17565", "gemma4", '<|tool_call>call:edit{edits:[{path:<|"|>c:\\a.json<|"|>,line:1}]<tool_call|>', calls=[("edit", {"edits": [{"path": "c:\\a.json", "line": 1}]})]),
    Reported("ollama 15315", "gemma4", "<|tool_call>call:search{query:':\\s*\\w+'<|\"|>}<tool_call|>", calls=[("search", {"query": ":\\s*\\w+"})]),
    Reported("ollama 15315", "gemma4", "<|tool_call>call:write{content:\n\n# Guide (`a`)\n\nIt has **words**, and {braces}.,path:<|\"|>a.md<|\"|>}<tool_call|>", calls=[("write", {"content": "\n\n# Guide (`a`)\n\nIt has **words**, and {braces}.", "path": "a.md"})]),
    Reported("ollama 15315", "gemma4", '<|tool_call>call:edit{options:{range:{@timestamp:{gte:<|"|>now-1h<|"|>}},field:<|"|>a.b<|"|>}}<tool_call|>', calls=[("edit", {"options": {"range": {"@timestamp": {"gte": "now-1h"}}, "field": "a.b"}})]),
    Reported("minimax dynamo 245", "minimax", '<minimax:tool_call><invoke name="bash"><parameter name="command">a </minimax:tool_call> b</parameter></invoke></minimax:tool_call>', calls=[("bash", {"command": "a </minimax:tool_call> b"})]),
    Reported("vllm 51073", "minimax_m3", f'{_M3}<tool_call>{_M3}<invoke name="bash">{_M3}<command>ls{_M3}</command>{_M3}</invoke>{_M3}</tool_call>', calls=[LS]),
    Reported("oh-my-pi 2759", "minimax_m3", '<minimax:tool_call>\n<invoke name="bash">\n<parameter name="command">ls</parameter>\n</invoke>\n</minimax:tool_call>', calls=[LS]),
    Reported("dynamo 83", "minimax_m3", f'{_M3}<invoke name="bash">{_M3}<command>ls{_M3}</command>{_M3}</invoke>{_M3}</tool_call>', calls=[LS]),
    # Values.
    Reported("ninfer 138", "qwen3_coder", "<tool_call>\n<function=bash>\n<parameter=command>\ngrep '<parameter=edits>\\n(.*?)\\n</parameter>' a\n</parameter>\n</function>\n</tool_call>", calls=[("bash", {"command": "grep '<parameter=edits>\\n(.*?)\\n</parameter>' a"})]),
    Reported("Rapid-MLX 1515", "qwen3_coder", "<tool_call>\n<function=write>\n<parameter=path>\na\n</parameter>\n<parameter=content>\nIt ends with </tool_call> and </parameter> here.\n</parameter>\n</function>\n</tool_call>", calls=[("write", {"path": "a", "content": "It ends with </tool_call> and </parameter> here."})]),
    Reported("vllm 44060", "minimax", '<minimax:tool_call><invoke name="write"><parameter name="content"><parameter>\n<hello></parameter>\n</parameter><parameter name="path">a</parameter></invoke></minimax:tool_call>', calls=[("write", {"content": "<parameter>\n<hello></parameter>", "path": "a"})]),
    Reported("mlx-lm 1310", "qwen3_coder", "<tool_call><function=search><parameter=query>a</parameter><parameter=limit>2026-01-15</parameter></function></tool_call>", calls=[("search", {"query": "a", "limit": "2026-01-15"})]),
    Reported("mlx-lm 912", "qwen3_coder", "<tool_call><function=edit><parameter=options>{'key': 'value'}</parameter></function></tool_call>", calls=[("edit", {"options": {"key": "value"}})]),
    Reported("atlas 73", "qwen3_coder", "<tool_call><function=search><parameter=query>10</parameter><parameter=exact>True</parameter></function></tool_call>", calls=[("search", {"query": "10", "exact": True})]),
    Reported("sglang 36835", "qwen3_coder", "<tool_call><function=search><parameter=query></parameter><parameter=limit></parameter></function></tool_call>", calls=[("search", {"query": ""})]),
    Reported("ollama 11505", "phi", '<|tool_call|>[{"arguments": {"command": "ls"}, "name": "bash"}]', calls=[LS]),
    Reported("ollama 18388", "hermes", '<tool_call>{"name": "bash", "args": {"command": "ls"}}</tool_call>', calls=[LS]),
    Reported("unsloth 5624", "deepseek", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>bad<｜tool▁call▁end｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>bash\n```json\n{\"command\": \"ls\"}\n```<｜tool▁call▁end｜>", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>bad<｜tool▁call▁end｜>", calls=[LS]),
    Reported("sglang 34604", "kimi_k3", '<|open|>call tool="search" index="1"<|sep|><|open|>argument key="query" type="string"<|sep|>a<|close|>argument<|sep|><|open|>argument key="limit" type="number"<|sep|>many<|close|>argument<|sep|><|close|>call<|sep|>', calls=[("search", {"query": "a", "limit": "many"})]),
    Reported("ollama 15539", "gemma4", '{"tool_calls": [{"function": "bash", "args": {"command": "ls"}}]}', calls=[LS]),
    # Second reading.
    Reported("Qwen3.8 178", "qwen3_coder", _QWEN.replace("</function>", "</function>\n</function>") + "\n</function_invocation>", calls=[LS]),
    Reported("Rapid-MLX 1031", "qwen3_coder", _QWEN.replace("\n</tool_call>", " ok </tool_call>"), " ok ", calls=[LS]),
    Reported("Rapid-MLX 1031", "qwen3_coder", _QWEN.replace("<tool_call>\n", "<tool_call>Let me check.\n"), "Let me check.", calls=[LS]),
    Reported("llama.cpp 27661", "qwen3_coder", "It ends with `</think>` blocks.</think>So.", "So.", "It ends with `</think>` blocks.", is_inside=True),
    Reported("osaurus 1242", "deepseek_v32", '<｜DSML｜tool_ccalls>\n<｜DSML｜invoke name="bash">\n<｜DSML｜parameter name="command" string="true">ls</｜DSML｜parameter>\n</｜DSML｜inv>\n</｜DSML｜tool_cs>', calls=[LS]),
    Reported("command-code 909", "deepseek_v32", 'I look.\n\n<｜｜DSML｜｜ calls>\n<｜｜DSML｜｜ invoke name="bash">\n<｜｜DSML｜｜ parameter name="command" string="true">ls</｜｜DSML｜｜ parameter>\n</｜｜DSML｜｜ invoke>\n</｜｜DSML｜｜ calls>', "I look.", calls=[LS]),
    Reported("stdapi 182", "deepseek_v32", "I look.\n\n<｜DSML｜function_calls", "I look."),
    Reported("tt-inference 3683", "deepseek", '<｜tool▁call▁begin｜>function<｜tool▁sep｜>bash\njson\n{"command": "ls"}\n```<｜tool▁call▁end｜>', calls=[LS]),
    Reported("vllm 21544", "hermes", '<tool_call>{"name": "bash", "arguments": {"command": "mkdir -p test/{test1,test2"}}</tool_call>', calls=[("bash", {"command": "mkdir -p test/{test1,test2"})]),
    Reported("hermes-agent 7449", "gemma4", '<|tool_call>call:search(query: "a", limit: 3)<tool_call|>', calls=[("search", {"query": "a", "limit": 3})]),
    Reported("omlx 1830", "gemma4", '<|tool_call>call:google:mcp:bash{command:<|"|>ls<|"|>}<tool_call|>', calls=[LS]),
    Reported("sglang 27336", "qwen3_coder", "<tool_call>\n<function=bash>\n<parameter=command>\nls\n</parameter\n</function>\n</tool_call>", calls=[LS]),
    Reported("Rapid-MLX 3369", "hermes", '<tool_call>{"name": "read_file", "arguments": "{\\"path\\": <|x|>"}</tool_call>', '<tool_call>{"name": "read_file", "arguments": "{\\"path\\": <|x|>"}</tool_call>'),
    Reported("ollama 18275", "gemma4", "<|tool_call>call:bash:\nBEGIN_ARG:\nls\nEND_ARG", "<|tool_call>call:bash:\nBEGIN_ARG:\nls\nEND_ARG"),
    Reported("vllm 28806", "hermes", '<tool_call>{"name": "now", "arguments": {}}</tool_call>', calls=[("now", {})]),
    Reported("vllm 28806", "hermes", '<tool_call>{"name": "now"}</tool_call>', calls=[("now", {})]),
    Reported("vllm 26897", "deepseek_v31", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>bash<｜tool▁sep｜>{"command": "ls"<｜tool▁call▁end｜><｜tool▁calls▁end｜>', calls=[LS]),
]  # fmt: skip
