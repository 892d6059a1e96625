#!/usr/bin/env python3
"""Makes crates/testkit/fixtures/chat.json: conversations as transformers' `apply_chat_template` renders them.

Usage: PYTHONPATH=.venv-golden .venv-interop/bin/python scripts/golden_chat.py   (`make golden` does it)

The template of SmolLM2 is the one in its GGUF file; the others are written here in the style of well-known models, so
that they use what those use: loops with indices, slices, namespaces, methods of Python's strings, `tojson`,
`raise_exception`, `{% generation %}` and the control of blanks. What is marked by the last is recorded as the answers.
"""

import json
from pathlib import Path

import gguf
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT / "assets/models/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf"

CHATML = """{% for message in messages %}
    {% if message['role'] == 'assistant' %}
{{ '<|im_start|>assistant\\n' -}}
        {% generation %}
{{- message['content'] + '<|im_end|>' -}}
        {% endgeneration %}
{{- '\\n' }}
    {% else %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined and false %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set ns = namespace(user=0) %}
{%- for turn in turns %}
    {%- if (turn["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if turn.role == "user" %}
        {%- set ns.user = ns.user + 1 %}
        {%- if loop.first and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + turn.content.strip() + "[/INST]" }}
        {%- else %}
            {{- "[INST] " ~ turn.content.strip() ~ "[/INST]" }}
        {%- endif %}
    {%- elif turn.role == "assistant" %}
        {{- " " + turn.content|trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, not " ~ turn.role) }}
    {%- endif %}
{%- endfor %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# What reasoning models do: earlier answers lose their thoughts, so that a beginning is not always the same.
THINKING = """{%- set ns = namespace(last=-1) %}
{%- for m in messages[::-1] %}{% if m.role == 'user' and ns.last == -1 %}{% set ns.last = messages|length - 1 - loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set text = m.content %}
{%- if m.role == 'assistant' and '</think>' in text and loop.index0 < ns.last %}{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{- '<' ~ m.role|upper ~ '>' ~ text.rstrip() ~ '</' ~ m.role.title() ~ '>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<ASSISTANT>' }}{% endif %}
"""

ODDS = """{% set names = messages | map(attribute='role') | list %}
{{ names | tojson }} {{ messages[0] | tojson }} {{ messages | tojson(indent=2) }}
{{ {'a': [1, 2.5, true, none, "é\\"<&>"]} | tojson }}
{% for m in messages if m.role != 'system' %}
{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last else '' }}: {{ m['content'].upper().replace('A', 'b') }}
  {%- if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{% macro box(text, width=3) %}[{{ '-' * width }}{{ text }}]{% endmacro %}
{{ box(messages[-1].content[:5]) }}{{ box('x', width=1) }}
{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}
{{ messages[0].get('missing', 'none') }} {{ messages[0].name is defined }} {{ messages[0].content is string }}
{{- "  kept  " -}}
{{ ' '.join(names) }} {{ names | join(', ') }} {{ names | first }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 'ab' in 'cabd' }} {{ not none }} {{ 'a' ~ 1 }} {{ none is none }}
"""


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = {
    "one question": messages(("user", "What is 2+2?")),
    "two answers": messages(("system", " Be brief. "), ("user", "Hi"), ("assistant", "Hello, <b>friend</b>!"),
                            ("user", "  Bye\n"), ("assistant", "So long… 👋\n")),
    "no system": messages(("user", "a"), ("assistant", "b\n\nc"), ("user", "d & \"e\" 'f'")),
    "thoughts": messages(("user", "1+1?"), ("assistant", "<think>hm\n</think>\n2"), ("user", "2+2?"), ("assistant", "<think>h</think>4")),
    "system late": messages(("user", "a"), ("system", "b"), ("assistant", "c")),
    "out of turn": messages(("user", "a"), ("user", "b")),
}


def main():
    real = gguf.GGUFReader(REAL).fields["tokenizer.chat_template"].contents()
    templates = {
        "smollm2": (real, "<|im_start|>", "<|im_end|>"), "chatml": (CHATML, None, "<|im_end|>"),
        "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"), "mistral": (MISTRAL, "<s>", "</s>"),
        "qwen": (QWEN, None, "<|im_end|>"), "thinking": (THINKING, None, None), "odds": (ODDS, "<s>", "</s>"),
    }
    out = []
    for name, (source, bos, eos) in templates.items():
        tokens = {key: value for key, value in (("bos_token", bos), ("eos_token", eos)) if value is not None}
        cases = []
        for title, conversation in CONVERSATIONS.items():
            for prompt in (False, True):
                case = {"messages": conversation, "prompt": prompt}
                try:
                    rendered, marked = render_jinja_template(
                        [conversation], chat_template=source, add_generation_prompt=prompt,
                        return_assistant_tokens_mask="{% generation %}" in source, **tokens,
                    )
                    case["text"] = rendered[0]
                    if "{% generation %}" in source:
                        case["answers"] = [rendered[0][begin:end] for begin, end in marked[0]]
                except TemplateError as error:
                    case["refused"] = str(error)
                cases.append(case)
        out.append({"name": name, "source": source, "bos": bos, "eos": eos, "cases": cases})
    path = ROOT / "crates/testkit/fixtures/chat.json"
    path.write_text(json.dumps(out, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
