"""What an operator needs of a running process: its command, its heartbeat row, and alerts as rows.

``worker_command`` is the base of all commands that need services; every app uses it, and ``alerts`` too.
"""
