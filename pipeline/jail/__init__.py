"""A process without rights, in which bytes are read that nobody vouches for; `parent.run_jailed` starts it.

`child.py` and `lockdown.py` run inside, and import nothing but the standard library.
"""
