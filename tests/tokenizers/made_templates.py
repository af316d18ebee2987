"""Chat templates in the formats of today's models, written for these tests."""

LLAMA2 = """
{%- if messages[0].role == 'system' -%}
    {%- set first = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate user/assistant') -}}
    {%- endif -%}
    {%- if turn.role == 'user' -%}
        {{- bos_token + '[INST] ' + (first if loop.first else '') + turn.content.strip() -}}
        {{- ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + turn.content.strip() + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

LLAMA3 = """
{{- bos_token }}
{%- if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}
{%- for turn in messages %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if turn.role == 'system' %}{{- 'Today: ' + date + '\\n' }}{% endif %}
    {{- turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML = """
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

QWEN25 = (
    """
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
"""
    + CHATML
)

QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- set content = turn.content %}
    {%- if turn.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if turn.reasoning_content is string %}
            {%- set thoughts = turn.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and thoughts %}
            {%- set content = '<think>\\n' + thoughts + '\\n</think>\\n\\n' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + turn.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Always thinks: the prompt opens the thoughts.
DEEPSEEK = """
{{- bos_token }}
{%- for turn in messages %}
    {%- if turn.role == 'system' %}{{ turn.content }}
    {%- elif turn.role == 'user' %}{{ '<｜User｜>' + turn.content }}
    {%- else %}{{ '<｜Assistant｜>' + turn.content.split('</think>')[-1] + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}
"""

# Spaces stand on both sides of what the user says; there is none before the answer.
MISTRAL = """
{{- bos_token }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}{{- '[INST] ' + turn.content + ' [/INST]' }}
    {%- elif turn.role == 'assistant' %}{{- ' ' + turn.content + eos_token }}
    {%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for turn in messages %}
    {%- set role = 'model' if turn.role == 'assistant' else turn.role %}
    {{- '<start_of_turn>' + role + '\\n' + turn.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

# Names of control tokens are put together from pieces.
PHI3 = """
{%- for turn in messages %}
    {{- '<|' + turn.role + '|>\\n' + turn.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

# Nothing ends a turn but the next.
GLM4 = """[gMASK]<sop>
{%- for turn in messages -%}
    {{- '<|' + turn.role + '|>\\n' + turn.content -}}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""

# Its first model wrote words and no control tokens.
MINICPM = """
{%- for turn in messages %}
    {%- if turn.role == 'user' %}{{- '<用户>' + turn.content.strip() + '<AI>' }}
    {%- else %}{{- turn.content.strip() }}{% endif %}
{%- endfor %}
"""
