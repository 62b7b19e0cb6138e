"""The user-space switch that emulates links where the kernel cannot: one program, in two languages.

`model.py` says what it emulates and is what to read first; `protocol.py` has its command line and
its lines; `switch.py` joins the two to TAP devices, `switch.c` is the same program in C; `build.py`
gives the command of one or the other.
"""
