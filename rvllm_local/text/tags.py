"""The tags of every family's calls: parsers look for them, grammars write them, vocabularies often hold them whole."""

from __future__ import annotations

HERMES = ("<tool_call>", "</tool_call>")
PYTHON_TAG = "<|python_tag|>"
MISTRAL_CALLS, MISTRAL_ARGS, MISTRAL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
GEMMA = ("```tool_code", "```")
GEMMA_FUNCTION = ("<start_function_call>", "<end_function_call>")
GEMMA_ESCAPE = "<escape>"
DEEPSEEK_CALLS = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
DEEPSEEK_CALL = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
DEEPSEEK_SEP = "<｜tool▁sep｜>"
CHANNEL, MESSAGE, CONSTRAIN = "<|channel|>", "<|message|>", "<|constrain|>"
START, END_MESSAGE, CALL, RETURN = "<|start|>", "<|end|>", "<|call|>", "<|return|>"
GLM_KEY = ("<arg_key>", "</arg_key>")
GLM_VALUE = ("<arg_value>", "</arg_value>")
THINK = ("<think>", "</think>")
MISTRAL_THINK = ("[THINK]", "[/THINK]")

GEMMA4_CALL = ("<|tool_call>", "<tool_call|>")
GEMMA4_QUOTE = '<|"|>'
GEMMA4_CHANNEL = ("<|channel>", "<channel|>")
GEMMA4_THOUGHT = (f"{GEMMA4_CHANNEL[0]}thought", GEMMA4_CHANNEL[1])
LFM_CALLS = ("<|tool_call_start|>", "<|tool_call_end|>")
KIMI_CALLS = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
KIMI_CALL = ("<|tool_call_begin|>", "<|tool_call_end|>")
KIMI_ARGUMENTS = "<|tool_call_argument_begin|>"
MINIMAX = ("<minimax:tool_call>", "</minimax:tool_call>")
SEED = ("<seed:tool_call>", "</seed:tool_call>")
SEED_THINK = ("<seed:think>", "</seed:think>")
NEMOTRON = ("<TOOLCALL>", "</TOOLCALL>")
PHI = ("<|tool_call|>", "<|/tool_call|>")
FUNCTION = ("<function=", "</function>")
PYTHON_BLOCK = ("<|python_start|>", "<|python_end|>")
COHERE_ACTION = ("<|START_ACTION|>", "<|END_ACTION|>")
COHERE_THINK = ("<|START_THINKING|>", "<|END_THINKING|>")
COHERE_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
JAMBA = ("<tool_calls>", "</tool_calls>")
INTERNLM_ACTION, INTERNLM = "<|action_start|>", ("<|plugin|>", "<|action_end|>")
KIMI_K3_OPEN, KIMI_K3_CLOSE, KIMI_K3_SEP = "<|open|>", "<|close|>", "<|sep|>"
KIMI_K3_THINK = (
    f"{KIMI_K3_OPEN}think{KIMI_K3_SEP}",
    f"{KIMI_K3_CLOSE}think{KIMI_K3_SEP}",
)
MINIMAX_M3 = "]<]minimax[>["  # before every tag of a call
MINIMAX_M3_THINK = ("<mm:think>", "</mm:think>")
DSML = "｜DSML｜"  # in every tag of a call of DeepSeek V3.2
LONGCAT = ("<longcat_tool_call>", "</longcat_tool_call>")
LONGCAT_KEY = ("<longcat_arg_key>", "</longcat_arg_key>")
LONGCAT_VALUE = ("<longcat_arg_value>", "</longcat_arg_value>")
LONGCAT_THINK = ("<longcat_think>", "</longcat_think>")
_IFM_PARTS = ("tool_calls", "tool_call", "arg_key", "arg_type", "arg_value")
IFM_CALLS, IFM_CALL, IFM_KEY, IFM_TYPE, IFM_VALUE = (
    (f"<ifm|{part}>", f"</ifm|{part}>") for part in _IFM_PARTS
)
ATEM = ("<atem:function_calls>", "</atem:function_calls>")  # around Muse's calls
OLMO_CALLS = ("<function_calls>", "</function_calls>")
APERTUS = ("<|tools_prefix|>", "<|tools_suffix|>")
APERTUS_THINK = ("<|inner_prefix|>", "<|inner_suffix|>")
SOLAR_CALLS = "<|tool_calls|>"
SOLAR_CALL = ("<|tool_call:begin|>", "<|tool_call:end|>")
SOLAR_NAME, SOLAR_ARGUMENTS = "<|tool_call:name|>", "<|tool_call:args|>"
SOLAR_THINK = ("<|think|>", "<|end|>")
SOLAR_STRAYS = (
    SOLAR_CALLS,
    "<|calls|>",
    "<|flush|>",
    "<|end|>",
    "<|content|>",
    "<|begin|>assistant",
)
_PLAMO_PARTS = ("tool_requests", "tool_request", "tool_name", "tool_arguments", "think")
PLAMO_CALLS, PLAMO_CALL, PLAMO_NAME, PLAMO_ARGUMENTS, PLAMO_THINK = (
    (f"<|plamo:begin_{part}:plamo|>", f"<|plamo:end_{part}:plamo|>")
    for part in _PLAMO_PARTS
)
PLAMO_MESSAGE, PLAMO_JSON = "<|plamo:msg|>", "<|plamo:constrain|>json"
DOTS = ("<dots_function_call>", "</dots_function_call>")
GRANITE_CODE = ("<function_call>", "</function_call>")
GIGACHAT, GIGACHAT_SEP = "function call<|role_sep|>", "<|message_sep|>"
GCML = "｜GCML｜"  # in every tag of a call of GigaChat 3.5
KIMI_VL_THINK = ("◁think▷", "◁/think▷")
EXAONE_THINK = ("<thought>", "</thought>")
THOUGHT_TOKENS = ("<|begin_of_thought|>", "<|end_of_thought|>")
GRANITE_THINK = ("Here is my thought process:", "Here is my response:")
FUNCTIONARY = ">>>"  # before a recipient
SENDER, RECIPIENT = "<|from|>", "<|recipient|>"
RECIPIENT_CONTENT = "<|content|>"

# Tokens with these texts are never plain text, even where a vocabulary does not call
# them special.
CONTROL_TAGS = frozenset(
    (
        *HERMES, PYTHON_TAG, MISTRAL_CALLS, MISTRAL_ARGS, MISTRAL_ID, *GEMMA_FUNCTION,
        GEMMA_ESCAPE, *DEEPSEEK_CALLS, *DEEPSEEK_CALL, DEEPSEEK_SEP, CHANNEL, MESSAGE,
        CONSTRAIN, START, END_MESSAGE, CALL, RETURN, *GLM_KEY, *GLM_VALUE, *THINK,
        *MISTRAL_THINK, *GEMMA4_CALL, GEMMA4_QUOTE, *GEMMA4_CHANNEL, *LFM_CALLS,
        *KIMI_CALLS, *KIMI_CALL, KIMI_ARGUMENTS, *MINIMAX, *SEED, *SEED_THINK, *NEMOTRON,
        *PHI, *PYTHON_BLOCK, *COHERE_ACTION, *COHERE_THINK, *COHERE_RESPONSE, *JAMBA,
        INTERNLM_ACTION, *INTERNLM, KIMI_K3_OPEN, KIMI_K3_CLOSE, KIMI_K3_SEP, MINIMAX_M3,
        *MINIMAX_M3_THINK, DSML, *LONGCAT, *LONGCAT_KEY, *LONGCAT_VALUE, *LONGCAT_THINK, *ATEM,
        SENDER, RECIPIENT, RECIPIENT_CONTENT, *APERTUS, *APERTUS_THINK, *SOLAR_CALL,
        SOLAR_NAME, SOLAR_ARGUMENTS, SOLAR_CALLS, SOLAR_THINK[0], *KIMI_VL_THINK,
        *THOUGHT_TOKENS, *IFM_CALLS, *IFM_CALL, *IFM_KEY, *IFM_TYPE, *IFM_VALUE,
    )
)  # fmt: skip
