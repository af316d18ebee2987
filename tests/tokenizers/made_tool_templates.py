"""Chat templates that take tools, in the forms of today's models, written for these tests."""

HERMES = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- 'Tools, one a line, in <tools></tools>:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\nCall one so:\\n<tool_call>\\n' }}
    {{- '{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for turn in messages %}
    {%- if turn.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + turn.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif turn.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + turn.role + '\\n' + turn.content }}
        {%- for call in turn.tool_calls or [] %}
            {%- set function = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
            {{- function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Ids of calls have nine letters; tools stand before the last of the user's turns.
MISTRAL = """
{%- set user = namespace(last=-1) %}
{%- for turn in messages %}{% if turn.role == 'user' %}{% set user.last = loop.index0 %}{% endif %}
{%- endfor %}
{{- bos_token }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {%- if tools and loop.index0 == user.last %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + turn.content + '[/INST]' }}
    {%- elif turn.tool_calls is defined and turn.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in turn.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('ids have 9 letters') }}{% endif %}
            {%- set written = call.function | tojson %}
            {{- written[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif turn.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + turn.content + ', "call_id": "' }}
        {{- turn.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- ' ' + turn.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""

LLAMA = """
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- for turn in messages %}
    {%- if turn.tool_calls is defined and turn.tool_calls %}
        {%- if turn.tool_calls | length != 1 %}{{- raise_exception('one call at once') }}{% endif %}
        {%- set function = turn.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + function.name + '", ' + '"parameters": ' }}
        {{- function.arguments | tojson }}{{ '}<|eot_id|>' }}
    {%- elif turn.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (turn.content | tojson) }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' }}
        {%- if loop.first and tools is not none %}
            {{- 'Respond as {"name": function name, "parameters": dictionary of arguments}.\\n' }}
            {%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n' }}{% endfor %}
        {%- endif %}
        {{- turn.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Calls as Qwen3-Coder writes them, which are no JSON.
XML = """
{%- if tools %}{{- '<tools>' + (tools | tojson) + '</tools>\\n' }}
    {{- 'Call one so: <tool_call>\\n<function=name>\\n<parameter=a>\\n1\\n</parameter>' }}
    {{- '\\n</function>\\n</tool_call>' }}
{%- endif %}
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
