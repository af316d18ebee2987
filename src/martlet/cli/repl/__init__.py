"""The prompt of ``martlet run`` and ``martlet chat``: lines, commands, dialogues."""
